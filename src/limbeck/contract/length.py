"""Length: what holds for a short text holds for one as long as training may ask about, at every place of it.

The long text falls into parts that tile it. It is asked again with each part changed, all positions at once: nothing
before the part may move, its first token's score must be what the list had for it, the position after that must move,
and so must the end of the text. Its beginning alone scores what it scores in the whole.

    long = await ask_long(ask, texts, length, 1.0, support)      # at a temperature
    result = check_long(name, long, noise)                       # raises `ContractError`

Noise of single scores hides what a far part does. Then it is looked for in the root mean square over many of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from limbeck.contract.answers import Answer, Asker, Doubles, refusal, top_difference
from limbeck.contract.causality import LEAST_MOVE, TOLERANCE, check_causality, check_listed
from limbeck.contract.texts import RANKS, ProbeTexts
from limbeck.records import ProbeResult, Support, request_of

ENTRIES = 2**15  # of all positions' lists together
FEW = 2  # tokens of a position that are listed of the changed texts
AT_T = 4  # changed texts that are asked at T too
ALIKE = 0.03  # nats on average: a text's length chooses the server's kernels, and they round in other places
NOISY = 1e-4  # nats: noise that a part may hide in


@dataclass(frozen=True, slots=True)
class Long:
    """Answers to the long text, to it again, to its first half, and to the text changed in some parts."""

    base: Answer
    again: Answer
    half: Answer
    parts: Sequence[tuple[int, int]]
    others: Sequence[Answer]
    body: int  # where its end begins

    @property
    def changed(self) -> list[tuple[int, Answer]]:
        """With the place of each change."""
        return [(start, other) for (start, _), other in zip(self.parts, self.others, strict=True)]

    @property
    def noise(self) -> float:
        """Nats by which one text asked twice differs."""
        rows = slice(None)
        apart = float(np.abs(self.base.sampled_S - self.again.sampled_S).max(initial=0.0))
        return max(apart, top_difference(self.base, self.again, rows, rows))


def listed(support: Support, length: int, count: int | None = None) -> Support:
    """What is asked for at each of `length` positions, where a list of so many tokens would be large."""
    if not isinstance(support, int):
        return support
    return max(1, min(support, count or support, max(FEW, ENTRIES // length)))


async def ask_long(ask: Asker, texts: ProbeTexts, length: int, temperature: float, support: Support) -> Long:
    """The whole with lists, the others with short ones."""
    few = listed(support, length, FEW)
    whole, parts = texts.long(length), texts.parts(length)
    (base,) = await ask([request_of(whole, 1, temperature, listed(support, length), "probe-long")])
    changed = [texts.without(base, part, RANKS[n % len(RANKS)]) for n, part in enumerate(parts)]
    unit = [request_of(ids, 1, temperature, few, "probe-long") for ids in (whole, whole[: length // 2 + 1], *changed)]
    again, half, *others = await ask(unit)
    return Long(base, again, half, parts, others, texts.body(length))


async def ask_long_again(ask: Asker, long: Long, temperature: float) -> Long:
    """The same text at another temperature, and some of its changed forms."""
    some = sorted({int(n) for n in np.linspace(0, len(long.parts) - 1, AT_T)})
    chosen = [long.base, long.half, *(long.others[n] for n in some)]
    base, half, *others = await ask([replace(answer.request, temperature=temperature) for answer in chosen])
    return Long(base, base, half, [long.parts[n] for n in some], others, long.body)


def check_long(name: str, long: Long, noise: float) -> ProbeResult:
    """`noise` in nats, of other texts. Raises `ContractError`."""
    check_places(name, long, TOLERANCE + 4 * max(noise, long.noise))
    return _check_end(name, long)


def check_places(name: str, long: Long, tolerance: float) -> None:
    """Alignment at every part, and of the beginning alone. Raises `ContractError`."""
    check_causality(name, long.base, long.changed, tolerance)
    check_listed(name, long.base, long.changed, tolerance)
    check_beginning(name, long.base, long.half, tolerance)


def check_beginning(name: str, whole: Answer, part: Answer, tolerance: float) -> None:
    """What the text begins with scores alone what it does there. Raises `ContractError`."""
    ours, theirs = whole.request.token_ids, part.request.token_ids
    shorter = min(len(ours), len(theirs))
    same = int(np.argmin(np.append(ours[:shorter] == theirs[:shorter], False)))
    rows = slice(0, max(0, same - 1))
    apart = float(_differences(whole, part, rows).mean()) if same > 1 else 0.0
    limit = ALIKE + tolerance
    if not apart <= limit:
        raise refusal(
            "length",
            f"teacher {name}: the first {same} tokens of a text of {len(ours)} score {apart:.3g} nats apart on average "
            f"from what they do in a text of {len(theirs)} (expected at most {limit:.2g}). It scores long texts "
            "otherwise than short ones, by another scale, temperature or model.",
            "Look at what the server does by length: rope scaling, chunked prefill, routing.",
            f"{apart:.3g} nats between two lengths",
            f"at most {limit:.2g}",
        )


def _differences(a: Answer, b: Answer, rows: slice) -> Doubles:
    """Nats, of the text's own tokens and of the most likely ones in order."""
    found = [np.abs(a.sampled_S[rows] - b.sampled_S[rows])]
    if a.top_SK is not None and b.top_SK is not None:
        k = min(a.top_SK.shape[1], b.top_SK.shape[1])
        found.append(np.abs(a.top_SK[rows, :k] - b.top_SK[rows, :k]).ravel())
    return np.concatenate(found)


def _check_end(name: str, long: Long) -> ProbeResult:
    """Every part moves the scores of the text's last tokens."""
    length, rows = len(long.base.request.token_ids), slice(long.base.row(long.body), None)
    of_noise = _differences(long.base, long.again, slice(None))
    noise, count = _rms(of_noise), len(_differences(long.base, long.again, rows))
    threshold = max(LEAST_MOVE, noise * (1 + 4 / count**0.5))
    moves = [_rms(_differences(long.base, other, rows)) for other in long.others]
    unseen = [part for part, moved in zip(long.parts, moves, strict=True) if not moved > threshold]
    if unseen and noise < NOISY:
        start, end = unseen[0]
        moved = moves[list(long.parts).index((start, end))]
        raise refusal(
            "length",
            f"teacher {name}: in a text of {length} tokens, the scores of the last {length - long.body} moved by "
            f"{moved:.3g} nats with tokens {start} to {end - 1} (expected more than {threshold:.2g}; the noise of one "
            f"text asked twice is {noise:.2g}). It cuts texts, or reads a window of them.",
            "Raise the server's context length, and switch off truncation and sliding windows that are not the "
            "model's own.",
            f"{moved:.3g} nats by tokens {start} to {end - 1}",
            f"more than {threshold:.2g}",
        )
    if unseen:
        measured = (
            f"not shown for {len(unseen)} of {len(moves)} parts of {length} tokens: they move the end by less than "
            f"{threshold:.2g} nats, and the noise of one text asked twice is {noise:.2g}"
        )
        return ProbeResult("length", measured, "all are read; a deterministic mode of the server would show it")
    return ProbeResult(
        "length", f"{length} tokens in {len(moves)} parts: each moves the end by {min(moves):.2g} nats", "all are read"
    )


def _rms(values: Doubles) -> float:
    return float(np.sqrt((values**2).mean())) if len(values) else 0.0
