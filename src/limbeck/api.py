"""The Python interface: what the command line calls.

result = limbeck.train("recipes/demo.toml", ["rollout.temperature=0.7"])
result.before["accuracy"], result.after["accuracy"], result.folder / "model"
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from limbeck.assemble.fit import Sized, refuse, sized_here
from limbeck.assemble.own import checked_part
from limbeck.assemble.run import assemble, run_path, teacher_as_student
from limbeck.assemble.site import Given, pick_device
from limbeck.config.extras import require_extras
from limbeck.config.recipe import Recipe, check_overrides, checked_again, load_recipe, parse_recipe
from limbeck.config.sft import refuse_overrides, sft_table
from limbeck.config.teacher import LocalTeacherConfig
from limbeck.errors import ModelError, RecipeError
from limbeck.formatting import counted, shown
from limbeck.learners.export import newest_model
from limbeck.protocols import (
    Engine,
    Environment,
    Learner,
    Objective,
    Observer,
    SeesLoading,
    SeesTeachers,
    Task,
    Teacher,
)
from limbeck.records import ProbeResult
from limbeck.trackers import make_trackers
from limbeck.trackers.console import in_notebook, make_console
from limbeck.training.evaluation import Evaluation
from limbeck.training.evaluation import evaluate as evaluate_run
from limbeck.training.history import describe_place, recorded
from limbeck.training.interruption import Interrupted, StopSignals, cancel_others, outside_loops
from limbeck.training.learner_losses import LearnerLosses
from limbeck.training.loop import keep
from limbeck.training.loop import train as train_run
from limbeck.training.resume import resume_notes
from limbeck.training.run import Run, report
from limbeck.training.run_folder import Checkpoint, RunFolder

__all__ = [
    "Evaluation", "Interrupted", "ProbeResult", "TrainResult", "check", "compare", "evaluate", "sft", "size", "train",
]  # fmt: skip

AnyRecipe: TypeAlias = Recipe | Mapping[str, Any] | str | Path  # itself, its tables, or its TOML file

logger = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Beginning:
    """Where a run begins, if not at its newest checkpoint: at nothing, or at the checkpoint of a step."""

    fresh: bool = False
    from_checkpoint: int | None = None


@dataclass(frozen=True, repr=False)
class TrainResult:
    """A finished run: its folder, its lines of metrics, and after which step this call went on."""

    folder: Path
    steps: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    start: int = 0

    @property
    def before(self) -> Mapping[str, Any]:
        """The evaluation before the first update."""
        return self.evaluations[0]

    @property
    def after(self) -> Mapping[str, Any]:
        """The evaluation after the last update."""
        return self.evaluations[-1]

    def __repr__(self) -> str:
        """Short: a notebook prints it below the cell."""
        made = f"{counted(len(self.steps), 'step')}, {counted(len(self.evaluations), 'evaluation')}"
        return f"TrainResult(folder={str(self.folder)!r}, {made})"


def train(
    recipe: AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
    from_checkpoint: int | None = None,
    teacher: Teacher | None = None,
    task: Task | None = None,
    engine: Engine | None = None,
    objective: Objective | None = None,
    learner: Learner | None = None,
    environment: Environment | None = None,
    observers: Sequence[Observer] = (),
    display: bool | None = None,
) -> TrainResult:
    """Train by a recipe, going on from the newest checkpoint of the same run if there is one.

    `fresh` removes the run's folder first. `from_checkpoint` goes on from the checkpoint of that step instead; what
    came after it is removed and made again. A part that is given takes the place of the recipe's; give the same again
    to resume. Works inside a running event loop (a notebook) too. `display` shows how it goes; absent: in a notebook.

    Raises `LimbeckError`, and `Interrupted` (a `KeyboardInterrupt`) after SIGINT or SIGTERM, when the last update is
    in a checkpoint.
    """
    if fresh and from_checkpoint is not None:
        raise TypeError("give fresh or from_checkpoint, not both: each says where the run begins")
    recipe = _recipe(recipe, overrides)
    given = Given(teacher, task, engine, objective, learner, environment)
    if (in_notebook() if display is None else display) and (console := make_console(recipe)):
        observers = [console, *observers]
    return outside_loops(lambda stop: _train(recipe, Beginning(fresh, from_checkpoint), given, observers, stop))


def sft(
    recipe: AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    fresh: bool = False,
    from_checkpoint: int | None = None,
    task: Task | None = None,
    learner: Learner | None = None,
    observers: Sequence[Observer] = (),
) -> TrainResult:
    """Train the student of a recipe on the data sets of its `rollout.sources`: the forward KL to their tokens.

    The run is called as the recipe, and `-sft`. No teacher is loaded, and the recipe's objective is not used. Otherwise
    as `train`.
    """
    check_overrides(overrides)
    if isinstance(recipe, Recipe):
        recipe = parse_recipe(_recipe(recipe, overrides).model_dump(mode="json", exclude_none=True), change=sft_table)
    else:
        refuse_overrides(overrides)
        if isinstance(recipe, Mapping):
            recipe = parse_recipe(recipe, overrides, "the given recipe", sft_table)
        else:
            recipe = load_recipe(recipe, overrides, sft_table)
    return train(recipe, fresh=fresh, from_checkpoint=from_checkpoint, task=task, learner=learner, observers=observers)


def evaluate(
    recipe: AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    model: str | Path | None = None,
    of: Literal["student", "teacher"] = "student",
) -> Evaluation:
    """Evaluate by a recipe, without training: its student, another model folder, or its teacher.

    Raises `LimbeckError`.
    """
    if of not in ("student", "teacher"):
        raise RecipeError(f"of = {shown(of)}, expected 'student' or 'teacher'")
    if of == "teacher" and model is not None:
        raise RecipeError("give model=... or of='teacher', not both: each says which model is evaluated")
    recipe = _recipe(recipe, overrides)
    require_extras(recipe, unused=("trackers",))
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

    return outside_loops(lambda stop: asyncio.run(run(stop)))


def compare(
    recipe: AnyRecipe, overrides: Sequence[str] = (), *, model: str | Path | None = None
) -> dict[str, Evaluation]:
    """Evaluate, on the same prompts, `student before`, `student after` and `teacher`.

    After is what the recipe's run has made of the student so far, or the folder `model`. A teacher that does not
    sample here, such as one behind a URL, has no entry. Raises `LimbeckError`.
    """
    recipe = _recipe(recipe, overrides)
    with newest_model(run_path(recipe)) if model is None else nullcontext(model) as after:
        found = {"student before": evaluate(recipe), "student after": evaluate(recipe, model=after)}
    if isinstance(recipe.teacher, LocalTeacherConfig):
        found["teacher"] = evaluate(recipe, of="teacher")
    return found


def size(recipe: AnyRecipe, overrides: Sequence[str] = (), *, prompt_tokens: int | None = None) -> Sized:
    """What a run of the recipe takes, and what of it does not fit on this machine. Nothing is loaded.

    `prompt_tokens` are those of the longest prompt, which a recipe does not say. Raises `LimbeckError`.
    """
    return sized_here(_recipe(recipe, overrides), prompt_tokens)


def check(recipe: AnyRecipe, overrides: Sequence[str] = (), *, anyway: bool = False) -> tuple[ProbeResult, ...]:
    """Load everything a recipe names and prove the teacher's contract, without training.

    Raises `LimbeckError` for whatever would stop the run; also, but for `anyway`, before anything is loaded, where this
    machine is certainly too small for it.
    """
    recipe = _recipe(recipe, overrides)
    require_extras(recipe)
    if not anyway:
        refuse(sized_here(recipe))

    async def run(stop: StopSignals) -> tuple[ProbeResult, ...]:
        stop.interrupts(asyncio.get_running_loop())
        with tempfile.TemporaryDirectory() as scratch:
            assembled = await assemble(recipe, RunFolder(Path(scratch)))
            await assembled.run.close()
            return assembled.results

    return outside_loops(lambda stop: asyncio.run(run(stop)))


def _train(
    recipe: Recipe, beginning: Beginning, given: Given, observers: Sequence[Observer], stop: StopSignals
) -> TrainResult:
    path = run_path(recipe)
    require_extras(recipe, [part.name for part in fields(given) if getattr(given, part.name) is not None])
    audience = _Audience([*observers, *make_trackers(recipe, path)])
    for observer in audience.observers:
        checked_part(observer, Observer, "observers")
    folder = RunFolder(path)
    now = recipe.model_dump(mode="json", exclude_none=True)
    try:
        checkpoint = folder.open(recipe.to_toml(), now, beginning.fresh, beginning.from_checkpoint)
        for note in resume_notes(checkpoint.recipe, now, checkpoint.step) if checkpoint else ():
            logger.warning("%s: %s", path, note)
        sized = _sized(recipe, given)
        for misfit in sized.misfits if sized else ():
            logger.warning("%s", misfit.text)
        report(audience.seeing(SeesLoading), "loading", sized.in_short() if sized else "")
        place = describe_place(None if recipe.cluster else pick_device(recipe.device))
        began = checkpoint.step if checkpoint else 0
        with recorded(folder, began, recipe.steps, place), asyncio.Runner() as runner:
            stop.interrupts(runner.get_loop())
            losses = LearnerLosses()
            try:
                while not _run_to_end(runner, recipe, folder, checkpoint, given, audience, stop, losses):
                    folder.close()
                    checkpoint = folder.open(recipe.to_toml(), now)
            finally:
                audience.close()
    finally:
        folder.close()
    lines = folder.lines()
    steps, evaluations = (tuple(line for line in lines if line["kind"] == kind) for kind in ("train", "eval"))
    return TrainResult(path, steps, evaluations, began)


def _sized(recipe: Recipe, given: Given) -> Sized | None:
    try:
        return sized_here(recipe, given=given)
    except ModelError:  # its own words come when it is loaded: a resumed run takes the student from its checkpoint
        return None


@dataclass
class _Audience:
    """A run's observers, and whether one of its attempts has begun."""

    observers: list[Observer]
    began: bool = False

    def seeing(self, more: type) -> list[Observer]:
        return [observer for observer in self.observers if isinstance(observer, more)]

    def close(self) -> None:
        """At the end of the last attempt. A run that never began has shown at most that it loads."""
        report(self.observers if self.began else self.seeing(SeesLoading), "closed")


