"""Context: the server reads the text that was sent, all of it and nothing else.

start    a text of one token again and again. Where attention is a weighted mean and positions are relative (every
         model of the Llama, Qwen, Mistral and Gemma kind), all that it attends to is alike, so every position has
         one and the same distribution. A token that the server puts in front is unlike, and shows. Models with
         learned positions, attention sinks or recurrent layers differ by themselves: of them it cannot be known
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.contract.answers import Answer, refusal, top_difference
from limbeck.records import ProbeResult

ALIKE = 0.03  # nats by which positions of a repeated token may differ, rounded to bfloat16 in every layer
TRUST = "teacher.trust_start = true (--trust-start)"


def check_start(name: str, answers: Sequence[Answer], noise: float, trusted: bool) -> ProbeResult:
    """`answers` to `ProbeTexts.repeated`. Raises `ContractError` unless `trusted`."""
    limit = ALIKE + 4 * noise
    # Of several tokens the middle one: rounding is not the same for all, and what stands before them is.
    apart = float(np.median([_moved_along(answer) for answer in answers]))
    if apart <= limit:
        return ProbeResult("start", f"positions of one token {apart:.1e} nats apart", f"at most {limit:.2g}")
    if trusted:
        measured = f"not shown by answers: positions of one token {apart:.2g} nats apart; accepted by trust_start"
        return ProbeResult("start", measured, "nothing put before a text")
    raise refusal(
        "start",
        f"teacher {name}: in a text of one token again and again the scores move by {apart:.3g} nats from the "
        f"first position on (expected at most {limit:.2g}). It puts something before the text (a BOS, a "
        "chat template), it has a penalty for tokens that were there before (repetition, frequency, presence), or its "
        "model has learned positions, attention sinks or recurrent layers.",
        f"Send ids as they are (no add_bos, no template) and switch penalties off; of such a model, make sure of both "
        f"and set {TRUST}.",
        f"{apart:.3g} nats apart",
        f"at most {limit:.2g}",
    )


def _moved_along(answer: Answer) -> float:
    """Nats between the last position and any of the first half."""
    last = len(answer.sampled_S) - 1
    return max(_apart(answer, row, last) for row in range(max(1, last // 2)))


def _apart(answer: Answer, one: int, other: int) -> float:
    """Mean nats between the distributions of two positions of a repeated token."""
    of_sampled = abs(answer.sampled_S[one] - answer.sampled_S[other])
    if answer.top_SK is None or answer.top_ids_SK is None:
        return float(of_sampled)
    in_order = np.abs(answer.top_SK[one] - answer.top_SK[other]).mean()
    same_KK = answer.top_ids_SK[one][:, None] == answer.top_ids_SK[other][None]
    of_each = np.abs(answer.top_SK[one][:, None] - answer.top_SK[other][None])[same_KK]
    return float(max(in_order, of_each.mean() if of_each.size else in_order, of_sampled / 2))


def check_first_token(name: str, base: Answer, other: Answer, longer: Answer, tolerance: float) -> None:
    """The first token is seen: both another one (`other`) and one more, such as BOS (`longer`), move the scores.

    Raises `ContractError`.
    """
    count = len(base.sampled_S) - 1
    for answer, rows, after, what in (
        (other, slice(1, None), slice(1, None), "another first token"),
        (longer, slice(0, count), slice(1, None), "one more token before it"),
    ):
        moved = float(np.abs(base.sampled_S[rows] - answer.sampled_S[after]).max(initial=0.0))
        moved = max(moved, top_difference(base, answer, rows, after))
        if not moved > tolerance:
            raise refusal(
                "start",
                f"teacher {name}: a text with {what} ({answer.request.token_ids[0]}) has the same scores ({moved:.3g} "
                "nats): the server drops that token, or had put it there itself.",
                "Send ids as they are: no add_bos, no stripping of special tokens.",
                f"moved {moved:.3g} nats",
                f"more than {tolerance:.2g}",
            )


def check_special(
    name: str, ids: Sequence[int], without: Answer, answers: Sequence[Answer], tolerance: float
) -> ProbeResult:
    """`answers` are to a text with each of the special tokens `ids` in it, `without` to the same without any.

    Raises `ContractError` where the scores after a token are what they are without it.
    """
    least = np.inf
    for token, answer in zip(ids, answers, strict=False):
        moved = float(np.abs(answer.sampled_S - without.sampled_S)[1:].max(initial=0.0))
        if not moved > tolerance:
            raise refusal(
                "special tokens",
                f"teacher {name}: after the special token {token} a text scores what it does without it ({moved:.3g} "
                f"nats apart, expected more than {tolerance:.2g}): the server drops it before it scores.",
                "Have the server score the ids that it is sent, special tokens and all.",
                f"token {token}: {moved:.3g} nats",
                f"more than {tolerance:.2g}",
            )
        least = min(least, moved)
    return ProbeResult("special tokens", f"{len(answers)} of them move what follows by {least:.2g} nats", "each does")


def check_spelling(name: str, pairs: Sequence[tuple[Answer, Answer]], tolerance: float) -> ProbeResult:
    """`pairs` are answers to two token sequences of one text, which end alike. Raises `ContractError`.

    A server that goes by the text gives both the same scores at the end.
    """
    least = np.inf
    for one, other in pairs:
        apart = float(np.abs(one.sampled_S - other.sampled_S).max(initial=0.0))
        if not apart > tolerance:
            raise refusal(
                "spelling",
                f"teacher {name}: two token sequences of one text, {one.request.token_ids[:12].tolist()} and "
                f"{other.request.token_ids[:12].tolist()}, have the same scores at the end ({apart:.3g} nats): it "
                "turns ids into text, and tokenizes that again.",
                "Have the server score the ids that it is sent.",
                f"{apart:.3g} nats apart",
                f"more than {tolerance:.2g}",
            )
        least = min(least, apart)
    return ProbeResult("spelling", f"one text in other tokens: {least:.2g} nats apart or more", "by the ids")
