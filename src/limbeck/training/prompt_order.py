"""Which prompts a step sees, as a function of seed and step alone: there is no cursor to lose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from limbeck.protocols import Task
from limbeck.records import Prompt
from limbeck.seeding import derive_seed
from limbeck.tasks.mixture import Mixture, turns

T = TypeVar("T")
Before: TypeAlias = Callable[[int], int]  # how many prompts all updates before one had


class Order(Protocol):
    """The prompts of each step."""

    def at(self, step: int) -> Sequence[Prompt]:
        """The prompts of update `step`, counted from 0."""
        ...


def order_of(task: Task, per_step: int, seed: int, before: Before | None = None) -> Order:
    """The order that goes with a task. `before` where not every step has `per_step` prompts of it."""
    if isinstance(task, Mixture):
        return MixedOrder(task, per_step, seed, before)
    return PromptOrder(task.train, per_step, seed, before)


def is_between_epochs(task: Task, seen: int) -> bool:
    """Whether every prompt was seen as often as every other, of `seen` in all. Those of a mixture seldom are."""
    return seen == 0 if isinstance(task, Mixture) else seen % len(task.train) == 0


class Epochs(Generic[T]):
    """Some items epoch after epoch, each in its own shuffled order, without end."""

    def __init__(self, items: Sequence[T], seed: int) -> None:
        self.items, self.seed = items, seed
        self._epoch, self._shuffled = -1, np.empty(0, dtype=np.int64)

    def at(self, position: int) -> T:
        """The one at a position of all epochs, end to end."""
        epoch, place = divmod(position, len(self.items))
        if epoch != self._epoch:
            generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            self._epoch, self._shuffled = epoch, generator.permutation(len(self.items))
        return self.items[int(self._shuffled[place])]


class PromptOrder:
    """Prompts in epochs."""

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int, before: Before | None = None) -> None:
        self.prompts, self.before = Epochs(prompts, seed), before or _evenly(per_step)

    def at(self, step: int) -> list[Prompt]:
        """See `Order`."""
        return [self.prompts.at(position) for position in range(self.before(step), self.before(step + 1))]


class MixedOrder:
    """Of several tasks in turn, by their shares; each task's prompts in epochs of its own."""

    def __init__(self, task: Mixture, per_step: int, seed: int, before: Before | None = None) -> None:
        self.shares, self.before = task.shares, before or _evenly(per_step)
        self.prompts = {name: Epochs(one.train, derive_seed(seed, "mixture", name)) for name, one in task.tasks.items()}

    def at(self, step: int) -> list[Prompt]:
        """See `Order`."""
        first = self.before(step)
        drawn = islice(turns(self.shares, first), self.before(step + 1) - first)
        return [self.prompts[name].at(place) for name, place in drawn]


def _evenly(per_step: int) -> Before:
    return lambda step: step * per_step
