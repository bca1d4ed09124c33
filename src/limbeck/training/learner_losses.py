"""How often a fleet may lose its learner before the run stops."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from limbeck.errors import LostLearnerError

logger = logging.getLogger("limbeck")

MOST_LOSSES = 3  # after one checkpoint


@dataclass
class LearnerLosses:
    """Of the fleet's learner, without a new checkpoint in between: a few may be chance."""

    count: int = 0
    step: int = 0

    def may_go_on(self, error: BaseException, newest: int) -> bool:
        """After `error`, from the checkpoint of step `newest`."""
        if not isinstance(error, LostLearnerError):
            return False
        self.count, self.step = self.count + 1 if newest == self.step else 1, newest
        if self.count == MOST_LOSSES:
            error.add_note(f"That was the {self.count}rd time after step {newest}: the run does not go on by itself.")
            return False
        logger.warning("%s The run goes on from step %d.", error, newest)
        return True
