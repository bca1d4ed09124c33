"""The rule of lag over fakes: every sampled token, whatever the timing, the checkpoints and the stops."""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.assemble.policies import policies_to_sample_from
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.environments.single_turn import SingleTurn
from limbeck.errors import EngineError, LimbeckError
from limbeck.protocols import Policy
from limbeck.records import SampleRequest, Scored, ScoreRequest
from limbeck.reports import StepReport
from limbeck.teacher_views.same import SameView
from limbeck.testing import BigramEngine, BigramTeacher, CountingLearner, FakeTask, Recorder, random_bigrams
from limbeck.training import loop
from limbeck.training.run import Run
from limbeck.training.run_folder import RunFolder
from limbeck.training.versions import version_of

V = 8
TABLE = random_bigrams(V)
PROMPTS = {f"p{number}": [1, number % V, 3] for number in range(6)}


class KilledError(LimbeckError):
    """As after kill -9 nothing is kept."""


class World:
    """Parts that yield to each other at random, and one of which fails at the call that is chosen."""

    def __init__(self, seed: int, fails_at: int = -1, error: BaseException | None = None) -> None:
        self.rng, self.calls, self.fails_at, self.error = random.Random(seed), 0, fails_at, error

    async def passes(self) -> None:
        self.calls += 1
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)
        if self.calls == self.fails_at and self.error is not None:
            raise self.error


class Engine(BigramEngine):
    def __init__(self, world: World) -> None:
        super().__init__(TABLE, max_rows=2)
        self.world, self.at_work = world, 0

    async def load(self, policy: Policy) -> None:
        assert self.at_work == 0, "weights are exchanged under a unit"
        await self.world.passes()
        await super().load(policy)

    async def sample(self, unit: Sequence[SampleRequest]) -> Any:
        self.at_work += 1
        version = self.loaded[-1]
        try:
            await self.world.passes()
        finally:
            self.at_work -= 1
        assert self.loaded[-1] == version
        return await super().sample(unit)


class Teacher(BigramTeacher):
    def __init__(self, world: World) -> None:
        super().__init__(random_bigrams(V, 1))
        self.world, self.at_work = world, 0

    async def score(self, unit: Sequence[ScoreRequest]) -> Any:
        self.at_work += 1
        assert self.at_work == 1, "two steps ask at once"
        try:
            await self.world.passes()
        finally:
            self.at_work -= 1
        return await super().score(unit)


class Learner(CountingLearner):
    """Keeps which versions each update and each evaluation saw."""

    def __init__(self, world: World, seen: dict[int, set[int]], measured: dict[int, set[int]]) -> None:
        super().__init__(TABLE)
        self.world, self.updates, self.measured = world, seen, measured

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        await self.world.passes()
        self.updates[self.version + 1] = _versions(samples)
        report = await super().measure(samples)
        self.version += 1
        return report

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        version = self.version
        await self.world.passes()
        assert self.version == version, "an update under an evaluation"
        self.measured[version] = _versions(samples)
        return await super().measure(samples)


def _versions(samples: Sequence[Scored]) -> set[int]:
    return {int(version) for sample in samples for version in sample.rollout.versions}


def recipe_of(lag: int, steps: int, **changes: Any) -> Recipe:
    return parse_recipe(
        {
            "steps": steps, "student": {"model": "demo:student"}, "teacher": {"kind": "python", "factory": "a:b"},
            "task": {"kind": "python", "factory": "a:b"},
            "rollout": {"temperature": 0.7, "max_tokens": 3, "prompts_per_step": 3, "lag": lag}, **changes,
        }
    )  # fmt: skip


