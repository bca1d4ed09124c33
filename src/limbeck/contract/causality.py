"""Alignment: the score of a token follows from it and from all that precedes it, and from nothing else.

A text is asked again with one token changed and other tokens after it. By causality nothing before may move, and the
most likely tokens *at* the changed place may not either: they follow from what precedes it. The score of the changed
token, and the position after it, must move. A likely token's score is the same as a token of the text and in the list
of a text without it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.contract.answers import Answer, refusal, top_difference
from limbeck.errors import ContractError
from limbeck.records import ProbeResult

TOLERANCE = 1e-3  # nats, of a teacher without noise
LEAST_MOVE = 1e-5  # nats: more than float32 rounds by chance
POSITIONS = "Check which positions the server returns."


def check_causality(
    name: str, base: Answer, changed: Sequence[tuple[int, Answer]], tolerance: float = TOLERANCE
) -> ProbeResult:
    """`changed` are (place, answer to the text changed there), see `ProbeTexts`. Raises `ContractError`."""
    moved = max(
        (
            float(np.abs(base.sampled_S - other.sampled_S)[: base.row(place)].max(initial=0.0))
            for place, other in changed
        ),
        default=0.0,
    )
    if not moved <= tolerance:
        raise _moved(
            name, f"the score of a token moved by {moved:.3g} nats though nothing before it changed", moved, tolerance
        )
    listed = 0.0
    for place, other in changed:
        rows = slice(0, base.row(place) + 1)
        listed = max(listed, top_difference(base, other, rows, rows))
    if not listed <= tolerance:
        what = f"the most likely tokens at a position moved by {listed:.3g} nats with the token at it or after it"
        raise _moved(name, what, listed, tolerance)
    _check_dependence(name, base, changed, tolerance)
    measured = f"moved {max(moved, listed):.1e} nats over {len(changed)} changes"
    return ProbeResult("alignment", measured, f"at most {tolerance:.2g}")


def _moved(name: str, what: str, moved: float, tolerance: float) -> ContractError:
    return refusal(
        "alignment",
        f"teacher {name}: {what} (expected at most {tolerance:.2g}). Its answer is shifted by one or more, it scored "
        "the text in other tokens, or several models answer.",
        POSITIONS,
        f"moved {moved:.3g} nats",
        f"at most {tolerance:.2g}",
    )


def _check_dependence(name: str, base: Answer, changed: Sequence[tuple[int, Answer]], tolerance: float) -> None:
    """The changed token's own score moves, and so does the position after it."""
    itself, after = [], []
    for place, other in changed:
        row = base.row(place)
        if base.request.token_ids[place] == other.request.token_ids[place]:
            continue
        itself.append(abs(base.sampled_S[row] - other.sampled_S[row]))
        rows = slice(row + 1, row + 2)
        after.append(
            max(abs(base.sampled_S[row + 1] - other.sampled_S[row + 1]), top_difference(base, other, rows, rows))
        )
    for moves, what, why in (
        (itself, "the token itself", "or it scores something else than what was sent"),
        (after, "the token before it", "or it does not see the text it was sent"),
    ):
        change, least = (float(np.median(moves)), float(np.min(moves))) if moves else (np.inf, np.inf)
        # Two tokens may score alike by chance; two contexts have one distribution nowhere, where no noise hides it.
        nowhere = moves is after and not least > LEAST_MOVE + (tolerance - TOLERANCE)
        if not change > tolerance or (nowhere and tolerance < 2 * TOLERANCE):
            change = min(change, least) if nowhere else change
            raise refusal(
                "alignment",
                f"teacher {name}: the score of a token did not change with {what} ({change:.3g} nats). Its answer is "
                f"shifted by one, {why}.",
                "Check which positions the server returns, and of which text.",
                f"{change:.3g} nats with {what}",
                f"more than {tolerance:.2g}",
            )


def check_listed(name: str, base: Answer, changed: Sequence[tuple[int, Answer]], tolerance: float = TOLERANCE) -> None:
    """What a token scores in the text is what the list of another text had for it. Raises `ContractError`."""
    if base.top_ids_SK is None or base.top_SK is None:
        return
    for place, other in changed:
        row = base.row(place)
        found = base.top_ids_SK[row] == other.request.token_ids[place]
        apart = float(np.abs(base.top_SK[row][found] - other.sampled_S[row]).max(initial=0.0))
        if not apart <= tolerance:
            raise refusal(
                "alignment",
                f"teacher {name}: a token scores {apart:.3g} nats more or less in a text than the list of the most "
                f"likely tokens has for it (expected at most {tolerance:.2g}). Its list and its scores are of other "
                "positions, or at other temperatures.",
                POSITIONS,
                f"{apart:.3g} nats between list and score",
                f"at most {tolerance:.2g}",
            )


def check_alike(name: str, base: Answer, part: Answer, tolerance: float = TOLERANCE) -> None:
    """The same text asked about in another way, as training will ask, has the same scores. Raises `ContractError`."""
    rows = slice(base.row(part.request.start), None)
    apart = float(np.abs(base.sampled_S[rows] - part.sampled_S).max(initial=0.0))
    apart = max(apart, top_difference(base, part, rows, slice(None)))
    if not apart <= tolerance:
        raise refusal(
            "alignment",
            f"teacher {name}: the same tokens of a text score {apart:.3g} nats apart when only they are asked about, "
            f"with support {part.request.support!r} (expected at most {tolerance:.2g}).",
            POSITIONS,
            f"{apart:.3g} nats between two ways of asking",
            f"at most {tolerance:.2g}",
        )
