"""Tells a person that a run goes wrong, before the loss does.

Each rule looks at a step's line of metrics and at those before it. Its message says what was measured,
what a good run shows, and the usual cause. Alarms never change a run.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from limbeck.formatting import number

if TYPE_CHECKING:
    from limbeck.config.recipe import Recipe

EARLY_STEPS = 10  # a run is compared with the median of its own first steps
HIGH_SHARE = 0.5  # of responses that are cut, or that loop
SUPPORT_ERRORS, SUPPORT_SHARE = 6, 0.02  # standard errors, and share of the tokens beside them
MAX_MISMATCH = 0.1  # nats a token between sampler and learner; a good engine is below 0.02
RISE, LEAST_RISE = 2, 0.1  # times the KL of the first steps, and nats a token above it
RISE_ERRORS = 4  # standard errors of the difference, from the scatter of the steps
NO_KL = 0.01  # nats a token; a student that begins as its teacher can only move away


def kl_should_fall(recipe: Recipe) -> bool:
    """Whether the reverse KL to one fixed teacher is all that a recipe makes smaller, on the student's own samples."""
    objective, teachers = recipe.objective, [recipe.teacher]
    if recipe.teacher.kind == "routed":
        teachers = list(recipe.teacher.teachers.values())
    alone = objective.divergence == "reverse_kl" and objective.task_reward is None and objective.reference is None
    return alone and not recipe.rollout.sources and all(one.kind not in ("self", "dataset") for one in teachers)


class Alarms:
    """Feed it the train lines in order; `check` answers with the alarms of each."""

    def __init__(self, same_weights: bool, before: Iterable[Mapping[str, Any]] = (), falls: bool = False) -> None:
        """`falls`: the reverse KL is expected to, see `kl_should_fall`."""
        self.same_weights = same_weights
        self.falls = falls
        self.first_kl: list[float] = []
        self.last_kl: deque[float] = deque(maxlen=EARLY_STEPS)
        self.early: dict[str, list[float]] = {}
        self.seen = 0
        for line in before:
            self.check(line)

    def check(self, line: Mapping[str, Any]) -> list[dict[str, str]]:
        """`[{"name": ..., "message": ...}]`, empty for a healthy step."""
        line = {key: value for key, value in line.items() if isinstance(value, int | float)}  # a file is read again
        alarms = [
            {"name": name, "message": message}
            for name, message in (
                ("identity", self._identity(line)),
                ("negative_kl", _negative_kl(line)),
                ("kl_rising", self._kl_rising(line)),
                ("entropy", self._entropy(line)),
                ("length", self._length(line)),
                ("truncation", self._truncation(line)),
                ("repetition", self._repetition(line)),
                ("mismatch", _mismatch(line)),
                ("support", _support(line)),
            )
            if message
        ]
        self.seen += 1
        if self.seen <= EARLY_STEPS:
            for key, value in line.items():
                self.early.setdefault(key, []).append(float(value))
        return alarms

    def _identity(self, line: Mapping[str, Any]) -> str | None:
        value = line.get("reverse_kl/exact", line.get("reverse_kl/sampled"))
        if self.same_weights and self.seen == 0 and value is not None and abs(value) > 0.01:
            return (
                f"student and teacher have the same weights, but their KL is {number(value)} nats a token (expected "
                "below 0.01): the two are not scored in the same way"
            )
        return None

    def _kl_rising(self, line: Mapping[str, Any]) -> str | None:
        value = line.get("reverse_kl/exact", line.get("reverse_kl/sampled"))
        if not self.falls or value is None or not math.isfinite(value):
            return None
        if len(self.first_kl) < EARLY_STEPS:
            self.first_kl.append(value)
            return None
        self.last_kl.append(value)
        if len(self.last_kl) < EARLY_STEPS:
            return None
        start, now = statistics.fmean(self.first_kl), statistics.fmean(self.last_kl)
        error = math.sqrt((statistics.variance(self.first_kl) + statistics.variance(self.last_kl)) / EARLY_STEPS)
        if start < NO_KL or now < RISE * start or now - start < max(LEAST_RISE, RISE_ERRORS * error):
            return None
        return (
            f"the reverse KL rose from {number(start)} nats a token in the first {EARLY_STEPS} steps to {number(now)} "
            f"in the last {EARLY_STEPS}: the student moves away from the teacher. Is learner.lr too high? Lower it by "
            "3 first. If the KL still rises: is it the right teacher, with the student's chat template? Look at "
            "Samples and Disagreement in limbeck view"
        )

    def _entropy(self, line: Mapping[str, Any]) -> str | None:
        now, start = line.get("entropy/student"), self._usual("entropy/student")
        teacher = line.get("entropy/teacher", 0.0)
        if now is not None and start is not None and now < 0.2 * start and now < 0.5 * teacher:
            return (
                f"the student's entropy fell from {number(start)} nats at the start to {number(now)}, while the "
                f"teacher's is {number(teacher)}: it collapses. Lower learner.lr"
            )
        return None

    def _length(self, line: Mapping[str, Any]) -> str | None:
        now, start = line.get("response_length/mean"), self._usual("response_length/mean")
        if now is not None and start is not None and now > 2 * start:
            return f"responses average {now:.0f} tokens, {start:.0f} at the start: the student does not stop"
        return None

    def _truncation(self, line: Mapping[str, Any]) -> str | None:
        share = line.get("truncated")
        if share is None or share <= HIGH_SHARE:
            return None
        return (
            f"{share:.0%} of responses{self._at_the_start('truncated', share)} reach rollout.max_tokens before a stop "
            "token. Raise rollout.max_tokens if they are still answering. If they go on after the answer, compare the "
            "stop tokens (the model's eos_token_id and rollout.stop_ids) with the one that ends a turn in the chat "
            "template"
        )

    def _repetition(self, line: Mapping[str, Any]) -> str | None:
        share = line.get("repetition")
        if share is None or share <= HIGH_SHARE:
            return None
        return f"{share:.0%} of responses{self._at_the_start('repetition', share)} repeat their own 4-grams: they loop"

    def _at_the_start(self, key: str, now: float) -> str:
        """` (12% at the start)` where the run has changed."""
        start = self._usual(key)
        return f" ({start:.0%} at the start)" if start is not None and now > 2 * start else ""

    def _usual(self, key: str) -> float | None:
        values = self.early.get(key)
        return statistics.median(values) if values and self.seen >= EARLY_STEPS else None


