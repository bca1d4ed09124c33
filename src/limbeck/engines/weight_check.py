"""Does the server hold the learner's weights? One fixed text, scored by both.

    distance    |theirs - ours|                  of new weights: at most the tolerance, or they are others
    movement    |theirs - theirs before|         as far as ours moved, or the update was accepted and not made
    drift       |theirs - theirs at the push|    nothing, or the server was restarted since

All are means over the text, in nats a token. The second test finds an update of a small learning rate that
never arrived: the old weights are within the tolerance, and stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from limbeck.errors import EngineError
from limbeck.records import Floats

MIN_NOISE = 5e-5  # nats: how far a float32 server may be from itself
NOISE_MARGIN = 4.0  # times the noise that was measured


@dataclass(frozen=True, slots=True)
class _Scored:
    """The fixed text's log-probs [n] by the learner and by the server, of the same weights."""

    ours: Floats
    theirs: Floats


@dataclass
class WeightSyncCheck:
    """Compares a server with the learner after every update of the weights."""

    name: str  # "engine sglang at http://..."
    tolerance: float  # nats a token
    remedy: str
    resolution: float = MIN_NOISE  # smaller differences are noise
    pushed: _Scored | None = None  # at the last push
    moved: _Scored | None = None  # when a movement was last seen

    def measure_noise_floor(self, repeated: list[Floats]) -> float:
        """Set the resolution by answers to one request, without an update between them."""
        noise = max(mean_abs_diff(repeated[0], again) for again in repeated[1:])
        self.resolution = max(MIN_NOISE, NOISE_MARGIN * noise)
        return noise

    def check_update(self, version: int, ours: Floats, theirs: Floats) -> float:
        """The distance in nats after new weights. Raises `EngineError` where the server does not hold them."""
        distance = mean_abs_diff(ours, theirs)
        if not distance <= self.tolerance:
            raise EngineError(
                f"{self.name} took the weights of update {version} but does not hold them: a fixed text of {len(ours)} "
                f"tokens is {distance:.3g} nats a token away from the learner's own log-probs (largest "
                f"{np.abs(ours - theirs).max():.3g}; expected at most engine.tolerance = {self.tolerance}). "
                f"Nothing was sampled with it. {self.remedy}"
            )
        self.pushed = _Scored(ours, theirs)
        if self.moved is None:
            self.moved = self.pushed
            return distance
        expected, found = mean_abs_diff(ours, self.moved.ours), mean_abs_diff(theirs, self.moved.theirs)
        if expected <= 2 * self.resolution:  # too little to tell: compared again when the next step is added
            return distance
        if found < expected / 2:
            raise EngineError(
                f"{self.name} took the weights of update {version} but did not change: the learner's log-probs of "
                f"a fixed text moved by {expected:.3g} nats a token, the server's by {found:.3g}. Nothing was "
                f"sampled with it. {self.remedy}"
            )
        self.moved = self.pushed
        return distance

    def is_unchanged(self, theirs: Floats) -> bool:
        """Whether the server answers as it did after the push."""
        assert self.pushed is not None
        return mean_abs_diff(theirs, self.pushed.theirs) <= self.resolution

    def forget_movement(self) -> None:
        """The server was restarted: where it stood before is no measure of the next update."""
        self.moved = None


def mean_abs_diff(a: Floats, b: Floats) -> float:
    """In nats a token."""
    return float(np.abs(a.astype(np.float64) - b).mean())
