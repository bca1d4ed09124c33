"""Which of several answers to one question is undamaged: the one whose every number another answer has too.

    confirmed([reply, again], tolerance=5e-5)        # one of them, or None: ask once more

Two answers need not be the same as a whole: where a server is noisy, tokens change places at the end of its top
K. Damage does not strike two answers alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.records import Floats, Mask
from limbeck.wire.score import Reply


def confirmed(replies: Sequence[Reply], tolerance: float) -> Reply | None:
    """The first reply of which each log-prob, top token and hidden state is in another one too.

    Within `tolerance`, in nats; of the numbers of a hidden state, which have no unit, in proportion above 1.
    """
    for number, reply in enumerate(replies):
        others = [*replies[:number], *replies[number + 1 :]]
        if (
            _all_within(reply.logprobs, [other.logprobs for other in others], tolerance)
            and (reply.hidden is None or _states_confirmed(reply.hidden, others, tolerance))
            and (reply.top_ids is None or _tops_confirmed(reply, others, tolerance))
        ):
            return reply
    return None


def _states_confirmed(hidden: Floats, others: Sequence[Reply], tolerance: float) -> bool:
    return _all_within(hidden, [other.hidden for other in others], tolerance * np.maximum(1.0, np.abs(hidden)))


def _all_within(values: Floats, others: Sequence[Floats | None], tolerance: float | np.ndarray) -> bool:
    seen = np.zeros(values.shape, dtype=bool)
    for other in others:
        if other is not None and other.shape == values.shape:  # the width of a hidden state is the server's to say
            seen |= np.abs(values.astype(np.float64) - other) <= tolerance
    return bool(seen.all())


def _tops_confirmed(reply: Reply, others: Sequence[Reply], tolerance: float) -> bool:
    keys, values = _by_place(reply)
    seen: Mask = np.zeros(len(keys), dtype=bool)
    for other in others:
        their_keys, their_values = _by_place(other)
        at = np.searchsorted(their_keys, keys).clip(max=len(their_keys) - 1)
        seen |= (their_keys[at] == keys) & (np.abs(values - their_values[at]) <= tolerance)
    return bool(seen.all())


def _by_place(reply: Reply) -> tuple[np.ndarray, np.ndarray]:
    """Top tokens as sorted (position, id) pairs, each one number, with their log-probs."""
    assert reply.top_ids is not None
    assert reply.top_logprobs is not None
    places = np.arange(len(reply.top_ids), dtype=np.int64)[:, None] << 32
    keys = (places + reply.top_ids).ravel()
    order = np.argsort(keys)
    return keys[order], reply.top_logprobs.ravel().astype(np.float64)[order]
