"""The prompts a run began with: data and templates are not in the recipe, and may change under it.

`prompts.json` in the run's folder has a short digest of every training and held-out prompt, as token ids. A run
that goes on with others in the middle of an epoch would see some prompts twice and others never: it is refused.
Between epochs, and for held-out prompts, it is a warning.
"""

from __future__ import annotations

import logging
from typing import Any

from limbeck.config.recipe import Recipe
from limbeck.errors import RunError
from limbeck.protocols import Task
from limbeck.tasks.digest import digests_of_prompts, first_changed_prompt
from limbeck.training.prompt_order import is_between_epochs
from limbeck.training.run_folder import Checkpoint, RunFolder

FILE = "prompts.json"
WITHOUT = "the prompts are then not compared with those the run began with"

logger = logging.getLogger("limbeck")


def keep_prompts(folder: RunFolder, task: Task, recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """Write the digests of a fresh run; compare those of one that goes on. Raises `RunError`."""
    now = {"train": digests_of_prompts(task.train), "held_out": digests_of_prompts(task.held_out)}
    if checkpoint is not None and (before := folder.read_table(FILE, dict.fromkeys(now, str), WITHOUT)):
        _compare(before, task, checkpoint.step * recipe.rollout.prompts_per_step, folder)
    folder.write_lines(FILE, [now])


def _compare(before: dict[str, Any], task: Task, seen: int, folder: RunFolder) -> None:
    """`seen`: training prompts that were answered already."""
    for name, prompts in (("train", task.train), ("held_out", task.held_out)):
        change = first_changed_prompt(before[name], prompts)
        if change is None:
            continue
        what = (
            f"the {name.replace('_', '-')} prompts are not those this run began with: {change}. The data changed, or "
            "its chat template writes something new, such as a date"
        )
        if name == "train" and not is_between_epochs(task, seen):
            raise RunError(
                f"{folder.path}: {what}. The run stopped in the middle of an epoch, after {seen} prompts, and would "
                "see some of them twice. Restore the data, give the run another name=..., or start over with --fresh."
            )
        logger.warning("%s: %s. What follows is not comparable with what was before.", folder.path, what)
