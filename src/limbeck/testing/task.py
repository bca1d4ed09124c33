"""A task of a few prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from limbeck.records import Prompt


class FakeTask:
    """Prompts by id, as token ids; the first `held_out` of them are held out, and a response is graded by length."""

    def __init__(self, prompts: Mapping[str, Sequence[int]], held_out: int = 1) -> None:
        made = [Prompt(name, tuple(ids), task="fake", text=name) for name, ids in prompts.items()]
        self.held_out: Sequence[Prompt] = made[:held_out]
        self.train: Sequence[Prompt] = made[held_out:]
        self.graded: list[tuple[str, str]] = []  # prompt id and response

    def grade(self, prompt: Prompt, response: str) -> float | None:
        self.graded.append((prompt.id, response))
        return float(bool(response))
