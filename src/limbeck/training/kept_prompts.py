"""The prompts a run began with: data and templates are not in the recipe, and may change under it.

`prompts.json` in the run's folder has a digest of the training and of the held-out prompts, as token ids. A run
that goes on with others in the middle of an epoch would see some prompts twice and others never: it is refused.
Between epochs, and for held-out prompts, it is a warning.
"""

from __future__ import annotations

import json
import logging

from limbeck.config.recipe import Recipe
from limbeck.errors import RunError
from limbeck.protocols import Task
from limbeck.tasks.prompts import digest_of_prompts
from limbeck.training.run_folder import Checkpoint, RunFolder

FILE = "prompts.json"

logger = logging.getLogger("limbeck")


def keep_prompts(folder: RunFolder, task: Task, recipe: Recipe, checkpoint: Checkpoint | None) -> None:
    """Write the digests of a fresh run; compare those of one that goes on. Raises `RunError`."""
    now = {
        "train": {"prompts": len(task.train), "digest": digest_of_prompts(task.train)},
        "held_out": {"prompts": len(task.held_out), "digest": digest_of_prompts(task.held_out)},
    }
    path = folder.path / FILE
    if checkpoint is not None and path.exists():
        _compare(json.loads(path.read_text(encoding="utf-8")), now, task, recipe, checkpoint, folder)
    folder.write_lines(FILE, [now])


def _compare(
    before: dict[str, dict[str, object]],
    now: dict[str, dict[str, object]],
    task: Task,
    recipe: Recipe,
    checkpoint: Checkpoint,
    folder: RunFolder,
) -> None:
    seen = checkpoint.step * recipe.rollout.prompts_per_step
    for name in ("train", "held_out"):
        then, here = before.get(name), now[name]
        if then is None or then == here:
            continue
        what = (
            f"the {name.replace('_', '-')} prompts are not those this run began with ({then['prompts']} then, "
            f"{here['prompts']} now, another digest of their token ids): the data changed, or its template writes "
            "something new, such as a date"
        )
        if name == "train" and seen % len(task.train):
            raise RunError(
                f"{folder.path}: {what}. The run stopped in the middle of an epoch, after {seen} prompts, and would "
                "see some of them twice. Restore the data, give the run another name=..., or start over with --fresh."
            )
        logger.warning("%s: %s. What follows is not comparable with what was before.", folder.path, what)
