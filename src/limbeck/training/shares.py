"""Who writes how much of a step, as a function of the step alone: there is no cursor to lose.

    shares = shares_of(recipe)
    shares.at(step)          {"student": 11, "rows": 5}     prompts of update `step`, counted from 0
    shares.before(step)      {"student": 31, "rows": 13}    and of all updates before it

Which source is next is the rule of a mixture of tasks (`tasks/mixture.py`): after any number of steps each has had its
share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from limbeck.config.recipe import Recipe
from limbeck.protocols import Samples
from limbeck.records import Prompt
from limbeck.tasks.completions import Completion
from limbeck.tasks.mixture import counts_before
from limbeck.training.prompt_order import Epochs

STUDENT, TEACHER = "student", "teacher"


@dataclass(frozen=True)
class Shares:
    """By a source's name in metrics."""

    shares: Mapping[str, Fraction]
    per_step: int

    @classmethod
    def of(cls, weights: Mapping[str, float], per_step: int) -> Shares:
        total = sum(Fraction(str(weight)) for weight in weights.values())
        return cls({name: Fraction(str(weight)) / total for name, weight in weights.items()}, per_step)

    def before(self, step: int) -> dict[str, int]:
        return counts_before(self.shares, step * self.per_step)

    def at(self, step: int) -> dict[str, int]:
        first = self.before(step)
        return {name: count - first[name] for name, count in self.before(step + 1).items()}

    def of_task_before(self, step: int) -> int:
        """Prompts of the task: those that student and teacher answered before update `step`."""
        counts = self.before(step)
        return counts.get(STUDENT, 0) + counts.get(TEACHER, 0)


def shares_of(recipe: Recipe) -> Shares:
    """Without sources the student writes everything."""
    sources = {source.label: source.share for source in recipe.rollout.sources}
    return Shares.of(sources or {STUDENT: 1.0}, recipe.rollout.prompts_per_step)


@dataclass(frozen=True)
class Sources:
    """What a step draws from beside the student."""

    shares: Shares
    completions: Mapping[str, Epochs[Completion]] = field(default_factory=dict)  # by the data set's name
    samplers: Mapping[str, Samples] = field(default_factory=dict)  # teachers that sample, by name
    route: Callable[[Prompt], str] = lambda prompt: ""  # which of them answers a prompt

    def drawn(self, step: int, samples_per_prompt: int) -> list[Completion]:
        """The rows of update `step`, counted from 0: as many as a prompt has samples, for each prompt of the share."""
        first, counts = self.shares.before(step), self.shares.at(step)
        return [
            rows.at(first[name] * samples_per_prompt + place)
            for name, rows in self.completions.items()
            for place in range(counts[name] * samples_per_prompt)
        ]
