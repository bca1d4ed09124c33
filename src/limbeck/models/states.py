"""Final hidden states that lie in this process."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LocalStates:
    """`protocols.States` of a tensor that is at hand."""

    tensor_Sd: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        count, width = self.tensor_Sd.shape
        return count, width

    def fetch(self) -> Tensor:
        return self.tensor_Sd
