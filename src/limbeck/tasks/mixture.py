"""Several tasks as one. Each prompt keeps the name of its task, which says who grades it.

    mixture = Mixture({"math": math, "code": code}, {"math": 3.0, "code": 1.0})
    [name for name, _ in islice(turns(mixture.shares), 8)]      math, math, code, math, math, math, code, math

Which task is next is Webster's rule (the method of Sainte-Lague): a task of weight w has its j-th prompt, counted from
0, at the time (j + 1/2) / w. So after any number of prompts each of n tasks has had its share s of them but for at most
(1 + s n) / 2, and what was drawn before follows from the number alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from math import floor

from limbeck.protocols import Task
from limbeck.records import Prompt

HALF = Fraction(1, 2)


class Named:
    """A task whose prompts' ids begin with a name, so that those of several tasks can be told apart."""

    def __init__(self, name: str, task: Task) -> None:
        self.task = task
        self.dropped = int(getattr(task, "dropped", 0))
        self._own: dict[str, Prompt] = {}  # by id here, as the task made it
        self.train, self.held_out = (self._renamed(name, prompts) for prompts in (task.train, task.held_out))

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return self.task.grade(self._own[prompt.id], response)

    def _renamed(self, name: str, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        renamed = [replace(prompt, id=f"{name}/{prompt.id}", task=name) for prompt in prompts]
        self._own |= {new.id: own for new, own in zip(renamed, prompts, strict=True)}
        return renamed


class Mixture:
    """`train` and `held_out` have the prompts of all tasks; ids begin with the task's name.

    The first prompts of `held_out`, however many, are of all tasks in equal numbers, as long as there are such.
    """

    def __init__(self, tasks: Mapping[str, Task], weights: Mapping[str, float]) -> None:
        self.tasks = {name: Named(name, tasks[name]) for name in sorted(tasks)}  # in whatever order the recipe has them
        total = sum(Fraction(str(weights[name])) for name in tasks)
        self.shares = {name: Fraction(str(weights[name])) / total for name in self.tasks}
        self.train: Sequence[Prompt] = [prompt for task in self.tasks.values() for prompt in task.train]
        held_out = [task.held_out for task in self.tasks.values()]
        longest = max(map(len, held_out))
        self.held_out: Sequence[Prompt] = [part[i] for i in range(longest) for part in held_out if i < len(part)]
        self.dropped = sum(task.dropped for task in self.tasks.values())

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return self.tasks[prompt.task].grade(prompt, response)


def counts_before(shares: Mapping[str, Fraction], position: int) -> dict[str, int]:
    """How many of the first `position` prompts are of each task.

    >>> counts_before({"a": Fraction(3, 4), "b": Fraction(1, 4)}, 8)
    {'a': 6, 'b': 2}
    """
    time = Fraction(
        max(0, position - len(shares))
    )  # no later than that of prompt `position`, for shares are 1 together
    counts = {name: floor(share * time + HALF) for name, share in shares.items()}
    while sum(counts.values()) < position:
        counts[_next(shares, counts)] += 1
    return counts


def turns(shares: Mapping[str, Fraction], position: int = 0) -> Iterator[tuple[str, int]]:
    """The task of each prompt from `position` on, and which of the task's prompts it is, counted from 0."""
    counts = counts_before(shares, position)
    while True:
        name = _next(shares, counts)
        yield name, counts[name]
        counts[name] += 1


def _next(shares: Mapping[str, Fraction], counts: Mapping[str, int]) -> str:
    """Whose time is first; of those at one time the task that is named first."""
    return min(shares, key=lambda name: (counts[name] + HALF) / shares[name])
