"""Task rewards as advantages: each against the other samples of its prompt.

`mean_std` is GRPO's normalisation (Shao et al. 2024, section 4.1.1), `mean` leaves the scale alone
(Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.config.objective import TaskRewardConfig

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
