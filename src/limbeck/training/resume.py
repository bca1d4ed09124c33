"""What a person should know about a run that goes on by a recipe that was changed meanwhile."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.recipe import Recipe
from limbeck.errors import RunError
from limbeck.files.digests import RECIPE_FILE
from limbeck.files.disk import read_file
from limbeck.formatting import significant
from limbeck.learners.checkpoint import MODEL_FOLDER
from limbeck.learners.schedule import learning_rate

EVALUATION_KEYS = ("prompts", "samples_per_prompt", "greedy")
# How the same numbers are computed: in other pieces, or by another device.
ROUNDING_KEYS = (
    "device", "threads", "engine.max_rows", "learner.micro_batch_tokens", "learner.loss_chunk_mb",
    "learner.gradient_checkpointing", "learner.layout",
)  # fmt: skip
# Changing these does not change the steps that were already made.
FREE_TABLES = ("steps", "checkpoint", "eval", "output", "name", "trackers", "record", "cluster")
# Where it is done and how long it may take, not what.
FREE_KEYS = ("learner.cpu_offload", "environment.timeout", "environment.concurrency", *ROUNDING_KEYS)
# Where a server is, how long it is waited for, and what is tolerated before the run stops: its answers are proven anew
# and compared with those that the run began with.
FREE_OF_SERVERS = (
    "url", "token_env", "timeout", "retry_seconds", "max_concurrency", "weights_folder", "weights", "tolerance",
    "probe_tolerance", "trust_start", "max_rescale_dropped", "min_scored_fraction",
)  # fmt: skip


def read_recipe(folder: Path) -> dict[str, Any] | None:
    """The resolved recipe of a run's folder; None where there is none. Raises `RunError`."""
    path = folder / RECIPE_FILE
    try:
        return tomllib.loads(read_file(path).decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}. Restore it, or start over with --fresh.") from None


def refuse_other_recipe(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises `RunError` where a run by the recipe `now` cannot go on from updates by the recipe `before`.

    A key that `before` does not have, for it is of a version that did not know it, has its default there.
    """
    flat_now = _flat(now)
    differing = [
        f"{key} ({then!r} then, {flat_now.get(key)!r} now)"
        for key, then in differences(before, now).items()
        if not _is_free(key, flat_now)
    ]
    if differing:
        raise RunError(
            f"{folder} holds a run of another recipe: {'; '.join(differing[:5])}. Give this one another name=..., or "
            f"start over with --fresh: both begin with the recipe's student. {_from_its_weights(folder)}"
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys whose values differ, with the value before: None where `before` has none. Defaults count."""
    flat_before, flat_now = _flat(_with_defaults(before)), _flat(now)
    keys = sorted({*flat_before, *flat_now})
    return {key: flat_before.get(key) for key in keys if flat_before.get(key) != flat_now.get(key)}


def _from_its_weights(folder: Path) -> str:
    if (model := folder / MODEL_FOLDER).is_dir():
        return f"To go on from the weights that were trained, add student.model={model} to the other name."
    return (
        f"To go on from the weights that were trained, `limbeck export {folder} OUT` and add student.model=OUT to the "
        "other name."
    )


def _with_defaults(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json", exclude_none=True)
    except ValidationError:  # of another version that knew other keys: compared as it is
        return recipe


def resume_notes(before: Mapping[str, Any], now: Mapping[str, Any], done: int) -> list[str]:
    """One line for each change that matters, of resolved recipes as nested tables.

    `done` updates were made by `before`; the rest are made by `now`. Empty for a run that did not start yet.
    """
    if not done:
        return []
    then_steps, now_steps = int(before.get("steps", 0)), int(now.get("steps", 0))
    notes = []
    if now_steps < done:
        notes.append(
            f"steps = {now_steps}, but {done} updates were made already: nothing is trained, and the model stays that "
            f"of step {done}. For one of {now_steps} steps, give another name=... or start over with --fresh."
        )
    elif note := _rate_note(before, now, then_steps, now_steps, done):
        notes.append(note)
    for key in EVALUATION_KEYS:
        then_value, now_value = before.get("eval", {}).get(key), now.get("eval", {}).get(key)
        if then_value != now_value:
            notes.append(
                f"eval.{key} was {_shown(then_value)} and is {_shown(now_value)} now: evaluations up to step {done} "
                "and after it are not of the same samples."
            )
    if before.get("eval", {}).get("sets", {}) != now.get("eval", {}).get("sets", {}):
        notes.append(
            f"eval.sets are others than up to step {done}: what has the same name before and after may not be of the "
            "same samples."
        )
    flat_before, flat_now = _flat(before), _flat(now)
    return notes + [
        f"{key} was {_shown(flat_before.get(key))} and is {_shown(flat_now.get(key))} now: updates after step {done} "
        "equal those of an uninterrupted run up to rounding, not to the last bit."
        for key in ROUNDING_KEYS
        if flat_before.get(key) != flat_now.get(key) and not _is_of_own_part(key, flat_now)
    ]


def _is_free(key: str, recipe: Mapping[str, Any]) -> bool:
    """Whether a run may go on with another value of `key` than it began with; `recipe` by dotted keys."""
    table, last = key.partition(".")[0], key.rpartition(".")[2]
    if _is_of_own_part(key, recipe):
        return False
    return table in FREE_TABLES or key in FREE_KEYS or (table in ("teacher", "engine") and last in FREE_OF_SERVERS)


def _is_of_own_part(key: str, recipe: Mapping[str, Any]) -> bool:
    """Whether only a part of the user's own knows what the key means."""
    return recipe.get(f"{key.rpartition('.')[0]}.kind") == "python" and key.partition(".")[0] not in FREE_TABLES


def _rate_note(
    before: Mapping[str, Any], now: Mapping[str, Any], then_steps: int, now_steps: int, done: int
) -> str | None:
    """What another number of steps does to a learning rate that decays to 0 at the last one."""
    learner = now.get("learner", {})
    if then_steps == now_steps or done >= now_steps or learner.get("kind", "local") != "local":
        return None
    section = LocalLearnerConfig(**learner)
    if section.schedule == "constant":
        return None
    # The rate of the update that was made last, and of the one that comes next.
    last, following = learning_rate(section, done - 1, then_steps), learning_rate(section, done, now_steps)
    planned = learning_rate(section, done, then_steps) if done < then_steps else 0.0
    return (
        f"steps was {then_steps} and is {now_steps} now, and the {section.schedule} schedule ends at the last step: "
        f"the learning rate of step {done + 1} is {significant(following)} (step {done} had {significant(last)}; by "
        f"the old steps it would be {significant(planned)})."
    )


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
