"""Statistics of rewards: their mean with an interval that fits them, and pass@k.

accuracy   mean over prompts of the mean reward of the prompt's samples
interval   95%, over prompts. Where every reward lies in [0, 1] it is Wilson's score interval; for several
           samples a prompt that is conservative (their mean varies less than a coin). Other rewards get
           Student's t interval of the prompts' means. One prompt says nothing about others: no interval.
pass@k     1 - C(n - c, k) / C(n, k) of n samples with c right: unbiased (Chen et al. 2021, eq. 1)
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from limbeck.training.finite import require_finite

CONFIDENCE = 0.95
PASS_AT = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class RewardSummary:
    """What the rewards of an evaluation say."""

    mean: float
    interval: tuple[float, float] | None  # None for a single prompt
    pass_at: dict[int, float] = field(default_factory=dict)  # empty for one sample a prompt
    extent: tuple[float, float] | None = None  # smallest and largest reward, where one lies outside [0, 1]

    def values(self) -> dict[str, float]:
        """As written to `metrics.jsonl`. `accuracy/min` is there only where the mean is no share."""
        flat = {"accuracy": self.mean}
        if self.interval is not None:
            flat |= {"accuracy/low": self.interval[0], "accuracy/high": self.interval[1]}
        if self.extent is not None:
            flat |= {"accuracy/min": self.extent[0], "accuracy/max": self.extent[1]}
        return flat | {f"pass@{k}": value for k, value in self.pass_at.items()}


def summarise_rewards(rewards: Sequence[Sequence[float]]) -> RewardSummary:
    """Of the rewards of each prompt's samples, as many samples for every prompt.

    A sample counts as right for pass@k at a reward of 1, so rewards above 1 have no pass@k. Raises
    `NonFiniteError` for a reward that is NaN or infinite.
    """
    require_finite({f"prompt {i}": row for i, row in enumerate(rewards)}, "rewards")
    prompt_means = [statistics.fmean(row) for row in rewards]
    mean, samples = statistics.fmean(prompt_means), len(rewards[0])
    least, most = min(map(min, rewards)), max(map(max, rewards))
    share = least >= 0 and most <= 1
    interval = None
    if len(rewards) > 1:
        interval = wilson(mean, len(rewards)) if share else t_interval(prompt_means)
    ks = [k for k in PASS_AT if k <= samples and samples > 1 and most <= 1]
    pass_at = {k: statistics.fmean(pass_at_k(samples, sum(r >= 1 for r in row), k) for row in rewards) for k in ks}
    return RewardSummary(mean, interval, pass_at, None if share else (least, most))


def wilson(mean: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share `mean` of `count` trials (Wilson 1927).

    Raises `ValueError` for a mean outside [0, 1], which is no share.
    """
    if not 0 <= mean <= 1:
        raise ValueError(f"Wilson's interval is of a share in [0, 1], got {mean}; use t_interval for other means")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    # At 0 and 1 the interval ends at the mean, which rounding must not leave outside.
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Student's interval of the mean of independent `values`. Raises `ValueError` for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"an interval needs two values or more, got {len(values)}")
    mean = statistics.fmean(values)
    half = t_quantile(len(values) - 1, confidence) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def t_quantile(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| < t) = `confidence` for Student's T with `freedom` degrees of freedom.

    With t = sqrt(freedom) * tan(angle) the density is cos(angle)^(freedom - 1), summed here on a grid.
    """
    angles = np.linspace(0.0, math.pi / 2, 100_001)
    density = np.cos(angles) ** (freedom - 1)
    below = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence, below / below[-1], angles)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `samples` with `right` right."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@k needs 1 <= k <= samples, got k = {k} of {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