def _run_to_end(
    runner: asyncio.Runner,
    recipe: Recipe,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    given: Given,
    audience: _Audience,
    stop: StopSignals,
    losses: LearnerLosses,
) -> bool:
    """False where the fleet lost its learner and the run has to be taken up again from its newest checkpoint.

    A signal leaves the loop from wherever it is; what was under way is then cancelled, and the update kept.
    """
    run: Run | None = None
    try:
        assembled = runner.run(assemble(recipe, folder, checkpoint, given, again=losses.count > 0))
        run = assembled.run
        run.observers, run.stop = audience.observers, stop
        report(audience.seeing(SeesTeachers), "proven", assembled.methods)
        runner.run(train_run(run))
    except BaseException as error:
        stopped = stop.caught(error)
        if stopped is None:
            if recipe.cluster is not None and losses.may_go_on(error, folder.newest_step()):
                return False
            raise
        if run is not None:
            keep(run, stopped)  # first of all: whoever sent the signal may not wait for long
        _cancel_all(runner)
        stopped.folder, stopped.step = folder.path, folder.newest_step()
        raise stopped from None
    finally:
        if run is not None:
            audience.began |= run.began
            runner.run(run.close())
    return True


def _cancel_all(runner: asyncio.Runner) -> None:
    """A signal that a task met leaves the loop once more from the task that waits for it."""
    while True:
        try:
            return runner.run(cancel_others())
        except Interrupted:
            continue


def _recipe(recipe: AnyRecipe, overrides: Sequence[str]) -> Recipe:
    check_overrides(overrides)
    if isinstance(recipe, Recipe):
        if overrides:
            raise TypeError("overrides go with a recipe's path; change a Recipe with model_copy(update=...)")
        return checked_again(recipe)
    if isinstance(recipe, Mapping):
        return parse_recipe(recipe, overrides, "the given recipe")
    return load_recipe(recipe, overrides)
