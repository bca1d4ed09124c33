"""A run whose work is done by processes of a Ray cluster: what each of them builds, and what the driver has instead.

The driver knows the student by its outline and holds no weights. A learner's process builds what one process would; a
sampler's too, and never updates it. Nothing here imports Ray before there is a [cluster] table.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from limbeck.assemble.engines import CopyEngine, sampler_of
from limbeck.assemble.site import Given, pick_device
from limbeck.config.base import ModelConfig
from limbeck.config.engine import HFEngineConfig
from limbeck.config.factory import Build
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.recipe import Recipe
from limbeck.config.self_teacher import ONLY, members_of
from limbeck.config.student import StudentConfig
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.errors import RecipeError, RunError
from limbeck.learners.local import LocalLearner
from limbeck.learners.ranks import open_rank
from limbeck.machine.usage import of_roles
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.loading import load_model, load_outline
from limbeck.objectives import loss_of
from limbeck.records import HiddenScores, Scored
from limbeck.teachers.local import LocalTeacher
from limbeck.training.watchdog import watch

if TYPE_CHECKING:
    from limbeck.cluster.learners import RankGroup
    from limbeck.cluster.samplers import Samplers
    from limbeck.cluster.teachers import TeacherPart, TeacherPool
    from limbeck.cluster.worker import Worker

logger = logging.getLogger("limbeck")

REFERENCE = "reference"  # the name of the frozen policy
VERSIONS = 3  # of the weights that the object store has room for without lag: sampled from, published, on its way out
SEEN_WITHIN = 10.0  # seconds in which a new file must be seen from another node


@dataclass(frozen=True)
class StudentPlan:
    """What a process needs to build the student. It is pickled, and small."""

    recipe: Recipe
    source: StudentConfig  # where its weights come from: with full weights a checkpoint's, once there is one
    vocabulary: int
    folder: Path
    kept: bool  # whether checkpoints are written to `folder`


@dataclass
class Fleet:
    """The processes of a run. `gpus` each of them has that computes with the student or a local teacher."""

    recipe: Recipe
    threads: int
    gpus: int
    resources: AsyncExitStack
    learner: RankGroup | None = None
    samplers: Samplers | None = None
    teachers: list[TeacherPool] = field(default_factory=list)
    workers: dict[str, list[Worker]] = field(default_factory=dict)  # by role
    _read: float = field(default_factory=time.perf_counter)  # when `usage` was asked last

    def worker(self, name: str, build: Callable[[], Any], gpus: int | None = None, restarts: bool = True) -> Worker:
        """A process that ends with the run. `build` is called there."""
        from limbeck.cluster.worker import Worker

        worker = Worker(name, build, self.threads, self.gpus if gpus is None else gpus, restarts, watch)
        self.resources.callback(worker.kill)
        self.workers.setdefault(name.rpartition(" ")[0].replace(" ", "/"), []).append(worker)
        return worker

    def usage(self) -> dict[str, float]:
        """Metrics of what each role did since they were asked for last. Nobody is asked: answers say it."""
        before, self._read = self._read, time.perf_counter()
        tallies = {role: [worker.tally.take() for worker in mine] for role, mine in self.workers.items()}
        return of_roles(tallies, self._read - before)

    async def start(self, plan: StudentPlan) -> None:
        """The learner and, where the student samples in processes of ours, the samplers. Raises what they raise."""
        from limbeck.cluster.samplers import Samplers

        starting = [self._start_learner(plan)]
        if isinstance(self.recipe.engine, HFEngineConfig):
            count = processes_of(self.recipe)["cluster.samplers"]
            workers = [self.worker(f"sampler {i + 1}", partial(build_sampler, plan)) for i in range(count)]
            self.samplers = Samplers(workers, self.recipe.engine.max_rows)
            starting.append(self.samplers.start())
        await asyncio.gather(*starting)

    async def start_teacher(self, name: str, section: ModelConfig, lm: CausalLM) -> TeacherPool:
        """The processes of one local teacher, or of the reference. Raises what they raise."""
        from limbeck.cluster.teachers import TeacherPool

        assert self.recipe.cluster is not None
        build = partial(build_teacher, self.recipe, name, section, lm.vocabulary)
        what = name if name in (ONLY, REFERENCE) else f"teacher {name}"
        count, gpus = self.recipe.cluster.teachers, self.gpus * _devices_of(section)
        rows = self.recipe.engine if isinstance(self.recipe.engine, HFEngineConfig) else HFEngineConfig()
        workers = [self.worker(f"{what} {i + 1}", build, gpus) for i in range(count)]
        pool = TeacherPool(name, lm, workers, rows.max_rows)
        await pool.start()
        self.teachers.append(pool)
        return pool

    async def computing_seconds(self, samples: Sequence[Scored]) -> dict[str, float]:
        """By teacher, what it computed for these while they were fetched."""
        scores = [scores for sample in samples for scores in (sample.scores, sample.reference)]
        states = [one.states for one in scores if isinstance(one, HiddenScores)]
        seconds = await asyncio.gather(*(pool.seconds_of(states) for pool in self.teachers))
        return {pool.name: found for pool, found in zip(self.teachers, seconds, strict=True)}

    async def _start_learner(self, plan: StudentPlan) -> None:
        from limbeck.cluster.learners import Rank, RankGroup

        world = processes_of(self.recipe)["cluster.learners"]
        folder = plan.folder.absolute()
        meeting, mark = (folder / f".{what}-{secrets.token_hex(8)}" for what in ("ranks", "shared"))
        mark.touch()
        try:
            ranks = [
                self.worker(
                    f"learner {rank + 1}",
                    partial(Rank, partial(build_rank, plan, mark if plan.kept else None, rank, world)),
                    restarts=False,
                )
                for rank in range(world)
            ]
            host, port = await ranks[0].free_address()
            # Nothing need listen where all are on one machine.
            where = f"file://{meeting}" if host.startswith("127.") else f"tcp://{host}:{port}"
            self.learner = RankGroup(ranks)
            await self.learner.start(where)
        finally:
            mark.unlink()
            meeting.unlink(missing_ok=True)

    async def learner_with(self, heads: Mapping[str, Head]) -> RankGroup:
        """Knowing the output heads of what will be scored."""
        assert self.learner is not None
        await self.learner.know_heads(heads)
        return self.learner


async def open_fleet(
    recipe: Recipe, student: CausalLM, given: Given, resources: AsyncExitStack, patience: float = 0.0
) -> Fleet:
    """Connect to the cluster. Raises `RecipeError` where it cannot be had or is too small after `patience` seconds."""
    from limbeck.cluster.connect import connected, require

    assert recipe.cluster is not None
    parts = [part.name for part in fields(given) if getattr(given, part.name) is not None]
    if parts:
        raise RecipeError(
            f"[cluster] builds its parts in other processes, but an object was given for {', '.join(parts)}. Name a "
            "factory in the recipe (kind = 'python'), or remove [cluster] (cluster=...)."
        )
    store_bytes = versions_in_store(recipe) * _travelling_bytes(recipe, student)
    there = resources.enter_context(connected(recipe.cluster.address, processes_of(recipe), store_bytes))
    on_gpu = recipe.device == "cuda" or (recipe.device == "auto" and there().get("GPU", 0) > 0)
    await require(there, processes_of(recipe), gpus_of(recipe) if on_gpu else {}, recipe.cluster.address, patience)
    _warn_of_idle_samplers(recipe)
    return Fleet(recipe, recipe.threads or torch.get_num_threads(), int(on_gpu), resources)


def versions_in_store(recipe: Recipe) -> int:
    """How many versions of the weights Ray's object store has room for."""
    return VERSIONS + recipe.rollout.lag


