"""How long the rest of a run takes, from what its steps and evaluations took so far."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import mean

from limbeck.formatting import counted, duration

STEPS_BEFORE = 2  # the first one compiles, loads and fills caches; it is not counted
RECENT = 50  # steps: how fast a run is may change


class Pace:
    """`every`: steps between evaluations, 0 where there are none but before and after."""

    def __init__(self, every: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.every, self.clock = every, clock
        self.steps = self.step = self.made = 0
        self.evaluation = 0.0  # seconds of the last one
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.last = clock()

    def started(self, step: int, steps: int) -> None:
        self.step, self.steps, self.last = step, steps, self.clock()

    def stepped(self, step: int) -> None:
        seconds, self.step = self._since_last(), step
        self.made += 1
        if self.made >= STEPS_BEFORE:
            self.recent.append(seconds)

    def evaluated(self) -> None:
        self.evaluation = self._since_last()

    @property
    def left(self) -> float | None:
        """Seconds; None before two steps were made, and at the end."""
        if not self.recent or self.step >= self.steps:
            return None
        return (self.steps - self.step) * mean(self.recent) + self._evaluations_left() * self.evaluation

    def forecast(self) -> str | None:
        """One line, once: after two steps."""
        if self.made != STEPS_BEFORE or self.left is None:
            return None
        parts = [f"{counted(self.steps - self.step, 'step')} of {duration(mean(self.recent))}"]
        if self.evaluation:
            parts.append(f"{counted(self._evaluations_left(), 'evaluation')} of {duration(self.evaluation)}")
        return f"about {duration(self.left)} left: {', '.join(parts)}"

    def _evaluations_left(self) -> int:
        """Those every so many steps, and the last one."""
        if not self.every:
            return 1
        return self.steps // self.every - self.step // self.every + (self.steps % self.every > 0)

    def _since_last(self) -> float:
        before, self.last = self.last, self.clock()
        return self.last - before
