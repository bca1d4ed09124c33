"""Which prompts a step sees, as a function of seed and step alone: there is no cursor to lose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.records import Prompt
from limbeck.seeding import derive_seed


class PromptOrder:
    """Epoch after epoch, each in its own shuffled order."""

    def __init__(self, prompts: Sequence[Prompt], per_step: int, seed: int) -> None:
        self.prompts, self.per_step, self.seed = prompts, per_step, seed
        self._epoch, self._shuffled = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> list[Prompt]:
        """The prompts of update `step`, counted from 0."""
        first = step * self.per_step
        return [self._prompt(position) for position in range(first, first + self.per_step)]

    def _prompt(self, position: int) -> Prompt:
        epoch, place = divmod(position, len(self.prompts))
        if epoch != self._epoch:
            generator = np.random.default_rng(derive_seed(self.seed, "epoch", epoch))
            self._epoch, self._shuffled = epoch, generator.permutation(len(self.prompts))
        return self.prompts[int(self._shuffled[place])]
