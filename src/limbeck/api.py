"""The Python interface: what the command line calls.

result = limbeck.train("recipes/demo.toml", ["rollout.temperature=0.7"])
result.before["accuracy"], result.after["accuracy"], result.folder / "model"
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from limbeck.assemble.own import checked_part
from limbeck.assemble.run import assemble, run_path, teacher_as_student
from limbeck.assemble.site import Given
from limbeck.config.recipe import Recipe, checked_again, load_recipe
from limbeck.protocols import Engine, Learner, Objective, Observer, Task, Teacher
from limbeck.records import ProbeResult
from limbeck.trackers import make_trackers
from limbeck.training.evaluation import Evaluation
from limbeck.training.evaluation import evaluate as evaluate_run
from limbeck.training.interruption import Interrupted, StopSignals
from limbeck.training.loop import keep
from limbeck.training.loop import train as train_run
from limbeck.training.resume import resume_notes
from limbeck.training.run import Run
from limbeck.training.run_folder import Checkpoint, RunFolder

__all__ = ["Evaluation", "Interrupted", "ProbeResult", "TrainResult", "check", "evaluate", "train"]

T = TypeVar("T")

logger = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Beginning:
    """Where a run begins, if not at its newest checkpoint: at nothing, or at the checkpoint of a step."""

    fresh: bool = False
    from_checkpoint: int | None = None


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
    from_checkpoint: int | None = None,
    teacher: Teacher | None = None,
    task: Task | None = None,
    engine: Engine | None = None,
    objective: Objective | None = None,
    learner: Learner | None = None,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train by a recipe, going on from the newest checkpoint of the same run if there is one.

    `fresh` removes the run's folder first. `from_checkpoint` goes on from the checkpoint of that step instead; what
    came after it is removed and made again. A part that is given takes the place of the recipe's; give the same again
    to resume. Works inside a running event loop (a notebook) too.

    Raises `LimbeckError`, and `Interrupted` (a `KeyboardInterrupt`) after SIGINT or SIGTERM, when the last update is
    in a checkpoint.
    """
    if fresh and from_checkpoint is not None:
        raise TypeError("give fresh or from_checkpoint, not both: each says where the run begins")
    recipe = _recipe(recipe, overrides)
    given = Given(teacher, task, engine, objective, learner)
    return _outside_loops(lambda stop: _train(recipe, Beginning(fresh, from_checkpoint), given, observers, stop))


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

    async def run(stop: StopSignals) -> Evaluation:
        stop.interrupts(asyncio.get_running_loop())
        with tempfile.TemporaryDirectory() as scratch:
            assembled = await assemble(recipe, RunFolder(Path(scratch)))
            assembled.run.stop = stop
            try:
                return await evaluate_run(assembled.run)
            finally:
                await assembled.run.close()

    return _outside_loops(lambda stop: asyncio.run(run(stop)))


def check(recipe: Recipe | str | Path, overrides: Sequence[str] = ()) -> tuple[ProbeResult, ...]:
    """Load everything a recipe names and prove the teacher's contract, without training.

    Raises `LimbeckError` for whatever would stop the run.
    """
    recipe = _recipe(recipe, overrides)

    async def run(stop: StopSignals) -> tuple[ProbeResult, ...]:
        stop.interrupts(asyncio.get_running_loop())
        with tempfile.TemporaryDirectory() as scratch:
            assembled = await assemble(recipe, RunFolder(Path(scratch)))
            await assembled.run.close()
            return assembled.results

    return _outside_loops(lambda stop: asyncio.run(run(stop)))


def _train(
    recipe: Recipe, beginning: Beginning, given: Given, observers: Sequence[Observer], stop: StopSignals
) -> TrainResult:
    path = run_path(recipe)
    observers = [*observers, *make_trackers(recipe, path)]
    for observer in observers:
        checked_part(observer, Observer, "observers")
    folder = RunFolder(path)
    now = recipe.model_dump(mode="json", exclude_none=True)
    try:
        checkpoint = folder.open(recipe.to_toml(), now, beginning.fresh, beginning.from_checkpoint)
        for note in resume_notes(checkpoint.recipe, now, checkpoint.step) if checkpoint else ():
            logger.warning("%s: %s", path, note)
        with asyncio.Runner() as runner:
            stop.interrupts(runner.get_loop())
            _run_to_end(runner, recipe, folder, checkpoint, given, observers, stop)
    finally:
        folder.close()
    lines = folder.lines()
    return TrainResult(
        path,
        tuple(line for line in lines if line["kind"] == "train"),
        tuple(line for line in lines if line["kind"] == "eval"),
    )


def _run_to_end(
    runner: asyncio.Runner,
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    given: Given,
    observers: list[Observer],
    stop: StopSignals,
) -> None:
    """A signal leaves the loop from wherever it is; what was under way is then cancelled, and the update kept."""
    run: Run | None = None
    try:
        run = runner.run(assemble(recipe, folder, checkpoint, given)).run
        run.observers, run.stop = observers, stop
        runner.run(train_run(run))
    except BaseException as error:
        stopped = stop.caught(error)
        if stopped is None:
            raise
        if run is not None:
            keep(run, stopped)  # first of all: whoever sent the signal may not wait for long
        _cancel_all(runner)
        stopped.folder, stopped.step = folder.path, folder.newest_step()
        raise stopped from None
    finally:
        if run is not None:
            try:
                runner.run(run.close())
            finally:
                if run.began:
                    run.report("closed")


def _cancel_all(runner: asyncio.Runner) -> None:
    """A signal that a task met leaves the loop once more from the task that waits for it."""
    while True:
        try:
            return runner.run(_cancel_others())
        except Interrupted:
            continue


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _outside_loops(work: Callable[[StopSignals], T]) -> T:
    """`work` where no event loop runs: here, or, inside one, in a thread of its own that is waited for."""
    if not _in_a_loop():
        with StopSignals() as stop:
            return work(stop)
    stop = StopSignals()
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="limbeck")
    future = pool.submit(work, stop)
    while True:
        try:
            return future.result()
        except KeyboardInterrupt:
            if future.done() or stop.number is not None:
                raise  # the second one waits for nothing; the thread ends at its next phase
            stop.request()
        finally:
            pool.shutdown(wait=False)


def _in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _recipe(recipe: Recipe | str | Path, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise TypeError("overrides go with a recipe's path; change a Recipe with model_copy(update=...)")
        return checked_again(recipe)
    return load_recipe(recipe, overrides)
