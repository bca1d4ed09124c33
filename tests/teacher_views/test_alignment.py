"""Groups are the finest that say the same bytes on both sides, whatever the text and its two tokenizations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.teacher_views.alignment import NOWHERE, align, readable

said = st.one_of(st.binary(max_size=24), st.text(max_size=12).map(str.encode))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` in pieces, some of which may be empty."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


cuts = st.lists(st.integers(0, 100), max_size=8)


@given(st.text(max_size=12), cuts, cuts)
def test_groups_say_the_same_bytes_and_are_the_finest(text: str, ours: list[int], theirs: list[int]) -> None:
    """Against the definition: all of the text is in groups, and no inner end of a group is common to both sides."""
    data = text.encode()
    pieces = [cut(data, ours), cut(data, theirs)]
    ends = [np.cumsum([len(piece) for piece in side]).tolist() for side in pieces]
    found = align(*ends)
    groups = [found.student, found.teacher]
    edges = [0, *np.cumsum(found.sizes).tolist()]
    assert edges[-1] == len(data)
    for g, (start, end) in enumerate(pairwise(edges)):
        inner = []
        for side, group, places in zip(pieces, groups, ends, strict=True):
            assert b"".join(piece for piece, of in zip(side, group, strict=True) if of == g) == data[start:end]
            inner.append({place for place, of in zip(places, group, strict=True) if of == g and start < place < end})
        assert not inner[0] & inner[1]
    for group in groups:
        assert (np.diff(group) >= 0).all()
        if data:
            assert set(group.tolist()) == set(range(len(found.sizes)))


@given(said, cuts, st.booleans())
def test_what_is_shown_is_what_a_reader_sees(data: bytes, places: list[int], was_cut: bool) -> None:
    """Every valid byte is shown, a run of others is one U+FFFD; an end after either has the same text before it."""
    pieces = cut(data, places)
    shown = readable(pieces, was_cut)
    known = [end for end in shown.ends if end != NOWHERE]
    assert known == sorted(known)
    assert was_cut or known[-1:] == [len(shown.text.encode())]
    source = 0
    for piece, end in zip(pieces, shown.ends, strict=True):
        source += len(piece)
        if end != NOWHERE:
            runs = re.sub("\ufffd+", "\ufffd", shown.text.encode()[:end].decode(errors="replace"))
            assert runs == re.sub("\ufffd+", "\ufffd", data[:source].decode(errors="replace"))


@given(st.text(max_size=8), st.integers(1, 3), st.text(max_size=8), cuts, cuts)
def test_what_cannot_be_read_is_one_group_with_its_replacement(
    before: str, bad: int, after: str, ours: list[int], theirs: list[int]
) -> None:
    """Bytes that are no UTF-8 between two texts: all is in groups, those bytes in one."""
    first = cut(before.encode(), ours)
    shown = readable([*first, *[b"\xff"] * bad, *cut(after.encode(), ours)])
    assert shown.text == before + "\ufffd" + after
    ends = np.cumsum([len(piece) for piece in cut(shown.text.encode(), theirs)]).tolist()
    found = align(shown.ends, ends)
    assert len(set(found.student[len(first) : len(first) + bad].tolist())) == 1
    for side in (found.student, found.teacher):
        assert set(side.tolist()) == set(range(len(found.sizes)))


def test_a_character_that_a_response_was_cut_off_in_is_not_shown() -> None:
    shown = readable([b"caf", b"\xc3"], cut=True)
    assert (shown.text, shown.ends) == ("caf", (3, NOWHERE))
    assert align(shown.ends, [3]).student.tolist() == [0, -1]
    assert align(readable([b"ca", b"f\xc3"], cut=True).ends, [2, 3]).student.tolist() == [0, -1]
    assert align(shown.ends, [3]).without_last().student.tolist() == [-1, -1]


def test_a_character_in_tokens_of_both_sides_is_divided_where_both_divide_it() -> None:
    emoji = "🙂".encode()
    shown = readable([emoji[:2], emoji[2:]])
    assert align(shown.ends, [1, 2, 4]).teacher.tolist() == [0, 0, 1]
    assert align(shown.ends, [1, 4]).teacher.tolist() == [0, 0]


def test_tokens_of_no_bytes_belong_where_they_stand() -> None:
    found = align([0, 1, 1, 2], [1, 2])
    assert found.student.tolist() == [0, 0, 0, 1]
    assert len(align([], []).sizes) == 0
    assert align([0], [0]).student.tolist() == [-1]
