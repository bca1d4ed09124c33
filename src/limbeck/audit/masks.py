"""What the loss was taken over: prompts, padding, ends, truncated rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.audit.dump import Row
from limbeck.audit.recompute import Curves
from limbeck.audit.report import Finding, NotChecked, since
from limbeck.records import Mask

FEW = 0.01  # share of trained tokens below which nothing is said
SURPRISE = 6.0  # standard errors
EXCESS = 0.75  # nats a token that prompts cost more than samples, at least


def first_stop(row: Row, stops: frozenset[int]) -> int | None:
    """The place of the response's first stop token."""
    ids = row.token_ids[max(1, row.start) :]
    places = np.flatnonzero(np.isin(ids, list(stops)))
    return None if not len(places) else int(places[0]) + max(1, row.start)


def padding_of(rows: Sequence[Row], stops: frozenset[int], pad: int | None) -> list[Mask]:
    """[L] of each row: what is padding after the response's end.

    A run of one id up to the end of the row, after a stop token, whatever the tokenizer calls its padding: sampling
    ends with the first stop token. Or a run of the padding token, which nobody samples.
    """
    found = []
    for row in rows:
        ids, marked = row.token_ids, np.zeros(len(row.token_ids), bool)
        last = int(ids[-1])
        run = len(ids) - 1
        while run > max(1, row.start) and ids[run - 1] == last:
            run -= 1
        after_stop = run > max(0, row.start) and int(ids[run - 1]) in stops
        if last in stops and not after_stop and run >= max(1, row.start):
            run, after_stop = run + 1, True  # the first of them is the end itself
        padded = last == pad or (after_stop and (last in stops or len(ids) - run > 1))
        if padded and (last not in stops or after_stop):
            marked[run:] = True
        found.append(marked)
    return found


def sampled_of(rows: Sequence[Row], stops: frozenset[int], pad: int | None) -> list[Mask]:
    """[L] of each row: the trained tokens that were sampled, which are neither the prompt's nor padding."""
    return [
        row.trained & ~padding & (np.arange(len(row.token_ids)) >= row.start)
        for row, padding in zip(rows, padding_of(rows, stops, pad), strict=True)
    ]


def check_prompt(rows: Sequence[Row]) -> list[Finding]:
    """Tokens of the prompt that are in the loss, where the dump says how long the prompt is."""
    inside = [int(row.mask[: row.start].sum()) if row.mask is not None else 0 for row in rows]
    trained = sum(int(row.trained.sum()) for row in rows)
    share = sum(inside) / max(1, trained)
    if share <= FEW:
        return []
    bad = [index for index, count in enumerate(inside) if count]
    return [
        _prompt(
            share,
            f"{share:.1%} of the trained tokens are of the prompt, in {len(bad)} of {len(rows)} rows.",
            since(rows, _begins(bad, range(len(rows)))),
        )
    ]


def _prompt(share: float, text: str, start: dict[str, int | None]) -> Finding:
    return Finding(
        "prompt_in_mask",
        share,
        0.0,
        text,
        "the loss mask is the attention mask, or begins too early",
        "train on the tokens that the student sampled, and on no others",
        **start,
    )


def _begins(bad: Sequence[int], could: Sequence[int]) -> int:
    """Where a fault begins: 0 unless rows that `could` have it precede the first bad one, and most after it have it."""
    first = bad[0]
    late = first > could[0] and len(bad) >= 0.5 * sum(index >= first for index in could)
    return first if late else 0


def check_surprising_prompt(rows: Sequence[Row], curves: Curves, beta: float) -> list[Finding]:
    """Leading trained tokens that the student would not have sampled: a prompt that is taken for a response.

    Of a sampled token, -log p is the entropy on average. Of a token of a prompt it is far more. The place up to which
    tokens surprise is the one with the largest sum.
    """
    excess: list[tuple[int, int, float, float]] = []
    rest = rest_count = 0.0
    for index, row in enumerate(rows):
        places = np.flatnonzero(row.trained)
        if curves.first[index] < 0 or len(places) < 4:
            continue
        state = curves.first[index] + places - 1
        over = -curves.logprob(state, beta) - curves.entropy(state, beta)
        sums = np.cumsum(over - EXCESS / 2)
        cut = int(np.argmax(sums)) + 1
        if sums[cut - 1] > 0 and cut < len(places):
            head, spread = float(over[:cut].sum()), float(np.sqrt((curves.spread_N[state[:cut]] ** 2).sum()))
            excess.append((index, cut, head, spread))
            rest, rest_count = rest + float(over[cut:].sum()), rest_count + len(over) - cut
        else:
            excess.append((index, 0, 0.0, 0.0))
    loud = [item for item in excess if item[1] >= 2 and item[2] > 5 * item[3] and item[2] / item[1] > EXCESS]
    if len(loud) < max(3, 0.25 * len(excess)) or rest > EXCESS / 4 * rest_count:
        return []  # where the others surprise too, another model sampled all of them
    tokens, trained = sum(cut for _, cut, _, _ in loud), sum(int(row.trained.sum()) for row in rows)
    text = (
        f"the first {tokens / len(loud):.0f} trained tokens of {len(loud)} rows were not sampled by this student: they "
        f"cost {sum(item[2] for item in loud) / tokens:.2f} nats each beyond its entropy, the others do not."
    )
    return [_prompt(tokens / max(1, trained), text, since(rows, _begins([item[0] for item in loud], range(len(rows)))))]


