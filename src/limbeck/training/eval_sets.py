"""What is evaluated: the task's held-out prompts, and the sets of `[eval.sets]`, each with its own way to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from limbeck.config.evaluation import EvalSetConfig
from limbeck.config.recipe import Recipe
from limbeck.protocols import Task
from limbeck.records import Prompt, Sampling
from limbeck.seeding import derive_seed

OWN = ""  # the name of the set that every run has


@dataclass(frozen=True)
class EvalSet:
    """One set of prompts, and how they are answered."""

    name: str  # "" or that of `[eval.sets.NAME]`
    task: Task  # has the prompts, and grades
    prompts: Sequence[Prompt]
    samples_per_prompt: int
    greedy: bool  # rewards are of the most likely answers
    temperature: float
    max_tokens: int
    scored: bool  # whether the teacher is asked

    def sampling(self, base: Sampling) -> Sampling:
        """The recipe's sampling as it is here. The randomness is the same at every step."""
        seed = derive_seed(base.seed, "evaluation", *([self.name] if self.name else []))
        return replace(base, seed=seed, temperature=self.temperature, max_tokens=self.max_tokens)


def eval_sets(recipe: Recipe, task: Task, tasks: Mapping[str, Task]) -> list[EvalSet]:
    """All of a run's sets. `tasks` are those of sets that have prompts of their own."""
    section, rollout = recipe.eval, recipe.rollout
    own = EvalSet(
        name=OWN,
        task=task,
        prompts=task.held_out[: section.prompts],
        samples_per_prompt=section.samples_per_prompt,
        greedy=section.greedy,
        temperature=rollout.temperature,
        max_tokens=rollout.max_tokens,
        scored=True,
    )
    return [own, *(_set(name, one, own, tasks.get(name, task)) for name, one in section.sets.items())]


def _set(name: str, section: EvalSetConfig, own: EvalSet, task: Task) -> EvalSet:
    """What the set's table leaves out is as in the run's own set."""
    return EvalSet(
        name=name,
        task=task,
        prompts=task.held_out[: section.prompts or len(own.prompts)],
        samples_per_prompt=section.samples_per_prompt or own.samples_per_prompt,
        greedy=own.greedy if section.greedy is None else section.greedy,
        temperature=section.temperature or own.temperature,
        max_tokens=section.max_tokens or own.max_tokens,
        scored=section.score,
    )
