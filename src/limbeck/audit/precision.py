"""How precise a dump is, and where it differs by more: block by block, so that a fault which begins late counts.

Half precision changes scores by some nats a token, and that much is no finding. Where one side agrees with what we
compute to a few millionths, the dump was made in float32, and little more than what half precision makes is allowed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.audit.dump import Reals
from limbeck.records import Ints

EXACT = 1e-3  # nats: the median of a block below which a side is float32
BLOCK = 48  # tokens in a block of units, at least
SURELY = 4.0  # standard errors that a mean must be beyond its limit
CAP = 2.0  # nats: a few wild tokens decide nothing
STRICT, LEAST = 2.0, 0.01  # times the noise of half precision, and nats a token, where the dump is exact
LOOSE, LEAST_LOOSE = 4.0, 0.06  # where it is not: sampler and trainer are both off by that noise


def strict_limit(floor: float) -> float:
    """Nats a token beyond which scores differ, in a dump that is exact elsewhere."""
    return max(LEAST, STRICT * floor)


def mismatch_limit(floor: float, exact: bool) -> float:
    """Nats a token by which sampler and trainer may differ."""
    return strict_limit(floor) if exact else max(LEAST_LOOSE, LOOSE * floor)


@dataclass(frozen=True)
class Blocks:
    """Runs of units (steps, or rows) with enough tokens for a mean."""

    first: Ints  # [B] the place of each block's first token
    mean: Reals  # [B] nats a token, each cut at `CAP`
    square: Reals  # [B] the mean of its squares
    median: Reals  # [B]
    count: Ints  # [B] tokens


def blocks_of(off: Reals, unit: Ints) -> Blocks:
    """The blocks of absolute differences in order of their units. What is left over joins the last block."""
    begins = np.concatenate([[0], np.flatnonzero(np.diff(unit)) + 1, [len(off)]]).astype(np.int64)
    borders = [0]
    for place in begins[1:]:
        if place - borders[-1] >= BLOCK:
            borders.append(int(place))
    if borders[-1] < len(off):
        borders[-1 if len(borders) > 1 else len(borders) :] = [len(off)]
    parts = [off[a:b] for a, b in itertools.pairwise(borders)]
    return Blocks(
        np.asarray(borders[:-1], dtype=np.int64),
        np.asarray([np.minimum(part, CAP).mean() for part in parts]),
        np.asarray([(np.minimum(part, CAP) ** 2).mean() for part in parts]),
        np.asarray([np.median(part) for part in parts]),
        np.asarray([len(part) for part in parts], dtype=np.int64),
    )


def is_exact(blocks: Blocks, floor: float) -> bool:
    """Whether some block agrees as float32 does, far closer than half precision could."""
    return bool(len(blocks.median)) and float(blocks.median.min()) < min(EXACT, 0.1 * floor)


def surely_beyond(mean: float, square: float, count: int, limit: float) -> bool:
    """Whether a mean of `count` tokens is beyond `limit` by more than chance: its tails are heavy."""
    return mean - SURELY * float(np.sqrt(max(square - mean**2, 0.0) / max(count, 1))) > limit


def begins_off(blocks: Blocks, limit: float) -> tuple[int, float, float] | None:
    """The first token from which on blocks are beyond `limit`, their mean, and their share of all; None for none.

    The place is 0 unless most blocks from the first bad one on are bad.
    """
    bad: Sequence[int] = np.flatnonzero(blocks.mean > limit).tolist()
    if not bad:
        return None
    weight = blocks.count[bad] / blocks.count[bad].sum()
    mean, square = float((blocks.mean[bad] * weight).sum()), float((blocks.square[bad] * weight).sum())
    if not surely_beyond(mean, square, int(blocks.count[bad].sum()), limit):
        return None
    late = len(bad) > 0.5 * (len(blocks.mean) - bad[0])
    share = float(blocks.count[bad].sum() / blocks.count.sum())
    return (int(blocks.first[bad[0]]) if late else 0), mean, share