def _travelling_bytes(recipe: Recipe, student: CausalLM) -> int:
    """Of the weights of one version, at most: with LoRA the adapters of every linear layer."""
    lora = recipe.learner.lora if isinstance(recipe.learner, LocalLearnerConfig) else None
    if lora is None:
        return sum(parameter.nbytes for parameter in student.model.parameters())
    linear = [m for m in student.model.modules() if isinstance(m, torch.nn.Linear)]
    return sum(lora.rank * (layer.in_features + layer.out_features) * 4 for layer in linear)


def processes_of(recipe: Recipe) -> dict[str, int]:
    """How many processes each key asks for."""
    assert recipe.cluster is not None
    samplers = recipe.cluster.samplers if isinstance(recipe.engine, HFEngineConfig) else 0
    counts = {
        "cluster.learners": recipe.cluster.learners,
        "cluster.samplers": samplers,
        "cluster.teachers": len(_scoring_models(recipe)) * recipe.cluster.teachers,
    }
    return {key: count for key, count in counts.items() if count}


def gpus_of(recipe: Recipe) -> dict[str, int]:
    """How many GPUs each key asks for."""
    assert recipe.cluster is not None
    spanned = sum(map(_devices_of, _scoring_models(recipe)))
    teachers = {"cluster.teachers": spanned * recipe.cluster.teachers} if spanned else {}
    return {**processes_of(recipe), **teachers}


