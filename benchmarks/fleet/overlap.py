"""What overlap buys: the time of a step with `rollout.lag = 1` over that without, with added latencies.

    python -m benchmarks.fleet.overlap
    {"what": "overlap", "lag": 1, "ratio": 0.5, "seconds": {"0": 2.51, "1": 1.26}}

Sampling takes 1 s, scoring 0.5 s and an update 1 s, all awaited, as where other processes do the work. Without lag a
step is their sum, 2.5 s; with lag 1 two steps are under way at once, and it is half of that. The loop is the real one,
over the fakes of `limbeck.testing`; what it adds of its own is in the ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.assemble.policies import policies_to_sample_from
from limbeck.config.recipe import parse_recipe
from limbeck.environments.single_turn import SingleTurn
from limbeck.teacher_views.same import SameView
from limbeck.testing import BigramEngine, BigramTeacher, CountingLearner, FakeTask, random_bigrams
from limbeck.training.loop import train
from limbeck.training.run import Run
from limbeck.training.run_folder import RunFolder

SAMPLE, SCORE, UPDATE = 1.0, 0.5, 1.0  # seconds
VOCABULARY, PROMPTS = 12, 4
TABLE = random_bigrams(VOCABULARY)


class SlowEngine(BigramEngine):
    async def sample(self, unit: Sequence[Any]) -> Any:
        await asyncio.sleep(SAMPLE)
        return await super().sample(unit)


class SlowTeacher(BigramTeacher):
    async def score(self, unit: Sequence[Any]) -> Any:
        await asyncio.sleep(SCORE)
        return await super().score(unit)


class SlowLearner(CountingLearner):
    """Keeps when each update was done."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.done: list[float] = []

    async def update(self, samples: Sequence[Any]) -> Any:
        await asyncio.sleep(UPDATE)
        report = await super().update(samples)
        self.done.append(time.perf_counter())
        return report


def measure(quick: bool = True) -> dict[str, Any]:
    """One line of the fleet's benchmark."""
    steps = 6 if quick else 16
    seconds = {lag: asyncio.run(_seconds_a_step(lag, steps)) for lag in (0, 1)}
    shown = {str(lag): round(value, 3) for lag, value in seconds.items()}
    return {"what": "overlap", "lag": 1, "ratio": round(seconds[1] / seconds[0], 3), "seconds": shown}


async def _seconds_a_step(lag: int, steps: int) -> float:
    """The median from one update to the next, once the pipeline is full."""
    learner = SlowLearner()
    with tempfile.TemporaryDirectory() as folder:
        run = await _run(lag, steps, learner, Path(folder) / "run")
        await train(run)
        run.folder.close()
    ends: Mapping[int, float] = dict(enumerate(learner.done))
    return statistics.median(ends[step] - ends[step - 1] for step in range(1 + lag, steps))


async def _run(lag: int, steps: int, learner: SlowLearner, path: Path) -> Run:
    recipe = parse_recipe(
        {
            "steps": steps, "student": {"model": "demo:student"}, "teacher": {"kind": "python", "factory": "a:b"},
            "task": {"kind": "python", "factory": "a:b"}, "eval": {"prompts": 1},
            "rollout": {"max_tokens": 8, "prompts_per_step": PROMPTS, "lag": lag}, "checkpoint": {"every": 3},
        }
    )  # fmt: skip
    folder = RunFolder(path)
    folder.open("", recipe.model_dump(mode="json", exclude_none=True))
    policies = await policies_to_sample_from(learner, lag, None)
    engine = SlowEngine(TABLE)
    await engine.load(policies[0])
    run = Run(
        recipe=recipe, task=FakeTask({f"p{number}": [1, number, 3] for number in range(8)}), environment=SingleTurn(),
        engine=engine, teacher=SlowTeacher(random_bigrams(VOCABULARY, 1)), view=SameView(), learner=learner,
        decode=lambda ids: " ".join(map(str, ids)), stop_ids=(0,), folder=folder, support="sampled",
    )  # fmt: skip
    run.versions.begin(policies)
    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more steps")
    print(json.dumps(measure(quick=not parser.parse_args().full)))
