"""The parts of a run, put together by `assemble.py` and used by the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from limbeck.config.recipe import Recipe
from limbeck.errors import DataError, LimbeckError
from limbeck.protocols import Engine, Learner, Observer, Task, Teacher, TokenNames
from limbeck.records import Failure, HiddenScores, Ints, Rollout, Sampling, Scored, TeacherScores
from limbeck.training.advantage import group_advantages
from limbeck.training.collect import enough
from limbeck.training.run_folder import RunFolder

T = TypeVar("T")


@dataclass
class Run:
    """A recipe and the parts that carry it out."""

    recipe: Recipe
    task: Task
    engine: Engine
    teacher: Teacher
    learner: Learner
    decode: Callable[[Ints], str]
    stop_ids: tuple[int, ...]
    folder: RunFolder
    start: int = 0  # updates that had been made
    reference: Teacher | None = None
    names: TokenNames | None = None  # None: rollouts are not recorded
    min_scored_fraction: float = 1.0  # of a step's rollouts that the teacher must mark, or the step stops
    same_weights: bool = False  # student and teacher begin as the same model
    observers: Sequence[Observer] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # of the phases of the present step

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
        """Let go of the servers."""
        await self.teacher.close()
        await self.engine.close()

    @contextmanager
    def phase(self, step: int, name: str) -> Iterator[None]:
        """Tell the observers what is going on, and keep how long it took."""
        for observer in self.observers:
            observer.phase(step, name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def log(self, line: Mapping[str, Any]) -> None:
        """Append to `metrics.jsonl` and tell the observers."""
        self.folder.append(line)
        for observer in self.observers:
            (observer.stepped if line["kind"] == "train" else observer.evaluated)(line)


async def mark(run: Run, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[Scored]:
    """Scores of teacher and reference, and advantages, for each rollout."""
    answers = await run.teacher.score(rollouts)
    run.seconds |= {f"score/{name}": seconds for name, seconds in run.teacher.seconds.items()}
    advantages = _advantages(run, rollouts, rewards)  # of the whole group, whatever the teacher could mark
    kept = enough(answers, run.min_scored_fraction)
    scores: list[TeacherScores] = [answer for answer in answers if not isinstance(answer, Failure)]
    rollouts, rewards, advantages = (
        [rollouts[i] for i in kept],
        [rewards[i] for i in kept],
        [advantages[i] for i in kept],
    )
    references: Sequence[HiddenScores | None] = [None] * len(rollouts)
    if run.reference is not None:
        references = [s for s in whole(await run.reference.score(rollouts)) if isinstance(s, HiddenScores)]
    return [
        Scored(rollout, score, reward, advantage, reference)
        for rollout, score, reward, advantage, reference in zip(
            rollouts, scores, rewards, advantages, references, strict=True
        )
    ]


def _advantages(run: Run, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[float]:
    section = run.recipe.objective.task_reward
    if section is None:
        return [0.0] * len(rollouts)
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) < len(rewards):
        raise DataError(
            f"objective.task_reward needs a reward for every response, but {len(rewards) - len(graded)} of "
            f"{len(rewards)} could not be graded. Give the task a grader and every prompt an answer."
        )
    return group_advantages(graded, [rollout.prompt.id for rollout in rollouts], section)


def whole(answers: Sequence[T | Failure]) -> list[T]:
    """The answers, none of which may be a failure. Raises `LimbeckError` naming the first that is."""
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        first = failures[0]
        raise LimbeckError(
            f"{len(failures)} of {len(answers)} prompts failed to {first.stage}, the first {first.prompt_id!r}: "
            f"{first.kind}: {first.message}"
        )
    return [answer for answer in answers if not isinstance(answer, Failure)]
