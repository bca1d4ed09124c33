"""A task of your own: what its factory returns, checked once, so that a mistake has a name before training begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.graders import checked_reward
from limbeck.tasks.prompts import check_unicode, fit


class PythonTask:
    """Any object with `train`, `held_out` and `grade`. Messages call it `name`; `vocabulary` is the student's size.

    Raises `DataError` where one of these is missing, a part is empty, an id is there twice or a prompt cannot be used,
    and on grading as `checked_reward` does.
    """

    def __init__(self, task: Any, name: str, longest_prompt: int | None, vocabulary: int | None = None) -> None:
        self.name = name
        self._task = task
        for attribute in ("train", "held_out", "grade"):
            if not hasattr(task, attribute):
                raise DataError(
                    f"{name} is {type(task).__name__}, which has no {attribute!r}; expected a task: train and held_out "
                    "(sequences of limbeck.records.Prompt) and grade(prompt, response) -> float | None"
                )
        self.dropped = int(getattr(task, "dropped", 0))
        self.train: Sequence[Prompt] = self._checked("train")
        self.held_out: Sequence[Prompt] = self._checked("held_out")
        prompts = [*self.train, *self.held_out]
        seen: set[str] = set()
        for prompt in prompts:
            if prompt.id in seen:
                raise DataError(f"{name}: the id {prompt.id!r} is there twice; ids are unique over train and held_out")
            seen.add(prompt.id)
            strange = [token for token in prompt.token_ids if not 0 <= token < (vocabulary or math.inf)]
            if strange:
                most = vocabulary - 1 if vocabulary else "the size of its vocabulary"
                raise DataError(
                    f"{name}: prompt {prompt.id!r} has the token id {strange[0]}; the student's go from 0 to {most}. "
                    "Make prompts with build.tokenizer."
                )
        fit(prompts, longest_prompt, too_long="error", may_drop=False)

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return checked_reward(f"{self.name}.grade", self._task.grade, prompt, response)

    def _checked(self, part: str) -> Sequence[Prompt]:
        prompts = list(getattr(self._task, part))
        if not prompts:
            raise DataError(f"{self.name}.{part} is empty; expected at least one prompt")
        for index, prompt in enumerate(prompts):
            if not isinstance(prompt, Prompt):
                raise DataError(f"{self.name}.{part}[{index}] is {prompt!r}; expected a limbeck.records.Prompt")
            for field in ("id", "text", "answer", "teacher"):
                try:
                    check_unicode(field, getattr(prompt, field))
                except DataError as error:
                    raise DataError(f"{self.name}.{part}[{index}]: {error}") from None
        return prompts