async def run_of(recipe: Recipe, path: Path, world: World, learner: CountingLearner, **more: Any) -> Run:
    """What `assemble` does, with fakes."""
    folder = RunFolder(path)
    checkpoint = folder.open("", recipe.model_dump(mode="json", exclude_none=True))
    if checkpoint:
        learner.restore(checkpoint.folder)
    policies = await policies_to_sample_from(learner, recipe.rollout.lag, checkpoint)
    engine = more.pop("engine", None) or Engine(world)
    await engine.load(policies[0])
    run = Run(
        recipe=recipe, task=FakeTask(PROMPTS), environment=SingleTurn(), engine=engine,
        teacher=more.pop("teacher", None) or Teacher(world), view=SameView(), learner=learner,
        decode=lambda ids: " ".join(map(str, ids)), stop_ids=(0,), folder=folder, support="sampled",
        start=checkpoint.step if checkpoint else 0, **more,
    )  # fmt: skip
    run.versions.begin(policies)
    return run


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lag=st.integers(0, 4),
    steps=st.integers(1, 9),
    every=st.integers(0, 5),
    evaluated=st.integers(0, 4),
    stops=st.lists(st.tuples(st.integers(2, 60), st.booleans()), max_size=3),
    seed=st.integers(0, 99),
)
def test_every_sampled_token_is_of_the_version_that_the_rule_names(
    lag: int, steps: int, every: int, evaluated: int, stops: list[tuple[int, bool]], seed: int
) -> None:
    """Whatever yields to what, wherever it is killed or fails, and wherever it goes on."""
    chosen = recipe_of(lag, steps, checkpoint={"every": every}, eval={"every": evaluated, "prompts": 1})
    seen: dict[int, set[int]] = {}
    measured: dict[int, set[int]] = {}

    async def life(path: Path, world: World) -> None:
        run = await run_of(chosen, path, world, Learner(world, seen, measured))
        try:
            await loop.train(run)
        except LimbeckError:
            assert len(asyncio.all_tasks()) == 1, "something goes on behind the run"
            raise
        finally:
            run.folder.close()
            assert len(run.versions.held) <= lag + 1
            assert run.engine.loaded == sorted(run.engine.loaded)  # type: ignore[attr-defined]

    def attempt(path: Path, world: World) -> bool:
        keeps = lambda run, error: None if isinstance(error, KilledError) else honest(run, error)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "keep", keeps)
            try:
                asyncio.run(life(path, world))
            except LimbeckError:
                return False
        return True

    honest = loop.keep
    with tempfile.TemporaryDirectory() as folder:
        for number, (call, kill) in enumerate(stops):
            error = KilledError() if kill else EngineError("away")
            attempt(Path(folder) / "run", World(seed + number + 1, call, error))
        assert attempt(Path(folder) / "run", World(seed))
    assert seen == {step: {version_of(step, lag)} for step in range(1, steps + 1)}
    due = {step for step in range(steps + 1) if step in (0, steps) or (evaluated and step % evaluated == 0)}
    assert {version: versions for version, versions in measured.items() if version in due} == {v: {v} for v in due}


async def test_later_steps_are_sampled_and_scored_while_an_update_is_made(tmp_path: Path) -> None:
    """Events, no clock: the update of step n ends only once step n + 1 was sampled, and step n + 2 began to be."""
    sampled = {n: asyncio.Event() for n in range(1, 9)}

    class Sampler(BigramEngine):
        async def sample(self, unit: Any) -> Any:
            sampled[len(self.units) + 1].set()
            return await super().sample(unit)

    class Waits(CountingLearner):
        async def update(self, samples: Any) -> Any:
            later = min(self.version + 2, 4)
            await asyncio.wait_for(sampled[later].wait(), 10)
            return await super().update(samples)

    chosen = recipe_of(1, 4, eval={"prompts": 1}, checkpoint={"every": 2})
    run = await run_of(chosen, tmp_path, World(0), Waits(TABLE), engine=Sampler(TABLE))
    recorder = Recorder()
    run.observers = [recorder]
    await loop.train(run)
    run.folder.close()
    assert [line["step"] for line in recorder.steps] == [1, 2, 3, 4]
    assert "sample 2" in recorder.events[: recorder.events.index("publish 1")]


async def test_without_lag_nothing_is_started_before_it_is_asked_for(tmp_path: Path) -> None:
    recorder = Recorder()
    chosen = recipe_of(0, 2, eval={"every": 1, "prompts": 1}, checkpoint={"every": 1})
    run = await run_of(chosen, tmp_path, World(3), CountingLearner(TABLE), observers=[recorder])
    await loop.train(run)
    run.folder.close()
    step = "sample {0} grade {0} score {0} update {0} publish {0} evaluate {0} save {0}"
    expected = f"evaluate 0 {step.format(1)} {step.format(2)}".replace(" ", "|")
    assert "|".join(recorder.events[1:]).replace(" ", "|") == expected
    assert run.engine.loaded == [0, 1, 2]  # type: ignore[attr-defined]


async def test_what_fails_ahead_is_raised_once_and_leaves_no_message_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Fails(Engine):
        async def sample(self, unit: Any) -> Any:
            if len(self.units) >= 4:
                raise EngineError(f"away at {len(self.units)}")
            return await super().sample(unit)

    chosen = recipe_of(3, 6, eval={"prompts": 1}, checkpoint={"every": 0})
    learner = CountingLearner(TABLE)
    run = await run_of(chosen, tmp_path, World(1), learner, engine=Fails(World(1)))
    with pytest.raises(EngineError, match="away"):
        await loop.train(run)
    assert learner.version == run.folder.newest_step() < 3, "the updates before it are kept"
    run.folder.close()
    gc.collect()
    await asyncio.sleep(0)
    assert not [record for record in caplog.records if record.name == "asyncio"]
