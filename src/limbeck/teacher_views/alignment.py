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
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.records import Ints

NOWHERE = -1  # the end of a token that ends inside what cannot be read
REPLACEMENT = "\ufffd"
UNREADABLE = re.compile("[\udc80-\udcff]+")  # bytes that are no UTF-8, as `surrogateescape` has them


@dataclass(frozen=True)
class Readable:
    """What tokens say, as a reader sees it: bytes that are no UTF-8 are one U+FFFD a run."""

    text: str
    ends: tuple[int, ...]  # [n] of each token, in the text's UTF-8; NOWHERE inside of what is not shown as it is


def readable(pieces: Sequence[bytes], cut: bool = False) -> Readable:
    r"""The text of tokens that say `pieces`. A character that a `cut` text breaks off in is not shown at all.

    >>> readable([b"a", b"\xc3", b"\xa9b\xe2"], cut=True)
    Readable(text='aéb', ends=(1, 2, -1))
    >>> readable([b"a", b"\xc3"])
    Readable(text='a�', ends=(1, 4))
    """
    said = b"".join(pieces)
    if cut:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        decoder.decode(said)
        said = said[: len(said) - len(decoder.getstate()[0])]
    raw = said.decode("utf-8", errors="surrogateescape")
    runs: list[tuple[int, int]] = []  # of bytes that are no UTF-8
    shifts = [0]  # of offsets after each
    before, source = 0, 0
    for run in UNREADABLE.finditer(raw):
        source += len(raw[before : run.start()].encode())
        length, before = run.end() - run.start(), run.end()  # a character a byte
        runs.append((source, source + length))
        source += length
        shifts.append(shifts[-1] + len(REPLACEMENT.encode()) - length)
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64).tolist()
    shown = tuple(_shown(end, runs, shifts) if end <= len(said) else NOWHERE for end in ends)
    return Readable(UNREADABLE.sub(REPLACEMENT, raw), shown)


def _shown(end: int, runs: Sequence[tuple[int, int]], shifts: Sequence[int]) -> int:
    """An offset of what was said, as one of what is shown."""
    index = bisect_left(runs, (end, -1))  # runs that begin before it
    return NOWHERE if index and end < runs[index - 1][1] else end + shifts[index]


@dataclass(frozen=True, eq=False)
class Aligned:
    """The group of each token; -1 of a token that is in none."""

    student: Ints  # [n]
    teacher: Ints  # [m]
    sizes: Ints  # [G] bytes of each group

    def without_last(self) -> Aligned:
        """The last group, if there is one, is none."""
        last = len(self.sizes) - 1
        student, teacher = (np.where(side == last, -1, side) for side in (self.student, self.teacher))
        return Aligned(student, teacher, self.sizes[:-1])


def align(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> Aligned:
    """Groups of tokens between the offsets at which a token of either side ends.

    Ends are in order, but for NOWHERE. What comes after the last common end is in no group.

    >>> aligned = align([2, 5, 9, 10], [5, 7, 10])
    >>> aligned.student.tolist(), aligned.teacher.tolist(), aligned.sizes.tolist()
    ([0, 0, 1, 1], [0, 1, 1], [5, 5])
    """
    common = sorted(set(student_ends) & set(teacher_ends) - {NOWHERE, 0})
    number = np.append(np.arange(len(common)), -1)
    sizes: Ints = np.array(common, dtype=np.int64) - np.array([0, *common[:-1]], dtype=np.int64)[: len(common)]
    return Aligned(number[_places(student_ends, common)], number[_places(teacher_ends, common)], sizes)


def _places(ends: Sequence[int], common: Sequence[int]) -> Ints:
    """Which span each token is in; the number of them for what comes after."""
    places, before = [], 0
    for end in ends:
        places.append(bisect_right(common, before) if end == NOWHERE else bisect_left(common, end))
        before = before if end == NOWHERE else end
    return np.array(places, dtype=np.int64)
