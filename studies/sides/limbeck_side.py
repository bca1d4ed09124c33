"""Limbeck's worker: a run that makes one step when it is asked to.

    python -m sides.limbeck_side PLAN.json        (see `steps/worker.py` for what it hears and says)

PLAN.json has `recipe`, the tables of a recipe; `sft`, whether it is what `limbeck sft` makes of it; `needs_teacher`,
false for an objective that looks at the student alone: then the teacher is proven and not asked any more.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.assemble.run import assemble
from limbeck.config.recipe import parse_recipe
from limbeck.config.sft import sft_table
from limbeck.records import ScoreRequest, TokenScores
from limbeck.testing import Recorder
from limbeck.training.alarms import Alarms
from limbeck.training.loop import one_step
from limbeck.training.pipeline import Pipeline
from limbeck.training.prompt_order import order_of
from limbeck.training.run import Run
from limbeck.training.run_folder import RunFolder
from limbeck.training.shares import shares_of
from steps.worker import Line


class UnreadTeacher:
    """In the place of a teacher whose scores the objective does not look at: the answer costs nothing."""

    def __init__(self, teacher: Any) -> None:
        self.name, self.info = teacher.name, teacher.info

    async def score(self, unit: Sequence[ScoreRequest]) -> list[TokenScores]:
        return [
            TokenScores(self.name, request.temperature, np.zeros(int(request.scored.sum()), dtype=np.float32))
            for request in unit
        ]


class Side:
    def __init__(self, run: Run) -> None:
        self.run, self.made, self.recorder = run, 0, Recorder()
        recipe, shares = run.recipe, shares_of(run.recipe)
        order = order_of(run.task, recipe.rollout.prompts_per_step, recipe.seed, shares.of_task_before)
        self.pipeline, self.alarms = Pipeline(run, order), Alarms(same_weights=False)
        run.observers = [self.recorder]

    async def step(self) -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.process_time()
        await one_step(self.run, self.pipeline, self.made + 1, self.alarms)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        self.made += 1
        line = self.recorder.steps[-1]
        return {"seconds": seconds, "cpu": cpu, "tokens": line["tokens/trained"], "rate": line["lr"]}

    async def save(self, folder: str) -> dict[str, Any]:
        (await self.run.learner.publish()).save(Path(folder), "float32")
        return {"updates": self.made}


async def serve(plan: dict[str, Any], line: Line, folder: Path) -> None:
    recipe = parse_recipe(plan["recipe"], change=sft_table) if plan["sft"] else parse_recipe(plan["recipe"])
    run = (await assemble(recipe, RunFolder(folder / "run"))).run
    if not plan["needs_teacher"]:
        run.teacher = UnreadTeacher(run.teacher)
    side = Side(run)
    line.say({"ready": True})
    while command := line.hear():
        line.say(await getattr(side, command.pop("do"))(**command))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text()), Line(), Path(scratch)))
