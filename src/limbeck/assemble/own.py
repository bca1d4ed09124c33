"""Parts of the user's own at their door: what is missing, what they raise, and whether they answer what was asked.

Built-in parts are checked where they are written. One of the user's own is wrapped here, so that a mistake in it ends
in one sentence that names the part, the request and the remedy, instead of somewhere in the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from limbeck.assemble.answers import kind_of, problem_of_response, problem_of_scores
from limbeck.errors import (
    ContractError,
    EngineError,
    LimbeckError,
    ModelError,
    RecipeError,
    TeacherError,
    place_of,
)
from limbeck.files.disk import os_error_of
from limbeck.protocols import BatchesTurns, Engine, HoldsHeads, Learner, Policy, Teacher
from limbeck.records import (
    Failure,
    ModelInfo,
    ProbeResult,
    Sampled,
    SampleRequest,
    Scored,
    ScoreRequest,
    Scores,
)
from limbeck.reports import StepReport, Trace

T = TypeVar("T")


class OwnTeacher:
    """A teacher whose every answer is checked against its request.

    Raises `TeacherError` where it raises or returns something else than one answer a request, and `ContractError` for
    an answer that cannot be trained on.
    """

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = checked_part(teacher, Teacher, "teacher")
        self.name, self.info = teacher.name, teacher.info
        if not isinstance(teacher.info, ModelInfo):
            raise RecipeError(f"teacher {teacher.name}: info is {kind_of(teacher.info)}, expected a ModelInfo")
        self.heads: Mapping[str, Any] = teacher.heads if isinstance(teacher, HoldsHeads) else {}

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        who = f"teacher {self.name}"
        answers = await call(f"{who}: score", TeacherError, lambda: self.teacher.score(unit))
        _check_one_each(who, TeacherError, answers, len(unit))
        for request, answer in zip(unit, answers, strict=True):
            problem = None if isinstance(answer, Failure) else problem_of_scores(answer, request)
            if problem:
                result = ProbeResult("answers", problem, "what was asked for", ok=False)
                raise ContractError(f"{who}, request {request.id!r}: {problem}", [result])
        return answers


class OwnEngine:
    """An engine whose every response is checked against its request. `vocabulary` is what student and teacher share.

    Raises `EngineError` where it raises, answers something else than one response a request, or one that cannot be.
    """

    def __init__(self, engine: Engine, vocabulary: int) -> None:
        self.engine = checked_part(engine, Engine, "engine")
        if engine.max_rows is not None and engine.max_rows < 1:
            raise RecipeError(f"engine {kind_of(engine)}: max_rows = {engine.max_rows}, expected None or at least 1")
        self.vocabulary = vocabulary
        self.name = f"engine {kind_of(engine)}"
        self.max_rows = engine.max_rows
        if isinstance(engine, BatchesTurns):
            self.batches_turns = engine.batches_turns

    async def load(self, policy: Policy) -> None:
        await call(f"{self.name}: load", EngineError, lambda: self.engine.load(policy))

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        answers = await call(f"{self.name}: sample", EngineError, lambda: self.engine.sample(unit))
        _check_one_each(self.name, EngineError, answers, len(unit))
        for request, answer in zip(unit, answers, strict=True):
            problem = None if isinstance(answer, Failure) else problem_of_response(answer, request, self.vocabulary)
            if problem:
                raise EngineError(f"{self.name}, prompt {request.key.prompt_id!r}: {problem}")
        return answers


class OwnLearner:
    """A learner whose reports are checked. Raises `ModelError` for a wrong one, and where it raises outside `update`.

    After an exception in `update` nobody knows its weights. It is raised as it is, and no checkpoint is made of it.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner, self.name = learner, f"learner {kind_of(learner)}"

    def save(self, folder: Path) -> None:
        self._call("save", folder)

    def restore(self, folder: Path) -> None:
        self._call("restore", folder)

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        try:
            report = await self.learner.update(samples)
        except LimbeckError:
            raise
        except Exception as error:
            error.add_note(f"{self.name} raised this in `update`. The same command goes on from the last checkpoint.")
            raise
        return self._checked(report, StepReport, "update")

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        report = await call(f"{self.name}: measure", ModelError, lambda: self.learner.measure(samples))
        return self._checked(report, StepReport, "measure")

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        traces = await call(f"{self.name}: trace", ModelError, lambda: self.learner.trace(samples, top))
        _check_one_each(f"{self.name}: trace", ModelError, traces, len(samples))
        return traces

    async def publish(self) -> Policy:
        policy = await call(f"{self.name}: publish", ModelError, self.learner.publish)
        return checked_part(policy, Policy, f"{self.name}: publish", ModelError)

    def _call(self, method: str, folder: Path) -> None:
        try:
            getattr(self.learner, method)(folder)
        except LimbeckError:
            raise
        except (Exception, SystemExit) as error:
            if os_error_of(error) is not None:
                raise  # the disk's: whoever writes knows what to say of it
            raise ModelError(
                f"{self.name}: {method} raised {type(error).__name__}: {error} ({place_of(error)})"
            ) from error

    def _checked(self, report: T, kind: type, method: str) -> T:
        if not isinstance(report, kind):
            raise ModelError(f"{self.name}: {method} returned {kind_of(report)}, expected a {kind.__name__}")
        return report


async def call(what: str, kind: type[LimbeckError], part: Callable[[], Awaitable[T]]) -> T:
    """What `part` returns. What it raises is raised as `kind`, with `what` and its place; a `LimbeckError` as it is."""
    try:
        awaitable = part()
        if inspect.isawaitable(awaitable):
            return await awaitable
    except LimbeckError:
        raise
    except (Exception, SystemExit) as error:  # nobody's part ends a run with exit status 0
        raise kind(f"{what} raised {type(error).__name__}: {error} ({place_of(error)})") from error
    raise kind(f"{what} returned {kind_of(awaitable)}, expected an awaitable. Write it as `async def`.")


def checked_part(part: T, protocol: type, seam: str, kind: type[LimbeckError] = RecipeError) -> T:
    """The part itself. Raises `kind` for a class in its place, and where a member of the protocol is missing."""
    if inspect.isclass(part):
        raise kind(f"{seam}: {part.__name__} is a class, expected an object: give {part.__name__}(...)")
    names = [name for name in (*protocol.__annotations__, *vars(protocol)) if not name.startswith("_")]
    missing = [name for name in names if not hasattr(part, name)]
    if missing:
        raise kind(
            f"{seam}: {kind_of(part)} has no {', '.join(missing)}; expected everything of limbeck.protocols."
            f"{protocol.__name__}: {', '.join(names)}"
        )
    return part


def _check_one_each(who: str, kind: type[LimbeckError], answers: Any, asked: int) -> None:
    if not isinstance(answers, list | tuple):
        raise kind(f"{who} returned {kind_of(answers)}, expected a list with one answer for each request")
    if len(answers) != asked:
        raise kind(f"{who} gave {len(answers)} answers to {asked} requests: it must give one each, in order")
