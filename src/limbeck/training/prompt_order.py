"""Which prompts a step sees, as a function of seed and step alone: there is no cursor to lose."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import numpy as np

from limbeck.protocols import Task
from limbeck.records import Prompt
from limbeck.seeding import derive_seed
from limbeck.tasks.mixture import Mixture, turns


class Order(Protocol):
    """The prompts of each step."""

    def at(self, step: int) -> Sequence[Prompt]:
        """The prompts of update `step`, counted from 0."""
        ...


def order_of(task: Task, per_step: int, seed: int) -> Order:
    """The order that goes with a task."""
    if isinstance(task, Mixture):
        return MixedOrder(task, per_step, seed)
    return PromptOrder(task.train, per_step, seed)


def is_between_epochs(task: Task, seen: int) -> bool:
    """Whether every prompt was seen as often as every other, of `seen` in all. Those of a mixture seldom are."""
    return seen == 0 if isinstance(task, Mixture) else seen % len(task.train) == 0


class PromptOrder:
    """Epoch after epoch, each in its own shuffled order."""

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int) -> None:
        self.prompts, self.per_step, self.seed = prompts, per_step, seed
        self._epoch, self._shuffled = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> list[Prompt]:
        """See `Order`."""
        first = step * self.per_step
        return [self.prompt(position) for position in range(first, first + self.per_step)]

    def prompt(self, position: int) -> Prompt:
        """The one at a position of all epochs, end to end."""
        epoch, place = divmod(position, len(self.prompts))
        if epoch != self._epoch:
            generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            self._epoch, self._shuffled = epoch, generator.permutation(len(self.prompts))
        return self.prompts[int(self._shuffled[place])]


class MixedOrder:
    """Of several tasks in turn, by their shares; each task's prompts in epochs of its own."""

    def __init__(self, task: Mixture, per_step: int, seed: int) -> None:
        self.per_step, self.shares = per_step, task.shares
        self.orders = {
            name: PromptOrder(prompts, per_step, derive_seed(seed, "mixture", name))
            for name, prompts in task.parts.items()
        }

    def at(self, step: int) -> list[Prompt]:
        """See `Order`."""
        drawn = islice(turns(self.shares, step * self.per_step), self.per_step)
        return [self.orders[name].prompt(place) for name, place in drawn]
