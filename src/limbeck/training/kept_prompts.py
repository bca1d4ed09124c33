"""The prompts a run began with: data and templates are not in the recipe, and may change under it.

`prompts.json` in the run's folder has a short digest of every training and held-out prompt, as token ids. A run
that goes on with others in the middle of an epoch would see some prompts twice and others never: it is refused.
Between epochs, and for held-out prompts, it is a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from limbeck.config.recipe import Recipe
from limbeck.errors import RunError
from limbeck.protocols import Task
from limbeck.records import Prompt
from limbeck.tasks.completions import Completion, as_prompt
from limbeck.tasks.digest import digests_of_prompts, first_changed_prompt
from limbeck.training.prompt_order import is_between_epochs
from limbeck.training.run_folder import Checkpoint, RunFolder
from limbeck.training.shares import shares_of

FILE = "prompts.json"
WITHOUT = "the prompts are then not compared with those the run began with"

logger = logging.getLogger("limbeck")


def keep_prompts(
    folder: RunFolder,
    task: Task,
    recipe: Recipe,
    checkpoint: Checkpoint | None,
    sources: Mapping[str, Sequence[Completion]] | None = None,
) -> None:
    """Write the digests of a fresh run; compare those of one that goes on. Raises `RunError`.

    `sources` are the rows of data sets that are trained on beside the prompts, by name.
    """
    shares = shares_of(recipe)
    step = 0 if checkpoint is None else checkpoint.step
    answered = shares.of_task_before(step)
    sets = [
        _Set("train", "training prompts", task.train, answered, is_between_epochs(task, answered)),
        _Set("held_out", "held-out prompts", task.held_out),
    ]
    for name, rows in (sources or {}).items():
        seen = shares.before(step)[name] * recipe.rollout.samples_per_prompt
        prompts = [as_prompt(row) for row in rows]
        sets.append(_Set(f"source/{name}", f"rows of the source {name!r}", prompts, seen, seen % len(rows) == 0))
    now = {one.key: digests_of_prompts(one.prompts) for one in sets}
    if checkpoint is not None and (before := folder.read_table(FILE, dict.fromkeys(now, str), WITHOUT)):
        for one in sets:
            _compare(before[one.key], one, folder)
    folder.write_lines(FILE, [now])


@dataclass(frozen=True)
class _Set:
    key: str
    what: str
    prompts: Sequence[Prompt]
    seen: int = 0  # were trained on already
    between_epochs: bool = True  # whether each was as often as every other


def _compare(before: str, now: _Set, folder: RunFolder) -> None:
    change = first_changed_prompt(before, now.prompts)
    if change is None:
        return
    what = (
        f"the {now.what} are not those this run began with: {change}. The data changed, or its chat template writes "
        "something new, such as a date"
    )
    if not now.between_epochs:
        raise RunError(
            f"{folder.path}: {what}. The run stopped in the middle of an epoch, after {now.seen} of them, and would "
            "see some of them twice. Restore the data, give the run another name=..., or start over with --fresh."
        )
    logger.warning("%s: %s. What follows is not comparable with what was before.", folder.path, what)
