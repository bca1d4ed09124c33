"""Hidden states in fewer bytes: bfloat16, or int8 with a scale for each block of numbers.

    encoded = encode(states_nd, "int8")
    encoded.decode()                      # [n, d] float32, the same numbers at both ends of the wire

    dtype      bytes a number    what a number becomes
    float32    4                 itself
    bfloat16   2                 the nearest of 8 significant bits: itself, where the model computes in bfloat16
    int8       1 + 4 / BLOCK     a multiple of its block's scale, which is the block's largest number / 127

A final state has a few numbers that are far larger than the rest. One scale a position would round all others to
the largest one's step, hence the blocks. What rounding does to log-probs is not foreseen but measured, position by
position, by the server (`serve.scorer`).

Shape legend: n positions, d hidden width, G blocks of a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from limbeck.config.values import HiddenDtype
from limbeck.records import Floats

BLOCK = 32  # numbers that share a scale
LARGEST = 2.0**127  # above, rounding may reach infinity
KINDS = {"float32": "<f4", "bfloat16": "<u2", "int8": "<i1"}  # how the numbers lie in a body


@dataclass(frozen=True, slots=True)
class EncodedStates:
    """States as they travel."""

    dtype: HiddenDtype
    values: npt.NDArray[Any]  # [n, d] of `KINDS[dtype]`
    scales: Floats | None = None  # [n, G] of int8

    def decode(self) -> Floats:
        """[n, d]"""
        if self.dtype == "bfloat16":
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        if self.scales is None:
            return self.values.astype(np.float32, copy=False)
        scale_nd = np.repeat(self.scales, BLOCK, axis=1)[:, : self.values.shape[1]]
        return self.values.astype(np.float32) * scale_nd


def blocks(width: int) -> int:
    """Scales of a position."""
    return -(-width // BLOCK)


def bytes_of(width: int, dtype: HiddenDtype) -> int:
    """Bytes of one position's states."""
    return width * np.dtype(KINDS[dtype]).itemsize + (4 * blocks(width) if dtype == "int8" else 0)


def encode(states_nd: Floats, dtype: HiddenDtype) -> EncodedStates:
    """Raises `ArithmeticError` for states that are not finite, or so large that rounding could make them so."""
    if not (np.abs(states_nd) <= LARGEST).all():
        raise ArithmeticError(f"hidden states are not finite, or above {LARGEST:.1g}")
    if dtype == "float32":
        return EncodedStates(dtype, states_nd)
    if dtype == "bfloat16":
        bits_nd = np.ascontiguousarray(states_nd, dtype=np.float32).view(np.uint32)
        half_nd = 0x7FFF + ((bits_nd >> 16) & 1)  # ties go to the even one
        return EncodedStates(dtype, ((bits_nd + half_nd) >> 16).astype(np.uint16))
    count, width = states_nd.shape
    padded = np.zeros((count, blocks(width) * BLOCK), np.float32)
    padded[:, :width] = states_nd
    in_blocks = padded.reshape(count, blocks(width), BLOCK)
    scales = (np.abs(in_blocks).max(axis=2, initial=0.0) / 127).astype(np.float32)
    steps = np.divide(in_blocks, scales[:, :, None], out=np.zeros_like(in_blocks), where=scales[:, :, None] > 0)
    values = np.clip(np.rint(steps), -127, 127).astype(np.int8).reshape(padded.shape)[:, :width]
    return EncodedStates(dtype, values, scales)