def _negative_kl(line: Mapping[str, Any]) -> str | None:
    value = line.get("reverse_kl/exact")
    if value is not None and value < -1e-4:
        return f"the exact KL is {value:.2e} nats, and a KL is never below 0: a distribution is not normalised"
    return None


def _mismatch(line: Mapping[str, Any]) -> str | None:
    value, lag = line.get("mismatch"), line.get("lag", 0.0)
    if value is None or value <= MAX_MISMATCH:
        return None
    what = (
        f"the sampler's log-probs differ from the learner's by {number(value, 3)} nats a token (a good engine is "
        "below 0.02), both in the distribution that was sampled from. "
    )
    if lag:
        return what + (
            f"The samples are {number(lag, 1)} updates old: the student moves far in one. Lower learner.lr or "
            "rollout.lag, and see importance/effective_share"
        )
    return what + (
        "Usual causes: the sampler holds older weights, has another dtype or quantisation, or did not apply the "
        "temperature and top_p, top_k, min_p that were asked for"
    )


def _support(line: Mapping[str, Any]) -> str | None:
    """Sampled tokens are on a list that follows from the prefix as often as the student's probability of it says."""
    share, mass, tokens = (line.get(key) for key in ("support/sampled", "support/student", "tokens/trained"))
    if share is None or mass is None or not tokens:
        return None
    error = math.sqrt(max(0.0, mass * (1 - mass)) / tokens)
    if abs(share - mass) <= SUPPORT_ERRORS * error + SUPPORT_SHARE:
        return None
    return (
        f"{share:.1%} of the sampled tokens are on the support, expected {mass:.1%}, the student's probability of what "
        "is on it: the list depends on the token that was sampled, which biases the gradient. Usual cause: a teacher "
        "or an engine that adds the sampled token to its most likely ones"
    )
