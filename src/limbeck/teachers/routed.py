"""Several teachers by name: each request is scored by the one it names, or by the default."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence

from limbeck.errors import DataError
from limbeck.protocols import Teacher
from limbeck.records import Failure, ModelInfo, Prompt, ScoreRequest, Scores


class RoutedTeacher:
    """`ScoreRequest.teacher` chooses among `teachers`; `default` scores requests that name none."""

    def __init__(self, teachers: Mapping[str, Teacher], default: str | None, name: str = "routed") -> None:
        self.teachers, self.default, self.name = dict(teachers), default, name
        self.info = _common_info(name, [teacher.info for teacher in self.teachers.values()])
        self.seconds: dict[str, float] = {}  # of the last call, by teacher

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """As each request's own teacher scores it, all teachers at once."""
        parts: dict[str, list[int]] = {}
        for index, request in enumerate(unit):
            parts.setdefault(self.route(request), []).append(index)
        self.seconds = {}
        answers = await asyncio.gather(*(self._score(name, [unit[i] for i in part]) for name, part in parts.items()))
        placed = {
            index: answer
            for part, scores in zip(parts.values(), answers, strict=True)
            for index, answer in zip(part, scores, strict=True)
        }
        return [placed[index] for index in range(len(unit))]

    async def _score(self, name: str, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        start = time.perf_counter()
        answers = await self.teachers[name].score(unit)
        self.seconds[name] = time.perf_counter() - start
        return answers

    def route(self, request: ScoreRequest) -> str:
        """The name of the request's teacher. Raises `DataError` for one that is not there."""
        return self._find(request.teacher, f"request {request.id!r}")

    def route_of(self, prompt: Prompt) -> str:
        """The same of a prompt."""
        return self._find(prompt.teacher, f"prompt {prompt.id!r}")

    def check_routes(self, prompts: Iterable[Prompt]) -> None:
        """Raises `DataError` for the first prompt whose teacher is not there: at the start, not at step 900."""
        for prompt in prompts:
            self.route_of(prompt)

    def _find(self, teacher: str | None, whose: str) -> str:
        name = teacher or self.default
        there = ", ".join(sorted(self.teachers))
        if name is None:
            raise DataError(f"{whose} names no teacher, and there is no teacher.default. Give it one of: {there}.")
        if name not in self.teachers:
            raise DataError(
                f"{whose} names the teacher {name!r}, but the recipe has: {there}. Correct it, or add "
                f"[teacher.teachers.{name}]."
            )
        return name


def _common_info(name: str, infos: Sequence[ModelInfo]) -> ModelInfo:
    """What holds for every one of the teachers; one baked teacher is enough to have a natural temperature."""
    contexts = [info.context for info in infos if info.context is not None]
    dtypes = {info.dtype for info in infos}
    return ModelInfo(
        name,
        vocabulary=min(info.vocabulary for info in infos),
        context=min(contexts, default=None),
        dtype=dtypes.pop() if len(dtypes) == 1 else "mixed",
        natural_temperature=max((info.natural_temperature for info in infos), key=lambda t: abs(math.log(t))),
    )
