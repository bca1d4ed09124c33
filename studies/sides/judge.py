"""One judge for all students: the same held-out prompts, sampled and scored in the same way, whoever trained them."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from common import Results, Row
from safetensors.torch import load_file

from limbeck.assemble.run import assemble
from limbeck.config.recipe import parse_recipe
from limbeck.training.collect import sample
from limbeck.training.evaluation import evaluate
from limbeck.training.prompt_order import PromptOrder
from limbeck.training.run_folder import RunFolder
from limbeck.view.plots import COLOURS
from sides.turns import Snapshot


class Judge:
    """Accuracy on a recipe's held-out prompts and exact reverse KL to its teacher, with the same randomness always."""

    def __init__(self, recipe: dict[str, Any]) -> None:
        self.recipe, self.version = parse_recipe(recipe), 0
        self.known: dict[Path | None, dict[str, float]] = {}

    def __enter__(self) -> Judge:
        self.runner, self.scratch = asyncio.Runner(), tempfile.TemporaryDirectory()
        self.run = self.runner.run(assemble(self.recipe, RunFolder(Path(self.scratch.name)))).run
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.runner.run(self.run.close())
        self.runner.close()
        self.scratch.cleanup()

    def of(self, folder: Path | None) -> dict[str, float]:
        """Of the weights that a side saved. None, which must come first: of the student before training."""
        if folder not in self.known:
            self.known[folder] = self.runner.run(self._of(folder))
        return self.known[folder]

    def answers(self, count: int) -> list[tuple[str, str]]:
        """Prompts in the order in which a run sees them, each with a sampled answer."""
        prompts = PromptOrder(self.run.task.train, count, self.recipe.seed).at(0)
        sampled = self.runner.run(sample(self.run, prompts, self.run.sampling(self.recipe.seed)))
        return [(one.prompt.text, text) for one, text in zip(sampled.rollouts, sampled.texts, strict=True)]

    async def _of(self, folder: Path | None) -> dict[str, float]:
        if folder is not None:
            self.version += 1
            tensors, learner = load_file(folder / "model.safetensors"), self.run.learner
            learner.take(self.version, ((name, tensors[name]) for name in learner.parameters))
            await self.run.engine.load(await learner.publish())
        found = await evaluate(self.run)
        return {"accuracy": found.accuracy, "reverse_kl": found.reverse_kl}


def judged(judge: Judge, snapshots: Mapping[str, Mapping[int, Snapshot]], at: str) -> list[Row]:
    """A row for each snapshot of a side, and one before training. `at` says what those of all sides have in common."""
    rows = []
    for side, kept in snapshots.items():
        clock = {"updates": 0, "seconds": 0.0, "cpu": 0.0, "tokens": 0}
        rows.append({"side": side, "at": at, "step": 0, **clock, **judge.of(None)})
        for step, one in kept.items():
            clock = {"updates": one.updates, "seconds": one.seconds, "cpu": one.cpu, "tokens": one.tokens}
            rows.append({"side": side, "at": at, "step": step, **clock, **judge.of(one.folder)})
    return rows


def by_side(results: Results, at: str) -> Results:
    """Sides as conditions, compared at equal `at`: "updates" or "seconds"."""
    split: dict[tuple[str, int], list[Row]] = {}
    for (_, seed), rows in results.runs.items():
        for row in rows:
            if row["at"] == at:
                split.setdefault((row["side"], seed), []).append(row)
    return Results(split, results.setting)


def draw_curves(axes: Any, results: Results, labels: Mapping[str, str], key: str, x: str) -> None:
    """Mean and 95% interval of each side's evaluations, over the mean of `x` there: seeds differ in their seconds."""
    for number, (side, label) in enumerate(labels.items()):
        steps, found = results.curve(side, key)
        places = [results.at(side, x, step).mean for step in steps]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(places, [one.mean for one in found], color=colour, linewidth=1.4, label=label)
        axes.fill_between(
            places, [one.low for one in found], [one.high for one in found], color=colour, alpha=0.15, linewidth=0
        )
