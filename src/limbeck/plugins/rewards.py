"""Task rewards of the drop-ins: where they come from, and what a trainer makes of them over a group."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from limbeck.errors import DataError, RecipeError, place_of
from limbeck.plugins.proving import number

SCORES = "teacher_log_probs"
TASK = "task_reward"
BY_DEVIATION = ("grpo", "gspo", "cispo")  # the estimators whose rewards are divided by the group's deviation, too
CENTRED = (*BY_DEVIATION, "reinforce_plus_plus_baseline")
MIN_DEVIATION = 1e-6
FUNCTION = "LIMBECK_TASK_REWARD"  # package.module:function(args, sample)


def name_of(sample: Any) -> str:
    """As messages name it."""
    index = getattr(sample, "index", None)
    return "a sample" if index is None else f"sample {index}"


async def task_reward(args: Any, sample: Any) -> float:
    """What the sample already has, else what LIMBECK_TASK_REWARD returns, else 0."""
    given, key = sample.reward, getattr(args, "reward_key", None)
    if isinstance(given, dict):
        if SCORES in given:  # this hook has scored it before
            key, given = TASK, {TASK: 0.0} | {name: value for name, value in given.items() if value is not None}
        if key not in given:
            raise DataError(
                f"the reward of {name_of(sample)} is {given!r}. Name the task reward in it by --reward-key."
            )
        given = given[key]
    if given is not None:
        return number(given, f"the reward of {name_of(sample)}")
    name = os.environ.get(FUNCTION)
    return await _graded(name, args, sample) if name else 0.0


async def _graded(name: str, args: Any, sample: Any) -> float:
    module, _, function = name.partition(":")
    try:
        grade = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"{FUNCTION} = {name!r} is not package.module:function: {error}") from None
    try:
        value = grade(args, sample)
        value = await value if inspect.isawaitable(value) else value
    except Exception as error:
        raise DataError(
            f"{name} ({FUNCTION}) raised {type(error).__name__} for {name_of(sample)}: {error} ({place_of(error)})"
        ) from error
    return number(value, f"the value of {name} for {name_of(sample)}")


def normalised(args: Any, samples: Sequence[Any], raw: Sequence[float], once_a_rollout: bool) -> list[float]:
    """Rewards normalised over groups where the trainer would have done so: its own step is replaced by the hook's.

    `once_a_rollout`: samples of one rollout share a reward, which counts once, as in miles. Raises `DataError`.
    """
    estimator = getattr(args, "advantage_estimator", None)
    if not any(raw) or estimator not in CENTRED or not getattr(args, "rewards_normalization", False):
        return list(raw)
    by_deviation = getattr(args, "grpo_std_normalization", False) and estimator in BY_DEVIATION
    groups: dict[int, dict[Hashable, list[int]]] = {}
    for place, (group, sample) in enumerate(zip(_groups(args, samples), samples, strict=True)):
        rollout = _rollout(sample, place) if once_a_rollout else place
        groups.setdefault(group, {}).setdefault(rollout, []).append(place)
    values = [0.0] * len(raw)
    for rollouts in groups.values():
        rewards = np.array([_shared(raw, rollout, places) for rollout, places in rollouts.items()])
        rewards -= rewards.mean()
        if by_deviation and len(rewards) > 1:
            rewards /= rewards.std(ddof=1) + MIN_DEVIATION
        for value, places in zip(rewards.tolist(), rollouts.values(), strict=True):
            for place in places:
                values[place] = value
    return values


def _rollout(sample: Any, place: int) -> Hashable:
    named = getattr(sample, "rollout_id", None)
    named = getattr(sample, "index", None) if named is None else named
    return ("row", place) if named is None else int(named)


def _shared(raw: Sequence[float], rollout: Hashable, places: Sequence[int]) -> float:
    rewards = {raw[place] for place in places}
    if len(rewards) > 1:
        raise DataError(
            f"the {len(places)} samples of rollout {rollout!r} have the task rewards {sorted(rewards)}, expected one "
            "for all: they are parts of one answer. Grade the rollout, not its parts."
        )
    return rewards.pop()


def _groups(args: Any, samples: Sequence[Any]) -> list[int]:
    """Which samples answer one prompt: by their `group_index`, else by their order."""
    named = [getattr(sample, "group_index", None) for sample in samples]
    if None not in named:
        return [int(group) for group in named if group is not None]
    size = int(args.n_samples_per_prompt)
    if len(samples) % size:
        raise DataError(
            f"{len(samples)} samples without a group_index are no multiple of n_samples_per_prompt = {size}: set "
            "group_index in your generate function"
        )
    return [place // size for place in range(len(samples))]
