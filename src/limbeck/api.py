"""The Python interface: what the command line calls.

result = limbeck.train("recipes/demo.toml", ["rollout.temperature=0.7"])
result.before["accuracy"], result.after["accuracy"], result.folder / "model"
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from limbeck.assemble.run import assemble, run_path, teacher_as_student
from limbeck.config.recipe import Recipe, load_recipe
from limbeck.protocols import Observer
from limbeck.records import ProbeResult
from limbeck.trackers import make_trackers
from limbeck.training.evaluation import Evaluation
from limbeck.training.evaluation import evaluate as evaluate_run
from limbeck.training.loop import train as train_run
from limbeck.training.run_folder import RunFolder, remove_run

__all__ = ["Evaluation", "ProbeResult", "TrainResult", "check", "evaluate", "train"]


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, and its lines of metrics."""

    folder: Path
    steps: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]

    @property
    def before(self) -> Mapping[str, Any]:
        """The evaluation before the first update."""
        return self.evaluations[0]

    @property
    def after(self) -> Mapping[str, Any]:
        """The evaluation after the last update."""
        return self.evaluations[-1]


def train(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train by a recipe, going on from the newest checkpoint of the same run if there is one.

    `fresh` removes the run's folder first. Raises `LimbeckError`.
    """
    recipe = _recipe(recipe, overrides)
    return asyncio.run(_train(recipe, fresh, observers))


def evaluate(
    recipe: Recipe | str | Path,
    overrides: Sequence[str] = (),
    *,
    model: str | Path | None = None,
    of: Literal["student", "teacher"] = "student",
) -> Evaluation:
    """Evaluate by a recipe, without training: its student, another model folder, or its teacher.

    Raises `LimbeckError`.
    """
    recipe = _recipe(recipe, overrides)
    if model is not None:
        recipe = recipe.model_copy(update={"student": recipe.student.model_copy(update={"model": str(model)})})
    if of == "teacher":
        recipe = teacher_as_student(recipe)
    with tempfile.TemporaryDirectory() as scratch:

        async def run() -> Evaluation:
            assembled = await assemble(recipe, RunFolder(Path(scratch)))
            try:
                return await evaluate_run(assembled.run)
            finally:
                await assembled.run.close()

        return asyncio.run(run())


def check(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> tuple[ProbeResult, ...]:
    """Load everything a recipe names and prove the teacher's contract, without training.

    Raises `LimbeckError` for whatever would stop the run.
    """
    recipe = _recipe(recipe, overrides)

    async def run() -> tuple[ProbeResult, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            assembled = await assemble(recipe, RunFolder(Path(scratch)))
            await assembled.run.close()
            return assembled.verdicts

    return asyncio.run(run())


async def _train(recipe: Recipe, fresh: bool, observers: Sequence[Observer]) -> TrainResult:
    path = run_path(recipe)
    observers = [*observers, *make_trackers(recipe, path)]
    if fresh:
        remove_run(path)
    folder = RunFolder(path)
    checkpoint = folder.open(recipe.to_toml(), recipe.model_dump(mode="json", exclude_none=True))
    try:
        assembled = await assemble(recipe, folder, checkpoint)
        assembled.run.observers = observers
        try:
            await train_run(assembled.run)
        finally:
            await assembled.run.close()
    finally:
        for observer in observers:
            observer.closed()
        folder.close()
    lines = folder.lines()
    return TrainResult(
        path,
        tuple(line for line in lines if line["kind"] == "train"),
        tuple(line for line in lines if line["kind"] == "eval"),
    )


def _recipe(recipe: Recipe | str | Path, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise TypeError("overrides go with a recipe's path; change a Recipe with model_copy(update=...)")
        return recipe
    return load_recipe(recipe, overrides)
