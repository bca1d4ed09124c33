"""Where randomness comes from: one hash of the parts that name a draw, and nothing else.

    derive_seed(recipe.seed, "step", 12)     of a step, an epoch, an evaluation
    uniforms(seed, key, 40)                  of one sampled turn, in this process
    served_seed(seed, key)                   the same for a server, in the bits that every server takes

So a run that is resumed draws what the uninterrupted one drew, and a draw does not depend on what else is in
the batch.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from limbeck.records import Key


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part."""
    return _digest(8, *parts) >> 1


def uniforms(seed: int, key: Key, count: int) -> npt.NDArray[np.float64]:
    """[count] float64 in [0, 1): the randomness of one sampled turn."""
    return np.random.Generator(np.random.Philox(key=_digest(16, seed, *_parts(key)))).random(count)


def served_seed(seed: int, key: Key) -> int:
    """31 bits for a sampling request."""
    return _digest(4, seed, *_parts(key)) >> 1


def _parts(key: Key) -> tuple[int | str, ...]:
    """The first turn of a prompt's first occurrence in a step is named by prompt and sample alone."""
    if key.occurrence == key.turn == 0:
        return key.prompt_id, key.sample
    return key.prompt_id, key.sample, key.occurrence, key.turn


def _digest(size: int, *parts: int | str) -> int:
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "little")
