"""What tells a person that a run goes wrong, before the loss does.

Each rule looks at a step's line of metrics and at those before it, and says what it saw, what a good
run shows, and what usually causes it. Alarms never change a run.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

EARLY_STEPS = 10  # a run is compared with the median of its own first steps


class Alarms:
    """Feed it the train lines in order; `check` answers with the alarms of each."""

    def __init__(self, same_weights: bool, before: Iterable[Mapping[str, Any]] = ()) -> None:
        self.same_weights = same_weights
        self.early: dict[str, list[float]] = {}
        self.seen = 0
        for line in before:
            self.check(line)

    def check(self, line: Mapping[str, Any]) -> list[dict[str, str]]:
        """`[{"name": ..., "message": ...}]`, empty for a healthy step."""
        alarms = [
            {"name": name, "message": message}
            for name, message in (
                ("identity", self._identity(line)),
                ("negative_kl", _negative_kl(line)),
                ("entropy", self._entropy(line)),
                ("length", self._length(line)),
                (
                    "truncation",
                    self._grew(line, "truncated", 0.5, "cut at max_tokens: raise rollout.max_tokens"),
                ),
                ("repetition", self._grew(line, "repetition", 0.5, "repeated 4-grams: the student loops")),
                ("mismatch", _mismatch(line)),
            )
            if message
        ]
        self.seen += 1
        if self.seen <= EARLY_STEPS:
            for key, value in line.items():
                if isinstance(value, int | float):
                    self.early.setdefault(key, []).append(float(value))
        return alarms

    def _identity(self, line: Mapping[str, Any]) -> str | None:
        value = line.get("reverse_kl/exact", line.get("reverse_kl/sampled"))
        if self.same_weights and self.seen == 0 and value is not None and abs(value) > 0.01:
            return (
                f"student and teacher are the same weights, but their KL is {value:.4f} nats a token (expected "
                "below 0.01): the two are not scored alike"
            )
        return None

    def _entropy(self, line: Mapping[str, Any]) -> str | None:
        now, start = line.get("entropy/student"), self._usual("entropy/student")
        teacher = line.get("entropy/teacher", 0.0)
        if now is not None and start is not None and now < 0.2 * start and now < 0.5 * teacher:
            return (
                f"the student's entropy fell to {now:.4f} nats, from {start:.4f} at the start and against the "
                f"teacher's {teacher:.4f}: it collapses; lower learner.lr"
            )
        return None

    def _length(self, line: Mapping[str, Any]) -> str | None:
        now, start = line.get("response_length/mean"), self._usual("response_length/mean")
        if now is not None and start is not None and now > 2 * start:
            return f"responses average {now:.0f} tokens, {start:.0f} at the start: the student does not stop"
        return None

    def _grew(self, line: Mapping[str, Any], key: str, limit: float, meaning: str) -> str | None:
        now, start = line.get(key), self._usual(key)
        if now is not None and start is not None and now > limit and now > 2 * start:
            return f"{now:.0%} of responses, {start:.0%} at the start: {meaning}"
        return None

    def _usual(self, key: str) -> float | None:
        values = self.early.get(key)
        return statistics.median(values) if values and self.seen >= EARLY_STEPS else None


def _negative_kl(line: Mapping[str, Any]) -> str | None:
    value = line.get("reverse_kl/exact")
    if value is not None and value < -1e-4:
        return f"the exact KL is {value:.2e} nats, and a KL is never below 0: a distribution is not normalised"
    return None


def _mismatch(line: Mapping[str, Any]) -> str | None:
    value = line.get("mismatch")
    if value is not None and value > 0.1:
        return (
            f"the sampler's log-probs differ from the learner's by {value:.3f} nats a token (a good engine is "
            "below 0.02): the engine holds other weights, or another temperature"
        )
    return None
