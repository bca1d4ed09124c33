"""The prompts of a run: those it is trained and evaluated on, and those of the sets of `[eval.sets]`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from limbeck.assemble.site import Site
from limbeck.config.recipe import Recipe
from limbeck.errors import DataError, RecipeError
from limbeck.formatting import counted
from limbeck.protocols import Task
from limbeck.records import Prompt
from limbeck.tasks import load_eval_task, load_task
from limbeck.tasks.files import warn_of_overlap
from limbeck.tasks.prompts import fit
from limbeck.tasks.python import PythonTask
from limbeck.training.eval_sets import EvalSet, eval_sets

logger = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Tasks:
    """The run's own task, and those of evaluation sets that have prompts of their own, by name."""

    own: Task
    of_sets: Mapping[str, Task] = field(default_factory=dict)

    def sets(self, recipe: Recipe) -> list[EvalSet]:
        """All evaluation sets, the run's own first."""
        return eval_sets(recipe, self.own, self.of_sets)


@dataclass
class Asked:
    """Prompts as a task that nobody grades: what a teacher is to be proven on."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt] = ()

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return None


def load_tasks(site: Site, contexts: Sequence[int | None]) -> Tasks:
    """With prompts that leave place for a response in each of `contexts`. Raises `LimbeckError`."""
    recipe, known = site.recipe, [context for context in contexts if context is not None]
    longest = longest_prompt("rollout.max_tokens", recipe.rollout.max_tokens, known)
    if site.given.task is not None:
        own: Task = PythonTask(site.given.task, "the given task", longest, site.student.vocabulary)
    else:
        own = load_task(recipe.task, site.build, longest)
    if recipe.eval.prompts != type(recipe.eval).model_fields["prompts"].default:  # resolved recipes write defaults out
        _warn_of_fewer("eval.prompts", recipe.eval.prompts, own)
    of_sets: dict[str, Task] = {}
    for name, section in recipe.eval.sets.items():
        key = "rollout" if section.max_tokens is None else f"eval.sets.{name}"
        longest = longest_prompt(f"{key}.max_tokens", section.max_tokens or recipe.rollout.max_tokens, known)
        if section.task is None:
            _warn_of_fewer(f"eval.sets.{name}.prompts", section.prompts, own)
            _require_fit(name, own.held_out[: section.prompts or recipe.eval.prompts], longest)
            continue
        task = of_sets[name] = load_eval_task(name, section.task, site.build, longest)
        _warn_of_fewer(f"eval.sets.{name}.prompts", section.prompts, task)
        chosen = task.held_out[: section.prompts or recipe.eval.prompts]
        warn_of_overlap(f"eval.sets.{name}", own.train, chosen, "in this set too")
    return Tasks(own, of_sets)


def _warn_of_fewer(key: str, asked: int | None, task: Task) -> None:
    if asked is not None and asked > (there := len(task.held_out)):
        exist = f"{counted(there, 'held-out prompt')} exist{'s' * (there == 1)}"
        logger.warning("%s = %d, but %s: all are taken", key, asked, exist)


def _require_fit(name: str, prompts: Sequence[Prompt], longest: int | None) -> None:
    try:
        fit(prompts, longest, too_long="error", may_drop=False)
    except DataError as error:
        raise DataError(f"eval.sets.{name}, where max_tokens is another: {error}") from None


def longest_prompt(key: str, max_tokens: int, contexts: Sequence[int]) -> int | None:
    """What leaves place for a response in every context; None without one."""
    if not contexts:
        return None
    longest = min(contexts) - max_tokens
    if longest < 1:
        raise RecipeError(
            f"{key} = {max_tokens} leaves no place for a prompt in a context of {min(contexts)} tokens. Lower it."
        )
    return longest
