"""The certificate of `rescale` holds for every distribution, and is as tight as anything could be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.teachers.rescale import NotADistributionError, rescale

TEMPERATURES = (0.05, 0.3, 0.5, 0.7, 1.0, 1.3, 2.0, 5.0)


def log_softmax(x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    x = x.astype(np.longdouble) / temperature
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


@st.composite
def worlds(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """Logits [V], K, a sampled token: from two tokens up, flat to peaky, with ties."""
    size = draw(st.integers(2, 60))
    scale = draw(st.sampled_from([0.0, 0.1, 1.0, 4.0, 12.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = scale * rng.standard_normal(size)
    if draw(st.booleans()):
        logits = np.round(logits)  # ties
    return logits, draw(st.integers(1, size)), draw(st.integers(0, size - 1))


def certified(logits: np.ndarray, k: int, sampled: int, temperature: float, extra: int = 0, noise: float = 0.0):
    """What a server would print of these logits, rescaled; and the truth of the same entries."""
    logp = log_softmax(logits)
    printed = (logp + noise).astype(np.float32)  # `noise` shifts all alike, as a rounded normaliser does
    top = np.argsort(-logp, kind="stable")[:k]
    rescaled = rescale(
        printed[top][None], printed[[sampled]], np.array([sampled in top]), temperature, len(logits) + extra
    )
    truth = log_softmax(logits, temperature)
    return rescaled, truth[top], truth[sampled]


@given(worlds(), st.sampled_from(TEMPERATURES), st.sampled_from([0, 1, 50]), st.floats(-1e-6, 1e-6))
@settings(max_examples=600, deadline=None)
def test_the_truth_is_inside(world, temperature: float, extra: int, noise: float) -> None:
    logits, k, sampled = world
    rescaled, top, of_sampled = certified(logits, k, sampled, temperature, extra, noise)
    bound = rescaled.half_width_S[0]
    assert np.abs(rescaled.top_SK[0].astype(np.longdouble) - top).max() <= bound
    assert abs(np.longdouble(rescaled.sampled_S[0]) - of_sampled) <= bound


@given(worlds(), st.sampled_from(TEMPERATURES))
@settings(max_examples=200, deadline=None)
def test_the_whole_vocabulary_leaves_only_rounding(world, temperature: float) -> None:
    logits, _, sampled = world
    rescaled, _, _ = certified(logits, len(logits), sampled, temperature)
    assert rescaled.half_width_S[0] <= 1e-4 / min(temperature, 1.0)


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("tail", ["uniform", "concentrated"])
def test_both_bounds_are_reached(temperature: float, tail: str) -> None:
    """Tails that are uniform, and tails that are as concentrated as allowed, sit at an end of the interval.

    A bound that was swapped, or looser than it need be, fails here.
    """
    cap = 0.1
    rest = np.full(8, 0.25 / 8) if tail == "uniform" else np.array([cap, cap, 0.05, *[1e-12] * 5])
    pi = np.array([0.45, 0.2, cap, *rest])
    top, truth = np.log(pi[:3]), log_softmax(np.log(pi), temperature)
    rescaled = rescale(top[None], top[:1], np.array([True]), temperature, len(pi), rounding=0.0)
    distance = abs(float(rescaled.sampled_S[0] - truth[0]))
    assert distance == pytest.approx(float(rescaled.half_width_S[0]), rel=2e-3, abs=2e-6)


def test_the_direction_depends_on_the_temperature() -> None:
    """A concentrated tail makes Z larger below T = 1 and smaller above it."""
    pi = np.array([0.6, 0.2, 0.19, 0.005, 0.005])
    for temperature, sign in ((0.5, -1), (2.0, 1)):
        rescaled = rescale(np.log(pi[None, :2]), np.log(pi[:1]), np.array([True]), temperature, 5)
        truth = log_softmax(np.log(pi), temperature)[0]
        assert np.sign(truth - rescaled.sampled_S[0]) == sign


def test_a_known_sampled_token_outside_the_top_tightens_the_tail() -> None:
    pi = np.array([0.5, 0.3, 0.15, *[0.05 / 997] * 997])
    top = np.log(pi[None, :2])
    without = rescale(top, top[:, 0], np.array([True]), 1.3, 1000)
    with_it = rescale(top, np.log(pi[2:3]), np.array([False]), 1.3, 1000)
    assert with_it.half_width_S[0] < 0.5 * without.half_width_S[0]


def test_temperature_one_changes_nothing() -> None:
    pi = np.array([0.5, 0.3, 0.15, 0.05])
    rescaled = rescale(np.log(pi[None, :2]), np.log(pi[3:]), np.array([False]), 1.0, 4)
    np.testing.assert_allclose(rescaled.top_SK[0], np.log(pi[:2]), atol=1e-5)
    assert rescaled.half_width_S[0] < 2e-5


def test_a_larger_vocabulary_only_widens() -> None:
    pi = np.array([0.6, 0.2, 0.1, 0.1])
    for temperature in (0.7, 1.5):
        widths = [
            rescale(np.log(pi[None, :2]), np.log(pi[:1]), np.array([True]), temperature, v).half_width_S[0]
            for v in (4, 10, 1000)
        ]
        assert widths == sorted(widths)


@pytest.mark.parametrize(
    ("top", "sampled", "inside", "vocabulary", "says"),
    [
        ([0.7, 0.5], 0.7, True, 10, "above 1"),
        ([0.3, 0.1], 0.3, True, 4, "more than"),  # 0.6 left for two tokens of at most 0.1
        ([0.5, 0.2], 0.25, False, 10, "not among the top"),
        ([0.5, np.nan], 0.5, True, 10, "finite"),
        ([0.5, 0.0], 0.5, True, 10, "finite"),
        ([1.5, 0.1], 0.1, True, 10, "at most 0"),
    ],
)
def test_what_cannot_be_a_distribution_is_refused(top, sampled, inside, vocabulary, says: str) -> None:
    with np.errstate(divide="ignore"), pytest.raises(NotADistributionError, match=says):
        rescale(np.log([top]), np.log([sampled]), np.array([inside]), 0.7, vocabulary)


def test_a_baked_distribution_taken_for_one_at_temperature_one_is_wrong() -> None:
    """Why the method must be proven first: the power of a power is another temperature, with no warning."""
    logits = np.array([3.0, 1.0, 0.0, -1.0])
    sharpened = log_softmax(logits, 0.7)
    rescaled = rescale(sharpened[None, :3], sharpened[:1], np.array([True]), 0.7, 4)
    assert abs(rescaled.sampled_S[0] - log_softmax(logits, 0.7)[0]) > rescaled.half_width_S[0]


@pytest.mark.parametrize("temperature", [0.5, 1.3, 2.0])
@pytest.mark.parametrize("k", [1, 3])
def test_which_positions_are_certain_enough_does_not_depend_on_the_sampled_token(temperature: float, k: int) -> None:
    """Enumerated over every token that may be sampled. The tail is uneven, so that its tokens tell differently much."""
    logp = log_softmax(np.array([2.0, 1.5, 1.0, 0.9, 0.3, -0.5, -2.0]))
    top = np.argsort(-logp)[:k]
    widths, own = [], []
    for sampled in range(len(logp)):
        rescaled = rescale(logp[top][None], logp[[sampled]], np.array([sampled in top]), temperature, len(logp))
        widths.append(float(rescaled.prefix_width_S[0]))
        own.append(float(rescaled.half_width_S[0]))
        assert rescaled.temperature == temperature
    assert len(set(widths)) == 1
    assert min(own) < 0.9 * widths[0]  # the sampled token's own certificate is narrower: nothing may be chosen by it
    assert max(own) <= widths[0] + 1e-5


@pytest.mark.parametrize("limit", [0.005, 0.02, 0.1])
def test_the_expected_gradient_of_chosen_positions_is_that_of_all_samples(limit: float) -> None:
    """E over y of 1[valid] grad log p(y) is 0 where validity looks at the prefix alone; by the own width it is not."""
    teacher, student = (
        log_softmax(np.array([1.2, 1.0, 0.8, 0.2, -0.6])),
        log_softmax(np.array([0.1, 0.5, 0.2, 0.9, 0.4])),
    )
    p, top = np.exp(student), np.argsort(-teacher)[:2]
    by_prefix, by_own = np.zeros(len(p)), np.zeros(len(p))
    for y in range(len(p)):
        rescaled = rescale(teacher[top][None], teacher[[y]], np.array([y in top]), 1.6, len(p))
        score_y = (np.arange(len(p)) == y) - p  # grad log p(y) w.r.t. the logits
        by_prefix += p[y] * bool(rescaled.prefix_width_S[0] <= limit) * score_y
        by_own += p[y] * bool(rescaled.half_width_S[0] <= limit) * score_y
    np.testing.assert_allclose(by_prefix, 0.0, atol=1e-12)
    if limit == 0.02:
        assert np.abs(by_own).max() > 0.01  # what the own width would have done
