"""What a step measured: means with their weights, and the numbers of single tokens. Plain data, no torch.

Shape legend: S trained tokens, K kept tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from limbeck.records import Failure, Floats, Ints


@dataclass(frozen=True, slots=True)
class Top:
    """The most likely tokens at each sampled position, most likely first."""

    ids: Ints  # [S, K]
    logprobs: Floats  # [S, K] at the rollout temperature, normalised over the whole vocabulary


@dataclass(frozen=True, slots=True)
class Trace:
    """What student and teacher gave each sampled token, for people to look at.

    At the rollout temperature, under the student's weights as they are. None where the teacher's
    scores cannot say.
    """

    student_logprobs: Floats  # [S] log p(y_t)
    teacher_logprobs: Floats  # [S] log q(y_t)
    student_entropy: Floats  # [S] nats
    student_top: Top
    teacher_entropy: Floats | None = None  # [S]
    reverse_kl: Floats | None = None  # [S] exact, over the whole vocabulary
    teacher_top: Top | None = None


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over tokens that carries its weight, and how far clusters (prompts) spread around it."""

    total: float
    count: float
    spread: float | None = None  # sum over clusters of (its total - mean * its count)^2
    clusters: int = 0

    @property
    def value(self) -> float | None:
        """The mean, or None where nothing was counted."""
        return self.total / self.count if self.count else None

    @property
    def standard_error(self) -> float | None:
        """Of a ratio of sums over independent clusters (Cochran 1977, section 6.3); None for fewer than two.

        Clusters are prompts: tokens of a response and responses to a prompt are not independent.
        """
        if self.spread is None or self.clusters < 2 or not self.count:
            return None
        return math.sqrt(self.spread * self.clusters / (self.clusters - 1)) / self.count


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update measured. Keys are the names in `metrics.jsonl`: "reverse_kl/exact"."""

    means: Mapping[str, Mean] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def values(self) -> dict[str, float]:
        """Every metric as one flat mapping; a mean's standard error is `NAME/se`."""
        flat = {}
        for name, mean in self.means.items():
            if mean.value is not None:
                flat[name] = mean.value
            if mean.standard_error is not None:
                flat[f"{name}/se"] = mean.standard_error
        return {**flat, **self.maxima, **self.sums, **{f"seconds/{k}": v for k, v in self.seconds.items()}}


@dataclass(frozen=True, slots=True)
class WeightTransfer:
    """What one update's weights cost on their way to the engine."""

    bytes: int = 0  # written or sent, once however many read them
    seconds: float = 0.0  # until the last reader had them

    def values(self) -> dict[str, float]:
        """As in `metrics.jsonl`."""
        return {"weights/bytes": self.bytes, "seconds/weights": self.seconds}
