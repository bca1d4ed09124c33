"""How long the rest of a run takes, by a clock that the test turns."""

from __future__ import annotations

import pytest

from limbeck.trackers.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_after_two_steps_the_first_one_and_evaluations_aside() -> None:
    clock = Clock()
    pace = Pace(every=10, clock=clock)
    clock.now += 60  # loading is no part of a run
    pace.started(0, 35)
    clock.now += 5
    pace.evaluated()
    clock.now += 30  # the first step compiles
    pace.stepped(1)
    assert pace.left is None
    assert pace.forecast() is None
    clock.now += 2
    pace.stepped(2)
    assert pace.left == pytest.approx(33 * 2 + 4 * 5), "evaluations at 10, 20, 30 and 35"
    assert pace.forecast() == "about 1 min 26 s left: 33 steps of 2.0 s, 4 evaluations of 5.0 s"
    clock.now += 4
    pace.stepped(3)
    assert pace.left == pytest.approx(32 * 3 + 4 * 5)
    assert pace.forecast() is None, "once"


def test_a_resumed_run_counts_what_is_left_of_it() -> None:
    clock = Clock()
    pace = Pace(clock=clock)
    pace.started(10, 13)
    for step, seconds in ((11, 9), (12, 1)):
        clock.now += seconds
        pace.stepped(step)
    assert pace.forecast() == "about 1.0 s left: 1 step of 1.0 s", "how long an evaluation takes is not known"
    clock.now += 1
    pace.stepped(13)
    assert pace.left is None


@pytest.mark.parametrize(
    ("every", "step", "steps", "left"), [(0, 2, 9, 1), (3, 2, 9, 3), (3, 3, 9, 2), (3, 2, 10, 4), (50, 2, 9, 1)]
)
def test_evaluations_that_are_left(every: int, step: int, steps: int, left: int) -> None:
    pace = Pace(every)
    pace.started(step, steps)
    assert pace._evaluations_left() == left
    assert left == sum(s == steps or bool(every and s % every == 0) for s in range(step + 1, steps + 1))
