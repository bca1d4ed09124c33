"""Task rewards as advantages: each against the other samples of its prompt.

Of an episode: one reward, for all of its tokens. Of turns: each turn's tokens get its return, the sum of its own reward
and those of the episode's later turns (what came before it does not depend on it), against the same turn of the
prompt's other episodes that came as far. A baseline that the turn cannot change leaves the gradient unbiased.

`mean_std` is GRPO's normalisation (Shao et al. 2024, section 4.1.1), `mean` leaves the scale alone
(Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.config.objective import TaskRewardConfig
from limbeck.errors import DataError
from limbeck.records import Floats, Rollout

SMALLEST_DEVIATION = 1e-6


def group_advantages(rewards: Sequence[float], groups: Sequence[str], section: TaskRewardConfig) -> list[float]:
    """[samples] advantages; samples of one group share its name. A group of equal rewards gets zeros.

    Their mean over each group is 0.
    """
    rewards_R, groups_R = np.asarray(rewards, dtype=np.float64), np.asarray(groups)
    advantages_R = np.zeros_like(rewards_R)
    for group in dict.fromkeys(groups):
        members = groups_R == group
        centred = rewards_R[members] - rewards_R[members].mean()
        deviation = rewards_R[members].std()
        if section.normalise == "mean_std" and deviation > SMALLEST_DEVIATION:
            centred = centred / deviation
        advantages_R[members] = section.weight * centred
    return [float(value) for value in advantages_R]


def turn_advantages(rollouts: Sequence[Rollout], episodes: Sequence[int], section: TaskRewardConfig) -> list[Floats]:
    """[S] of each rollout; `episodes` says which episode each is a segment of.

    Raises `DataError` for a turn without a reward.
    """
    rewards: dict[int, dict[int, float]] = {}  # by episode and turn
    prompts: dict[int, str] = {}
    for episode, rollout in zip(episodes, rollouts, strict=True):
        prompts[episode] = rollout.prompt.id
        for number, reward in _turn_rewards(rollout):
            rewards.setdefault(episode, {})[number] = reward
    values: list[float] = []
    groups: list[str] = []
    places: dict[tuple[int, int], int] = {}
    for episode, mine in rewards.items():
        for rank, number in enumerate(sorted(mine)):
            places[episode, number] = len(values)
            values.append(sum(reward for later, reward in mine.items() if later >= number))
            groups.append(f"{rank} {prompts[episode]}")
    advantages = group_advantages(values, groups, section)
    found = []
    for episode, rollout in zip(episodes, rollouts, strict=True):
        advantage_L = np.zeros(len(rollout.token_ids), dtype=np.float32)
        for turn in rollout.turns:
            if turn.key is not None:
                advantage_L[turn.start : turn.end] = advantages[places[episode, turn.key.turn]]
        found.append(advantage_L[rollout.trained])
    return found


def _turn_rewards(rollout: Rollout) -> list[tuple[int, float]]:
    found = []
    for turn in rollout.turns:
        if turn.key is not None:
            if turn.reward is None:
                raise DataError(
                    f"objective.task_reward.of = 'turn', but turn {turn.key.turn} of prompt {rollout.prompt.id!r} has "
                    "no reward. Let the environment return generate.episode(turn_rewards=[...]), or set of = 'episode'."
                )
            found.append((turn.key.turn, turn.reward))
    return found
