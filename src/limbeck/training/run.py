"""The parts of a run, put together by `assemble/` and used by the loop."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck.config.recipe import Recipe
from limbeck.machine.meter import Meter
from limbeck.protocols import Engine, Environment, Learner, Observer, Task, Teacher, TeacherView, TokenNames
from limbeck.records import Ints, Sampling, Scored, Support
from limbeck.training.episodes import EpisodeLimits
from limbeck.training.interruption import StopSignals, cancel_others
from limbeck.training.journal import Journal
from limbeck.training.peaks import Work
from limbeck.training.run_folder import RunFolder
from limbeck.training.shares import Sources
from limbeck.training.versions import Turns, Versions
from limbeck.training.watchdog import watch

logger = logging.getLogger("limbeck")

ROLES = {  # who is at work in a phase, for the watchdog; what takes several has phases within it
    "sample": "sampler", "publish": "sampler", "grade": "grader", "score": "teacher", "update": "learner",
    "save": "learner", "record": "recording", "evaluate": "evaluation",
}  # fmt: skip


@dataclass
class Run:
    """A recipe and the parts that carry it out."""

    recipe: Recipe
    task: Task
    environment: Environment
    engine: Engine
    teacher: Teacher
    view: TeacherView
    learner: Learner
    decode: Callable[[Ints], str]
    stop_ids: tuple[int, ...]
    folder: RunFolder
    journal: Journal | None = None  # None: what is sampled follows from the seed, and is sampled again on resume
    limits: EpisodeLimits = field(default_factory=EpisodeLimits)
    support: Support = "full"  # what teachers are asked for, where it is not the rollout's `top_ids`
    start: int = 0  # updates that had been made
    reference: Teacher | None = None
    eval_tasks: Mapping[str, Task] = field(default_factory=dict)  # of evaluation sets with prompts of their own
    eval_teachers: Mapping[float, Teacher] = field(default_factory=dict)  # for sets at other temperatures
    names: TokenNames | None = None  # None: rollouts are not recorded
    min_scored_fraction: float = 1.0  # of a step's rollouts that the teacher must score, or the step stops
    same_weights: bool = False  # student and teacher begin as the same model
    kl_should_fall: bool = False  # nothing else is trained for
    sources: Sources | None = None  # of a step's sequences; None: the student samples everything
    student_top: int = 0  # K of the student's own most likely ids, which teachers are asked about; 0: they are not
    teacher_seconds: Callable[[], Mapping[str, float]] = dict  # of the last scoring, by teacher where there are several
    # Of teachers that compute while the learner fetches: what each of them took, once it has.
    computing_seconds: Callable[[Sequence[Scored]], Awaitable[Mapping[str, float]]] | None = None
    usage: Callable[[], Mapping[str, float]] = dict  # metrics of a fleet's roles since the last time
    meter: Meter = field(default_factory=Meter)  # of this process and its machine
    observers: list[Observer] = field(default_factory=list)
    stop: StopSignals = field(default_factory=StopSignals)
    resources: AsyncExitStack = field(default_factory=AsyncExitStack)  # what has to be let go of at the end
    work: Mapping[str, Work] = field(default_factory=dict)  # of sample, score and update, where the peak is known
    scoring: Turns = field(default_factory=Turns)  # who asks the teacher
    began: bool = False  # observers know of it
    step: int = 0  # the one whose update is under way, or the last one; of `at(step)` that step
    version: int | None = None  # of the weights that this step is sampled with; None: those that the engine has
    made: int = 0  # updates whose weights the learner holds
    known: bool = True  # False while an update is under way, and after one that ended nobody knows how
    seconds: dict[str, float] = field(default_factory=dict)  # of the phases of the present step
    _depth: int = 0  # of phases within phases
    _under_way: list[tuple[int, str]] = field(default_factory=list)  # phases of all steps

    @cached_property
    def versions(self) -> Versions:
        """The weights that are still to be sampled from."""
        return Versions(self.engine, self.recipe.rollout.lag, self.start)

    @property
    def scores_samples(self) -> bool:
        """Whether the teacher can say something of what the student samples: the data itself cannot."""
        return self.recipe.teacher.kind != "dataset"

    def at(self, step: int, version: int | None = None, aside: bool = False) -> Run:
        """The same parts at the work of `step`, of which several may be under way, each with its own seconds.

        `version`: of the weights it samples with. Work `aside` has no phases of its own.
        """
        _ = self.versions  # is shared
        other = copy.copy(self)
        other.step, other.version, other.seconds, other._depth = step, version, {}, int(aside)
        return other

    def on(self, task: Task, temperature: float) -> Run:
        """The same work on another task, at another temperature."""
        _ = self.versions  # is shared
        other = copy.copy(self)
        other.task, other.teacher = task, self.eval_teachers.get(temperature, self.teacher)
        return other

    @asynccontextmanager
    async def turn_to_sample(self) -> AsyncIterator[None]:
        """The engine, for this step alone and with the weights that the step is sampled with."""
        async with self.versions.sampling.turn() as idle:
            self.note_waiting("sample", idle)
            if self.version is not None and self.version != self.versions.loaded:
                with self.phase("publish"):
                    await self.versions.load_held(self.version)
            yield

    @asynccontextmanager
    async def turn_to_score(self) -> AsyncIterator[None]:
        """The teacher, for this step alone."""
        async with self.scoring.turn() as idle:
            self.note_waiting("score", idle)
            yield

    def note_waiting(self, role: str, seconds: float) -> None:
        """How long a role had nothing to do before this step. Without lag, that is what the others' phases took."""
        if self.recipe.rollout.lag and self._depth == 0:
            self.seconds[f"wait/{role}"] = seconds

    def save(self, folder: Path) -> None:
        """Everything that a run needs to go on after the last update that was made."""
        self.learner.save(folder)
        self.versions.save(folder, self.made)

    def sampling(self, seed: int, greedy: bool = False) -> Sampling:
        """The recipe's sampling with this seed."""
        section = self.recipe.rollout
        return Sampling(
            temperature=section.temperature,
            max_tokens=section.max_tokens,
            stop_ids=self.stop_ids,
            seed=seed,
            top_p=section.top_p,
            top_k=section.top_k,
            min_p=section.min_p,
            greedy=greedy,
        )

    async def close(self) -> None:
        """Let go of servers and files. What fails here is a warning: the run is over, and how it ended matters more."""
        try:
            await cancel_others()  # of a run that ended early: they would ask what is closed
            await self.resources.aclose()
        except Exception as error:
            logger.warning("after the run, something could not be closed: %s: %s", type(error).__name__, error)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Report to the observers what is going on, and keep how long it took; phases within a phase count as it."""
        self.stop.check()
        self._depth += 1
        outermost, mine = self._depth == 1, (self.step, name)
        if outermost:
            self._under_way.append(mine)
            self.report("phase", *mine)
        start = time.perf_counter()
        try:
            with watch(ROLES.get(name, name), f"{name} of step {self.step}"):
                yield
        finally:
            self._depth -= 1
            if outermost:
                self._under_way.remove(mine)
        if outermost:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            if self._under_way:  # of other steps: what is shown is what still goes on
                self.report("phase", *self._under_way[0])

    def note_seconds(self, seconds: Mapping[str, float]) -> None:
        """Parts of the phase at hand, unless it is part of another."""
        if self._depth == 1:
            self.seconds |= seconds

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to `metrics.jsonl` and report to the observers."""
        self.folder.append(line)
        self.report("stepped" if line["kind"] == "train" else "evaluated", line)

    def report(self, event: str, *values: Any) -> None:
        """Call each observer."""
        report(self.observers, event, *values)


def report(observers: list[Observer], event: str, *values: Any) -> None:
    """Call each observer. One that raises is left out from then on, with a warning: no run ends for one."""
    for observer in list(observers):
        try:
            getattr(observer, event)(*values)
        except (Exception, SystemExit) as error:
            observers[:] = [other for other in observers if other is not observer]
            logger.warning(
                "observer %s raised %s in `%s` and is called no more: %s",
                type(observer).__name__, type(error).__name__, event, error,
                exc_info=None if isinstance(error, OSError) else error,
            )  # fmt: skip
