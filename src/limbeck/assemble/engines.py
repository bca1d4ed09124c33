"""From a recipe's engine table to the engine: one entry in `ENGINES` a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from limbeck.assemble.own import OwnEngine
from limbeck.assemble.site import Site
from limbeck.config.engine import (
    HFEngineConfig,
    PythonEngineConfig,
    ServedEngineConfig,
    SGLangEngineConfig,
    VLLMEngineConfig,
)
from limbeck.config.factory import build_part
from limbeck.engines.hf import InProcessEngine
from limbeck.engines.served import ServedEngine, Server
from limbeck.engines.several import ServedEngines
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.vllm import VLLMServer
from limbeck.engines.weights_folder import WeightsFolder, places_for
from limbeck.errors import EngineError
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.protocols import Engine, Learner, Policy, Task
from limbeck.records import NO_VERSION, Failure, Sampled, SampleRequest, Sampling
from limbeck.wire.http import Pool, PoolSettings

FIXED_TEXT = 64  # tokens of the task's prompts by which a served engine's weights are compared
PASSED_OVER = 3.0  # seconds after which one of several servers that does not answer is passed over for the others


def make_engine(site: Site, learner: Learner, task: Task, stop_ids: tuple[int, ...], student_top: int = 0) -> Engine:
    """The engine the caller gave, or the one of the recipe's table. `student_top` as in `Run`."""
    if site.given.engine is not None:
        given = site.given.engine
        return given if isinstance(given, ServedEngine) else OwnEngine(given, site.student.vocabulary)
    section = site.recipe.engine
    engine = ENGINES[type(section)](section, site, learner, task, stop_ids)
    for served in servers_of(engine):
        served.student_top = student_top
    return engine


def servers_of(engine: Engine) -> list[ServedEngine]:
    """The servers behind an engine; none where it samples in this process."""
    if isinstance(engine, ServedEngines):
        return [member.engine for member in engine.members]
    return [engine] if isinstance(engine, ServedEngine) else []


def _hf(section: HFEngineConfig, site: Site, learner: Learner, task: Task, stop_ids: tuple[int, ...]) -> Engine:
    if site.fleet is not None and site.fleet.samplers is not None:
        return site.fleet.samplers
    if not (isinstance(learner, LocalLearner) and learner.lm is site.student):
        return InProcessEngine(site.student, section, shared=False)
    if site.recipe.rollout.lag == 0:
        return InProcessEngine(site.student, section, learner.autocast)
    lm = load_model(site.recipe.student, site.device)  # it gets its weights from the policy
    lm.vocabulary = site.student.vocabulary
    return CopyEngine(LocalLearner(lm, learner.config, learner.loss, learner.steps, learner.seed), section)


def sampler_of(lm: CausalLM, section: object) -> InProcessEngine:
    """Decodes a frozen model, as the student is decoded where `section` says how."""
    engine = InProcessEngine(lm, section if isinstance(section, HFEngineConfig) else HFEngineConfig())
    engine.version = NO_VERSION
    return engine


@runtime_checkable
class Published(Protocol):
    """Weights of one version, as a learner trains them: a `LocalPolicy`, or what travels in a fleet."""

    version: int

    def trained(self) -> Iterator[tuple[str, Any]]: ...


class CopyEngine:
    """Samples from a copy of the student that is held as the learner holds it, adapters and all: the same bits.

    `copy` makes no updates. Raises `EngineError` and `ModelError` for what no learner of the same recipe published.
    """

    def __init__(self, copy: LocalLearner, section: HFEngineConfig) -> None:
        self.copy, self.engine = copy, InProcessEngine(copy.lm, section, copy.autocast)
        self.max_rows = self.engine.max_rows

    async def load(self, policy: Policy | Published) -> None:
        if not isinstance(policy, Published):
            raise EngineError(
                f"engine hf has a copy of the student, which cannot take weights of a {type(policy).__name__}: it has "
                "no `trained`. Set rollout.lag = 0 for a learner of your own."
            )
        self.copy.take(policy.version, policy.trained())
        await self.engine.load(await self.copy.publish())

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        return await self.engine.sample(unit)


def _served(server: Callable[[Any], Server]) -> Callable[..., Engine]:
    def make(
        section: ServedEngineConfig, site: Site, learner: Learner, task: Task, stop_ids: tuple[int, ...]
    ) -> Engine:
        rollout, student, run, cluster = site.recipe.rollout, site.student, site.folder.path, site.recipe.cluster
        ids = [id_ for prompt in task.train[:FIXED_TEXT] for id_ in prompt.token_ids]
        several = len(section.urls) > 1
        settings = PoolSettings(
            concurrency=section.max_concurrency,
            timeout=section.timeout,
            patience=min(PASSED_OVER, section.retry_seconds) if several else section.retry_seconds,
            token_env=section.token_env,
            table="engine",
        )
        weights = WeightsFolder(
            places_for(section.urls, run, section.weights_folder, cluster is None or cluster.address == "local"),
            owner=f"{run.resolve()} {' '.join(section.urls)}",
            size=sum(parameter.numel() for parameter in student.model.parameters()) * 4,
        )
        engines = [
            ServedEngine(
                server=server(section),
                pool=Pool([url], settings),
                weights=weights,
                text=(ids * FIXED_TEXT)[: min(FIXED_TEXT, (student.context or FIXED_TEXT) - 1)],
                sampling=Sampling(rollout.temperature, rollout.max_tokens, stop_ids, site.recipe.seed),
                vocabulary=student.vocabulary,
                tolerance=section.tolerance,
                max_rows=section.max_rows,
            )
            for url in section.urls
        ]
        engine = ServedEngines(engines, section.max_concurrency, section.retry_seconds) if several else engines[0]
        site.resources.push_async_callback(engine.close)
        return engine

    return make


def _python(section: PythonEngineConfig, site: Site, learner: Learner, task: Task, stop_ids: tuple[int, ...]) -> Engine:
    return OwnEngine(build_part(section, "engine", site.build), site.student.vocabulary)


ENGINES: Mapping[type, Callable[..., Engine]] = {
    HFEngineConfig: _hf,
    SGLangEngineConfig: _served(lambda section: SGLangServer(section.weights)),
    VLLMEngineConfig: _served(lambda section: VLLMServer()),
    PythonEngineConfig: _python,
}
