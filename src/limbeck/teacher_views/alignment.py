"""One text in two tokenizations: the finest groups of tokens that begin and end on the same bytes.

    student   he | llo | wor | ld            ends  2 5 9 10
    teacher   hello |  w | orld              ends  5 7 10       (the blank is the "w"'s)
    groups    ---0--- | ----1-----           ends  5 10

Pure: bytes and offsets, no tokenizer. Offsets are of the text's UTF-8. A token of no bytes belongs to the group that
ends where it stands, or to the first.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from limbeck.records import Ints

NOWHERE = -1  # the end of a token that ends inside what cannot be read
REPLACEMENT = "\ufffd"
Spans: TypeAlias = Sequence[tuple[int, int]]
EMPTY: Mapping[str, Spans] = {}
UNREADABLE = re.compile("[\udc80-\udcff]+")  # bytes that are no UTF-8, as `surrogateescape` has them


@dataclass(frozen=True)
class Readable:
    """What tokens say, as text. Bytes that are no UTF-8 are shown as one U+FFFD a run.

    A character that the text breaks off in is not shown at all.
    """

    text: str
    ends: tuple[int, ...]  # [n] of each token, in the text's UTF-8; NOWHERE inside of what is not shown as it is
    unreadable: tuple[tuple[int, int], ...]  # spans of the text's UTF-8


def readable(pieces: Sequence[bytes]) -> Readable:
    """The text of tokens that say `pieces`.

    >>> readable([b"a", b"\\xc3", b"\\xa9b\\xe2"])
    Readable(text='aéb', ends=(1, 2, -1), unreadable=())
    """
    said = b"".join(pieces)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(said)
    complete = len(said) - len(decoder.getstate()[0])
    raw = said[:complete].decode("utf-8", errors="surrogateescape")
    runs, spans, parts, before, source, target = [], [], [], 0, 0, 0
    for run in UNREADABLE.finditer(raw):
        text = raw[before : run.start()]
        source, target = source + len(text.encode()), target + len(text.encode())
        length = run.end() - run.start()  # a character a byte
        runs.append((source, source + length))
        spans.append((target, target + len(REPLACEMENT.encode())))
        parts += [text, REPLACEMENT]
        before, source, target = run.end(), source + length, spans[-1][1]
    parts.append(raw[before:])
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64).tolist()
    shown = tuple(_shown(end, runs, spans) if end <= complete else NOWHERE for end in ends)
    return Readable("".join(parts), shown, tuple(spans))


def _shown(end: int, runs: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> int:
    """An offset of what was said, as one of what is shown."""
    index = bisect_left(runs, (end, -1))  # the first run that begins at or after it
    if index == 0:
        return end
    run, span = runs[index - 1], spans[index - 1]
    return NOWHERE if end < run[1] else span[1] + end - run[1]


@dataclass(frozen=True, eq=False)
class Aligned:
    """The group of each token; -1 of a token that is in none."""

    student: Ints  # [n]
    teacher: Ints  # [m]
    spans: tuple[tuple[int, int], ...]  # [G] of each group, in the text's UTF-8
    left_out: Mapping[str, int] = field(default_factory=dict)  # tokens of the student that are in none, by reason


def align(student_ends: Sequence[int], teacher_ends: Sequence[int], apart: Mapping[str, Spans] = EMPTY) -> Aligned:
    """Groups of tokens between the offsets at which a token of either side ends.

    Ends are in order, but for NOWHERE. What overlaps a span that is kept `apart`, for a reason, and what comes after
    the last common end, is in no group.

    >>> aligned = align([2, 5, 9, 10], [5, 7, 10])
    >>> aligned.student.tolist(), aligned.teacher.tolist(), aligned.spans
    ([0, 0, 1, 1], [0, 1, 1], ((0, 5), (5, 10)))
    """
    common = sorted(set(student_ends) & set(teacher_ends) - {NOWHERE, 0})
    spans = list(zip([0, *common], common, strict=False))
    reasons = [next((why for why, where in apart.items() if _overlap(span, where)), "") for span in spans]
    kept = [not why for why in reasons]
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int64)
    student, teacher = _places(student_ends, common), _places(teacher_ends, common)
    why_not = Counter([*reasons, "broken_off"][place] for place in student.tolist())
    del why_not[""]
    groups = tuple(span for span, keep in zip(spans, kept, strict=True) if keep)
    return Aligned(number[student], number[teacher], groups, dict(why_not))


def _overlap(span: tuple[int, int], others: Spans) -> bool:
    return any(start < span[1] and span[0] < end for start, end in others)


def _places(ends: Sequence[int], common: Sequence[int]) -> Ints:
    """Which span each token is in."""
    places, before = [], 0
    for end in ends:
        places.append(bisect_right(common, before) if end == NOWHERE else bisect_left(common, end))
        before = before if end == NOWHERE else end
    return np.array(places, dtype=np.int64)
