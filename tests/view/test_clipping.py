"""What a y axis leaves out, so that the rest can be read."""

from __future__ import annotations

from limbeck.view.clipping import Line, axis_limits, beyond_limits

CALM = [0.5 - 0.01 * i for i in range(20)]


def test_a_jump_is_left_out_and_what_is_newest_is_not() -> None:
    jump = [*CALM[:10], 9.0, *CALM[11:]]
    assert axis_limits([Line("a", jump)]) == (CALM[-1], CALM[0])
    assert axis_limits([Line("a", [*CALM, 9.0])]) is None
    assert axis_limits([Line("a", [9.0, 0.1, 0.2])]) is None, "of few none is an outlier"
    assert axis_limits([Line("a", jump, points=True)]) is None
    assert axis_limits([Line("a", [-value for value in jump])]) == (-CALM[0], -CALM[-1])
    low, high = [v - 0.1 for v in jump], [v + 0.1 for v in jump]
    assert axis_limits([Line("a", jump, (low, high))]) == (low[-1], high[0])


def test_no_value_is_beyond_an_axis_that_a_band_has_made_wide_enough() -> None:
    values, errors = [*CALM], [0.01] * len(CALM)
    values[12], errors[3] = 2.0, 2.5
    band = [v - e for v, e in zip(values, errors, strict=True)], [v + e for v, e in zip(values, errors, strict=True)]
    limits = axis_limits([Line("a", values, band)])
    assert limits == (CALM[3] - 2.5, CALM[3] + 2.5), "the outlier's own band is not in it"
    assert not beyond_limits([Line("a", values, band)], limits, str.upper)


def test_runs_far_from_the_others_are_left_out_where_they_are_fewer() -> None:
    def run(name: str, most: float) -> Line:
        return Line(name, [*CALM, most])

    calm = [run(name, 0.4) for name in "abc"]
    lines = [*calm, run("x", 8.0), run("y", 9.0)]
    limits = axis_limits(lines)
    assert limits == (CALM[-1], CALM[0])
    assert beyond_limits(lines, limits, str.upper) == ["1 value of X, up to 8", "1 value of Y, up to 9"]
    assert axis_limits([calm[0], run("x", 9.0)]) is None, "neither of two is the other's outlier"
    assert axis_limits([*calm, run("x", 0.9)]) is None, "it is worse, and no more"
    assert axis_limits([*calm, Line("x", [-5.0])]) == (CALM[-1], CALM[0])


def test_nothing_is_left_out_of_nothing() -> None:
    assert axis_limits([]) is None
    assert axis_limits([Line("a", [float("nan")])]) is None
    assert axis_limits([Line("a", [1.0] * 20)]) is None
