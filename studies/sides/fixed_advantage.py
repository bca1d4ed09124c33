"""An objective without a teacher: sampled tokens are made less likely, all by the same advantage."""

from __future__ import annotations

import math

from torch import Tensor

from limbeck.config.factory import Build


class FixedNegativeAdvantage:
    """Advantage -1 on each sampled token whose probability is less than `below`, 0 on the others.

    What it minimises is the mass of those tokens, sum p [p < below]: an objective of the student alone. With every
    token among them the mass is 1, and the gradient is noise around 0.
    """

    def __init__(self, build: Build, below: float) -> None:
        self.log_below = math.log(below)

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * self.gain(logp, logq)

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * self.gain(logp, logq)

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (logp < self.log_below).to(logp.dtype)
