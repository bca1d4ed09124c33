"""Several teachers by name: each prompt is marked by the one it names, or by the default."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence

from limbeck.errors import DataError
from limbeck.protocols import Teacher
from limbeck.records import Failure, Prompt, Rollout, TeacherScores


class RoutedTeacher:
    """`Prompt.teacher` chooses among `teachers`; `default` marks prompts that name none."""

    name = "routed"

    def __init__(self, teachers: Mapping[str, Teacher], default: str | None) -> None:
        self.teachers, self.default = dict(teachers), default
        self.seconds: dict[str, float] = {}

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        """As each rollout's own teacher scores it, all teachers at once."""
        parts: dict[str, list[int]] = {}
        for index, rollout in enumerate(rollouts):
            parts.setdefault(self.route(rollout.prompt), []).append(index)
        self.seconds = {}
        answers = await asyncio.gather(
            *(self._score(name, [rollouts[i] for i in part]) for name, part in parts.items())
        )
        placed = {
            index: answer
            for part, marks in zip(parts.values(), answers, strict=True)
            for index, answer in zip(part, marks, strict=True)
        }
        return [placed[index] for index in range(len(rollouts))]

    async def _score(self, name: str, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        start = time.perf_counter()
        answers = await self.teachers[name].score(rollouts)
        self.seconds[name] = time.perf_counter() - start
        return answers

    def route(self, prompt: Prompt) -> str:
        """The name of the prompt's teacher. Raises `DataError` for one that is not there."""
        name = prompt.teacher or self.default
        if name is None:
            raise DataError(
                f"prompt {prompt.id!r} names no teacher, and there is no teacher.default. Give it one of: "
                f"{', '.join(sorted(self.teachers))}."
            )
        if name not in self.teachers:
            raise DataError(
                f"prompt {prompt.id!r} names the teacher {name!r}, but the recipe has: "
                f"{', '.join(sorted(self.teachers))}. Correct the prompt, or add [teacher.teachers.{name}]."
            )
        return name

    def check_routes(self, prompts: Iterable[Prompt]) -> None:
        """Raises `DataError` for the first prompt whose teacher is not there: at the start, not at step 900."""
        for prompt in prompts:
            self.route(prompt)

    async def close(self) -> None:
        for teacher in self.teachers.values():
            await teacher.close()
