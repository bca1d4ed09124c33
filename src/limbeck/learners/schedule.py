"""The learning rate of each update."""

from __future__ import annotations

import math

from limbeck.config.learner import LocalLearnerConfig


def learning_rate(config: LocalLearnerConfig, step: int, steps: int) -> float:
    """The rate of update `step` (from 0): linear warm-up, then the schedule down to 0 at `steps`."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[config.schedule]
    return config.lr * factor