def check_padding(
    rows: Sequence[Row], curves: Curves, stops: frozenset[int], pad: int | None
) -> tuple[list[Finding], list[NotChecked]]:
    """Padding that is in the loss, where it is more than a student would have sampled by itself."""
    marked = padding_of(rows, stops, pad)
    inside = [int((mask & row.trained).sum()) for row, mask in zip(rows, marked, strict=True)]
    bad = [index for index, count in enumerate(inside) if count]
    left = [int((mask & row.trained)[: row.start].sum()) for row, mask in zip(rows, marked, strict=True)]
    share = sum(inside) / max(1, sum(int(row.trained.sum()) for row in rows))
    if share <= FEW / 2 or not bad or any(left):
        return [], []
    variance = likely = 0.0
    for index, row in enumerate(rows):  # rows that would end so by chance
        if curves.first[index] >= 0:
            p = float(curves.pad_N[curves.first[index] + len(row.token_ids) - 2])
            likely, variance = likely + p, variance + p * (1 - p)
    if not curves.served and len(bad) < likely + 5 * np.sqrt(variance) + 2 and sum(inside) < 3 * len(bad):
        return [], [
            NotChecked("padding_in_mask", f"{len(bad)} rows end in the padding token, which the student may sample")
        ]
    start = since(rows, _begins(bad, [index for index, mask in enumerate(marked) if mask.any()]))
    return [
        Finding(
            "padding_in_mask",
            share,
            0.0,
            f"{share:.1%} of the trained tokens are padding, in {len(bad)} of {len(rows)} rows.",
            "the loss mask is as wide as the batch, or the padding token is the end token and both are kept",
            "end the mask with the first stop token, and count only what is in it",
            **start,
        )
    ], []


def check_end(
    rows: Sequence[Row], curves: Curves, stops: frozenset[int], pad: int | None
) -> tuple[list[Finding], list[NotChecked]]:
    """The end token, which must be trained: without it the student never learns to stop."""
    if not stops:
        return [], [NotChecked("end_not_in_mask", "the student's folder names no stop token")]
    ends = [(index, place) for index, row in enumerate(rows) if (place := first_stop(row, stops)) is not None]
    ended = [(i, place) for i, place in ends if rows[i].trained.any() and _is_end(rows[i], place)]
    bad = [i for i, place in ended if not rows[i].trained[place]]
    if ended and len(bad) > 0.1 * len(ended):
        return [
            _end(
                len(bad) / len(ended),
                f"{len(bad)} of {len(ended)} rows end with a stop token that is not in the mask.",
                since(rows, _begins(bad, [index for index, _ in ended])),
            )
        ], []
    stopped = [index for index, row in enumerate(rows) if row.finish == "stop"]
    without = [index for index in stopped if first_stop(rows[index], stops) is None]
    if stopped and len(without) > 0.5 * len(stopped):
        text = f"{len(without)} of {len(stopped)} rows that stopped have no stop token at all."
        return [_end(len(without) / len(stopped), text, since(rows, _begins(without, stopped)))], []
    if ended or stopped:
        return [], []
    return _dropped_end(rows, curves)


def _is_end(row: Row, place: int) -> bool:
    """Whether nothing but untrained tokens, or copies of it, follow a stop token."""
    tail = row.token_ids[place + 1 :]
    return not len(tail) or not row.trained[place + 1 :].any() or bool((tail == tail[-1]).all())


def _dropped_end(rows: Sequence[Row], curves: Curves) -> tuple[list[Finding], list[NotChecked]]:
    """No row has a stop token: whether rows that are shorter than the longest end where a stop was likely."""
    unknown = NotChecked("end_not_in_mask", "no row has a stop token, and none is short where one was likely")
    lengths = [int(row.trained.sum()) for row in rows]
    short = [
        i for i, n in enumerate(lengths) if 0 < n < max(lengths) and curves.first[i] >= 0 and rows[i].finish is None
    ]
    if curves.served or len(short) < 8:
        return [], [unknown]
    at_end = np.asarray([curves.stop_N[curves.first[i] + len(rows[i].token_ids) - 1] for i in short])
    if float(np.median(at_end)) < 0.5:
        return [], [unknown]
    text = f"{len(short)} rows end early without a stop token, where the student stops with {np.median(at_end):.2f}."
    return [_end(len(short) / len(rows), text, since(rows, 0))], []


def _end(share: float, text: str, start: dict[str, int | None]) -> Finding:
    return Finding(
        "end_not_in_mask",
        share,
        0.0,
        text,
        "the padding token is the end token and both are masked, or it was stripped",
        "keep the stop token in the response and in the mask: it is a token that the student sampled",
        **start,
    )


def check_truncation(
    rows: Sequence[Row], stops: frozenset[int], pad: int | None
) -> tuple[list[Finding], list[NotChecked]]:
    """Truncated rows that are left out of the loss: then only short answers are learned from."""
    cut = [index for index, row in enumerate(rows) if row.finish == "length"]
    whole = [index for index, row in enumerate(rows) if row.finish == "stop"]
    if not cut or not whole:
        why = "the dump does not say which rows were truncated" if not whole else "no row was truncated"
        return [], [] if whole else [NotChecked("truncation_bias", why)]
    learned = [bool(mask.any()) for mask in sampled_of(rows, stops, pad)]
    dropped = [index for index in cut if not learned[index]]
    kept = sum(learned[index] for index in whole) / len(whole)
    share = len(dropped) / len(cut)
    if share < 0.1 or kept - (1 - share) < 0.1:
        return [], []
    return [
        Finding(
            "truncation_bias",
            share,
            0.0,
            f"{len(dropped)} of {len(cut)} truncated rows are not trained on, {kept:.0%} of the others are.",
            "overlong samples are filtered or masked",
            "train on the tokens of truncated rows too: each is a sample of its own prefix",
            **since(rows, _begins(dropped, cut)),
        )
    ], []
