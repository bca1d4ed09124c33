"""Units follow from the requests alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limbeck.records import Key, SampleRequest, Sampling
from limbeck.training.units import plan_units

SAMPLING = Sampling(1.0, 4)


def requests(lengths: list[int], samples: int) -> list[SampleRequest]:
    return [
        SampleRequest(Key(f"p{number}", 0, sample), np.full(length, number), SAMPLING)
        for number, length in enumerate(lengths)
        for sample in range(samples)
    ]


def test_like_lengths_stand_together_and_no_prompt_is_split_that_fits() -> None:
    assert plan_units(requests([5, 2, 3], samples=2), max_rows=4) == [[2, 3, 4, 5], [0, 1]]


def test_a_prompt_of_more_samples_than_rows_is_split() -> None:
    assert plan_units(requests([5, 2], samples=3), max_rows=2) == [[3, 4], [5, 0], [1, 2]]


def test_without_a_limit_all_are_one_unit() -> None:
    assert plan_units(requests([5, 2], samples=2), None) == [[0, 1, 2, 3]]
    assert plan_units([], None) == plan_units([], 4) == []


@given(lengths=st.lists(st.integers(1, 9), max_size=12), samples=st.integers(1, 5), rows=st.integers(1, 7))
def test_every_request_is_in_one_unit_and_none_is_too_large(lengths: list[int], samples: int, rows: int) -> None:
    asked = requests(lengths, samples)
    units = plan_units(asked, rows)
    assert sorted(index for unit in units for index in unit) == list(range(len(asked)))
    assert all(0 < len(unit) <= rows for unit in units)
