"""Does the server hold the learner's weights? One fixed text, scored by both.

    apart     |theirs - ours|                of new weights: at most the tolerance, or they are others
    moved     |theirs - theirs before|       as far as ours moved, or the update was accepted and not made
    changed   |theirs - theirs at the push|  nothing, or the server was restarted since

All are means over the text, in nats a token. The second test is what finds an update of a small learning
rate that never arrived: within the tolerance, and not one step further.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from limbeck.errors import EngineError
from limbeck.records import Floats

MIN_NOISE = 5e-5  # nats: what a float32 server may be off from itself
NOISE_MARGIN = 4.0  # times the noise that was measured


@dataclass
class Held:
    """What was said of the fixed text, by the learner and by the server."""

    name: str  # "engine sglang at http://..."
    tolerance: float
    remedy: str
    resolution: float = MIN_NOISE  # differences below it say nothing
    ours: Floats | None = None  # [n] at the last push
    theirs: Floats | None = None
    known: list[tuple[Floats, Floats]] = field(default_factory=list)  # ours and theirs when movement was last judged

    def measure_noise_floor(self, repeated: list[Floats]) -> float:
        """Set the resolution by answers to the same question, without an update between them."""
        noise = max(apart(repeated[0], again) for again in repeated[1:])
        self.resolution = max(MIN_NOISE, NOISE_MARGIN * noise)
        return noise

    def pushed(self, version: int, ours: Floats, theirs: Floats) -> float:
        """Take note of new weights; nats between server and learner. Raises `EngineError` where they are not there."""
        distance = apart(ours, theirs)
        if not distance <= self.tolerance:
            raise EngineError(
                f"{self.name} took the weights of update {version} but does not hold them: a fixed text of {len(ours)} "
                f"tokens is {distance:.3g} nats a token away from the learner's own log-probs (largest "
                f"{np.abs(ours - theirs).max():.3g}; expected at most engine.tolerance = {self.tolerance}). "
                f"Nothing was sampled with it. {self.remedy}"
            )
        if self.known:
            ours_before, theirs_before = self.known[-1]
            wanted, moved = apart(ours, ours_before), apart(theirs, theirs_before)
            if wanted > 2 * self.resolution and moved < wanted / 2:
                raise EngineError(
                    f"{self.name} took the weights of update {version} but did not change: the learner's log-probs of "
                    f"a fixed text moved by {wanted:.3g} nats a token, the server's by {moved:.3g}. Nothing was "
                    f"sampled with it. {self.remedy}"
                )
            if wanted > 2 * self.resolution:
                self.known = [(ours, theirs)]
        else:
            self.known = [(ours, theirs)]
        self.ours, self.theirs = ours, theirs
        return distance

    def still(self, theirs: Floats) -> bool:
        """Whether the server answers as it did after the push."""
        assert self.theirs is not None
        return apart(theirs, self.theirs) <= self.resolution

    def forget(self) -> None:
        """The server was restarted: what it said before is of another one."""
        self.known = []


def apart(a: Floats, b: Floats) -> float:
    """Mean absolute difference, in nats a token."""
    return float(np.abs(a.astype(np.float64) - b).mean())
