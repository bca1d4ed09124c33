"""What happened in one session, in numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from limbeck.records import Failure


@dataclass
class SessionReport:
    """Filled while the session runs. A counter's keys are short words, fit for names of metrics."""

    requests: int = 0  # that asked for a turn
    turns: int = 0  # that were sampled: n = 2 is two
    spliced: int = 0  # put after the exact ids of an earlier turn
    siblings: int = 0  # the same request once more
    segments: Counter[str] = field(default_factory=Counter)  # that began afresh, by reason; "start" for the first
    overridden: Counter[str] = field(default_factory=Counter)  # settings of the agent that the rollout's replaced
    malformed: int = 0  # answers with something like a tool call that could not be read: they stay text
    errors: Counter[str] = field(default_factory=Counter)  # requests that were refused, by OpenAI's code
    failure: Failure | None = None  # the first of those that an agent cannot do anything about
    raised: Exception | None = None  # by `generate`: trouble of the run, not of the agent. Raise it again

    def count(self, kind: Literal["spliced", "sibling", "segment"], reason: str, turns: int) -> None:
        """Notes how the turns of one request go on: all but the first are siblings of it."""
        self.siblings += turns - (kind != "sibling")
        self.spliced += kind == "spliced"
        if kind == "segment":
            self.segments[reason.replace(" ", "_") or "start"] += 1

    def metrics(self) -> dict[str, float]:
        """Counts under their names in `metrics.jsonl`; how turns went on is seen from the rollouts."""
        counts: dict[str, float] = {"env/requests": self.requests, "env/malformed_calls": self.malformed}
        return counts | {f"env/errors/{code}": count for code, count in self.errors.items()}
