"""Groups are the finest that say the same bytes on both sides, whatever the text and its two tokenizations."""

from __future__ import annotations

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
    assert b"".join(data[a:b] for a, b in found.spans) == data
    for g, (start, end) in enumerate(found.spans):
        inner = []
        for side, group, places in zip(pieces, groups, ends, strict=True):
            assert b"".join(piece for piece, of in zip(side, group, strict=True) if of == g) == data[start:end]
            inner.append({place for place, of in zip(places, group, strict=True) if of == g and start < place < end})
        assert not inner[0] & inner[1]
    for group in groups:
        assert (np.diff(group) >= 0).all()
        if data:
            assert set(group.tolist()) == set(range(len(found.spans)))


@given(said, cuts)
def test_what_is_shown_is_what_python_shows(data: bytes, places: list[int]) -> None:
    """Every valid byte is shown, a run of invalid ones is one U+FFFD, and ends say the same text before them."""
    pieces = cut(data, places)
    shown = readable(pieces)
    text = shown.text.encode()
    assert text.decode() == shown.text
    assert all(text[a:b].decode() == "\ufffd" for a, b in shown.unreadable)
    source = 0
    for piece, end in zip(pieces, shown.ends, strict=True):
        source += len(piece)
        if end != NOWHERE and not any(a < end for a, _ in shown.unreadable):
            assert text[:end] == data[:source]
    known = [end for end in shown.ends if end != NOWHERE]
    assert known == sorted(known)
    if not shown.unreadable and len(text) == len(data):
        assert text == data


@given(st.text(max_size=8), st.integers(1, 3), st.text(max_size=8), cuts, cuts)
def test_what_cannot_be_read_is_in_no_group_and_the_rest_may_be(
    before: str, bad: int, after: str, ours: list[int], theirs: list[int]
) -> None:
    """Bytes that are no UTF-8 between two texts: they are in no group, and groups number the same on both sides."""
    first = cut(before.encode(), ours)
    shown = readable([*first, *[b"\xff"] * bad, *cut(after.encode(), ours)])
    ends = np.cumsum([len(piece) for piece in cut(shown.text.encode(), theirs)]).tolist()
    found = align(shown.ends, ends, {"unreadable": shown.unreadable})
    assert (found.student[len(first) : len(first) + bad] == -1).all()
    assert sum(found.left_out.values()) == (found.student == -1).sum()
    assert bad <= found.left_out["unreadable"]
    assert not any(start < b and a < end for start, end in found.spans for a, b in shown.unreadable)
    for side in (found.student, found.teacher):
        assert set(side.tolist()) - {-1} == set(range(len(found.spans)))


def test_a_character_that_the_text_breaks_off_in_is_not_shown() -> None:
    shown = readable([b"caf", b"\xc3"])
    assert (shown.text, shown.ends) == ("caf", (3, NOWHERE))
    found = align(shown.ends, [3])
    assert found.student.tolist() == [0, -1]
    assert align(readable([b"ca", b"f\xc3"]).ends, [2, 3]).student.tolist() == [0, -1]


def test_a_character_in_tokens_of_both_sides_is_divided_where_both_divide_it() -> None:
    emoji = "🙂".encode()
    shown = readable([emoji[:2], emoji[2:]])
    assert align(shown.ends, [1, 2, 4]).teacher.tolist() == [0, 0, 1]
    assert align(shown.ends, [1, 4]).teacher.tolist() == [0, 0]


def test_tokens_of_no_bytes_belong_where_they_stand() -> None:
    found = align([0, 1, 1, 2], [1, 2])
    assert found.student.tolist() == [0, 0, 0, 1]
    assert align([], []).spans == ()
    assert align([0], [0]).student.tolist() == [-1]
