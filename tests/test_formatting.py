"""Numbers as people read them."""

from __future__ import annotations

import doctest

import pytest

from limbeck import formatting
from limbeck.formatting import duration, interval, number, significant, with_error


def test_the_examples_hold() -> None:
    assert doctest.testmod(formatting).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0011, "0.0011"),
        (-0.00019, "-0.0002"),
        (-0.00001, "0.0000"),
        (-0.0, "0.0000"),
        (6.9e-18, "0.0000"),
        (-3e-9, "0.0000"),
        (6e-06, "<0.0001"),
        (12.3456, "12.35"),
        (123.456, "123.5"),
        (-1234.56, "-1,235"),
        (64, "64"),
        (0, "0"),
        (float("nan"), "nan"),
        (None, "-"),
    ],
)
def test_numbers_have_neither_a_negative_zero_nor_an_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_rates_keep_the_digits_that_count() -> None:
    assert [significant(x) for x in (1e-05, 0.000123456, 0.0, -0.0, None)] == ["1e-05", "0.000123", "0", "0", "-"]


def test_errors_and_intervals() -> None:
    assert with_error(0.1, 0.02) == "0.1000 ± 0.0200"
    assert with_error(0.1, None) == "0.1000"
    assert interval(0.25, 0.5) == "[0.250, 0.500]"
    assert interval(None, None) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.66, "0.7 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
