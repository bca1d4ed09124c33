"""Whether a server holds the learner's weights, by what both answer for one text."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.engines.weight_check import WeightSyncCheck
from limbeck.errors import EngineError
from limbeck.records import Floats

GENERATOR = np.random.default_rng(0)
BASE = GENERATOR.normal(-2, 1, 64).astype(np.float32)


def checked(noise: float = 0.0, tolerance: float = 0.02) -> WeightSyncCheck:
    one = WeightSyncCheck("engine x at y", tolerance, "Remedy.")
    one.measure_noise_floor([noisy(BASE, noise), noisy(BASE, noise), noisy(BASE, noise)])
    return one


def noisy(values: Floats, size: float) -> Floats:
    return (values + GENERATOR.normal(0, size, len(values))).astype(np.float32)


@pytest.mark.parametrize(("noise", "offset", "step"), [(0, 1e-5, 1e-3), (0, 5e-3, 1e-3), (2e-3, 5e-3, 0.05)])
def test_an_update_that_was_made_passes_and_one_that_was_not_does_not(noise: float, offset: float, step: float) -> None:
    """Also within the tolerance, with a server that always is a little off, and one that repeats itself badly."""
    one, ours = checked(noise), BASE
    bias = noisy(np.zeros(64, np.float32), offset)
    for version in range(5):
        one.check_update(version, ours, noisy(ours + bias, noise))
        last, ours = ours, noisy(ours, step)
    one.tolerance = 1.0
    with pytest.raises(EngineError, match=r"update 5 but did not change: .* moved by .* the server's by .* Remedy\."):
        one.check_update(5, ours, noisy(last + bias, noise))


def test_steps_too_small_to_see_are_judged_together() -> None:
    """Old weights are caught once the learner has moved far enough to tell."""
    one = checked()
    for version in range(11):
        one.check_update(version, BASE + np.float32(1e-5 * version - 1e-6), BASE)
    with pytest.raises(EngineError, match="did not change"):
        one.check_update(11, BASE + np.float32(1.1e-4), BASE)


def test_an_unchanged_learner_says_nothing_about_the_server() -> None:
    one = checked()
    for version in range(3):
        one.check_update(version, BASE, BASE)


@pytest.mark.parametrize("wrong", [0.03, np.nan, np.inf])
def test_other_weights_are_refused(wrong: float) -> None:
    with pytest.raises(EngineError, match=r"does not hold them: a fixed text of 64 tokens .*engine\.tolerance = 0\.02"):
        checked().check_update(0, BASE, BASE + np.float32(wrong))


def test_a_server_is_the_same_within_its_noise() -> None:
    quiet, loud = checked(), checked(noise=1e-2)
    for one in (quiet, loud):
        one.check_update(0, BASE, BASE)
        assert one.is_unchanged(BASE)
    other = noisy(BASE, 5e-3)
    assert not quiet.is_unchanged(other)
    assert loud.is_unchanged(other)


def test_after_a_restart_the_server_may_move_from_anywhere() -> None:
    one = checked(tolerance=5.0)
    one.check_update(0, BASE, BASE)
    one.check_update(1, BASE + np.float32(0.5), BASE + np.float32(0.5))
    one.forget_movement()
    one.check_update(1, BASE + np.float32(0.5), BASE + np.float32(0.5))