def _scoring_models(recipe: Recipe) -> list[ModelConfig]:
    """The local teachers, and the reference."""
    members = members_of(recipe).values()
    local: list[ModelConfig] = [member for member in members if isinstance(member, LocalTeacherConfig)]
    return [*local, *([] if recipe.objective.reference is None else [recipe.student])]


def _warn_of_idle_samplers(recipe: Recipe) -> None:
    section, cluster = recipe.engine, recipe.cluster
    assert cluster is not None
    rows = recipe.rollout.prompts_per_step * recipe.rollout.samples_per_prompt
    if isinstance(section, HFEngineConfig) and (units := -(-rows // section.max_rows)) < cluster.samplers:
        logger.warning(
            "a step has %d responses, which are %d %s of engine.max_rows = %d: %d of %d samplers have nothing to do. "
            "Set engine.max_rows = %d, or lower cluster.samplers.",
            rows, units, "unit" if units == 1 else "units", section.max_rows, cluster.samplers - units,
            cluster.samplers, max(1, rows // cluster.samplers),
        )  # fmt: skip


# --- in the processes ---------------------------------------------------------------------------------


def build_rank(plan: StudentPlan, mark: Path | None, rank: int, count: int, where: str) -> LocalLearner:
    """One of `count` learners, which meet at `where`. Raises `LimbeckError` as one process would.

    `mark` is a file in the run's folder, where that has to be shared.
    """
    if mark is not None:
        _require_shared(mark, rank)
    recipe, device = plan.recipe, pick_device(plan.recipe.device)
    student = load_outline(plan.source)
    student.vocabulary = plan.vocabulary
    build = Build(recipe, student.info(), student.tokenizer, device, recipe.seed, plan.folder)
    assert isinstance(recipe.learner, LocalLearnerConfig)
    loss = loss_of(recipe.objective, None, build)
    return open_rank(
        recipe.learner, loss, recipe.steps, recipe.seed, plan.source, rank, count, where, str(device),
        vocabulary=plan.vocabulary,
    )  # fmt: skip


def build_sampler(plan: StudentPlan) -> CopyEngine:
    """An engine over a copy of the student, which gets its weights later."""
    recipe = plan.recipe
    assert isinstance(recipe.engine, HFEngineConfig)
    assert isinstance(recipe.learner, LocalLearnerConfig)
    lm = load_model(plan.source, pick_device(recipe.device))
    lm.vocabulary = plan.vocabulary
    return CopyEngine(LocalLearner(lm, recipe.learner, recipe.objective, recipe.steps, recipe.seed), recipe.engine)


def _devices_of(section: ModelConfig) -> int:
    return section.devices if isinstance(section, LocalTeacherConfig) else 1


def build_teacher(recipe: Recipe, name: str, section: ModelConfig, vocabulary: int) -> TeacherPart:
    """A frozen model that scores."""
    from limbeck.cluster.teachers import TeacherPart

    assert recipe.cluster is not None
    lm = load_model(section, pick_device(recipe.device), _devices_of(section))
    lm.vocabulary = vocabulary
    sampler = partial(sampler_of, lm, recipe.engine)
    return TeacherPart(LocalTeacher(name, lm), recipe.cluster.state_mb * 2**20, sampler)


def _require_shared(mark: Path, rank: int) -> None:
    """The learners read and write the checkpoints. Raises `RunError` where the run's folder is another one here."""
    end = time.monotonic() + SEEN_WITHIN
    while not mark.exists():
        if time.monotonic() > end:
            raise RunError(
                f"learner {rank + 1} on node {socket.gethostname()} does not see the run's folder {mark.parent}. "
                "Checkpoints are written and read there by the learners: put it on a file system that all nodes share "
                "(output=...)."
            )
        time.sleep(0.1)
