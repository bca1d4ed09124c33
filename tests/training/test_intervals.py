"""The statistics of rewards: intervals that fit what they are of, and pass@k."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import NonFiniteError
from limbeck.training.intervals import pass_at_k, summarise_rewards, t_interval, t_quantile, wilson


class TestWilson:
    def test_against_the_published_table(self) -> None:
        """Newcombe 1998, table I, method 3: 81/263 gives 0.2553 to 0.3662."""
        assert wilson(81 / 263, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
        assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
        assert wilson(1.0, 20) == (pytest.approx(1 - 0.1611, abs=1e-4), 1.0)

    @pytest.mark.parametrize("mean", [-0.5, 1.01])
    def test_what_is_no_share_is_refused(self, mean: float) -> None:
        with pytest.raises(ValueError, match=r"a share in \[0, 1\]"):
            wilson(mean, 20)


class TestT:
    @pytest.mark.parametrize(
        ("freedom", "t"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (30, 2.0423), (1000, 1.9623)]
    )
    def test_quantiles_are_those_of_the_tables(self, freedom: int, t: float) -> None:
        assert t_quantile(freedom) == pytest.approx(t, rel=1e-4)

    def test_it_covers_as_often_as_it_says(self) -> None:
        rng = random.Random(0)
        hits = 0
        for _ in range(400):
            low, high = t_interval([rng.gauss(-3.0, 2.0) for _ in range(8)])
            hits += low <= -3.0 <= high
        assert 0.92 < hits / 400 < 0.98


class TestSummary:
    def test_shares_keep_wilsons_interval(self) -> None:
        summary = summarise_rewards([[1, 0, 0, 0], [1, 1, 1, 1]])
        assert summary.mean == pytest.approx(0.625)
        assert summary.interval == wilson(0.625, 2)
        assert summary.pass_at == {1: pytest.approx(0.625), 2: pytest.approx(0.75), 4: pytest.approx(1.0)}
        assert summary.extent is None

    def test_rewards_outside_of_0_and_1_get_an_interval_around_their_mean(self) -> None:
        """Wilson's, of a mean clipped to 0, was [0, 0.49] around -0.5."""
        rows = [[-1.0, 0.0], [-1.0, -0.5], [0.0, -0.5], [-0.5, -0.5]]
        summary = summarise_rewards(rows)
        assert summary.mean == -0.5
        means = [statistics.fmean(row) for row in rows]
        half = 3.18245 * statistics.stdev(means) / 2
        assert summary.interval == (pytest.approx(-0.5 - half, rel=1e-4), pytest.approx(-0.5 + half, rel=1e-4))
        assert summary.values()["accuracy/min"] == -1.0
        assert summary.values()["accuracy/max"] == 0.0

    def test_one_prompt_has_no_interval(self) -> None:
        for rows in ([[1.0, 0.0]], [[-3.0, 5.0]]):
            values = summarise_rewards(rows).values()
            assert "accuracy" in values
            assert "accuracy/low" not in values

    def test_equal_rewards_are_an_interval_of_one_point(self) -> None:
        assert summarise_rewards([[7.5], [7.5], [7.5]]).interval == (7.5, 7.5)

    def test_rewards_above_1_say_nothing_of_right_and_wrong(self) -> None:
        assert summarise_rewards([[3.0, 10.0], [0.0, 1.0]]).pass_at == {}
        assert summarise_rewards([[-1.0, 1.0], [-1.0, -1.0]]).pass_at == {1: 0.25, 2: 0.5}

    @given(
        st.integers(1, 3).flatmap(
            lambda n: st.lists(st.lists(st.floats(-1e6, 1e6), min_size=n, max_size=n), min_size=2, max_size=8)
        )
        | st.lists(st.lists(st.sampled_from([0.0, 1.0, 1 / 3]), min_size=3, max_size=3), min_size=2, max_size=8)
    )
    def test_no_interval_excludes_its_own_mean(self, rows: list[list[float]]) -> None:
        summary = summarise_rewards(rows)
        assert summary.interval is not None
        assert summary.interval[0] <= summary.mean <= summary.interval[1]

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_reward_that_is_no_number_stops(self, bad: float) -> None:
        with pytest.raises(NonFiniteError, match=rf"rewards: prompt 1\[0\] is {bad}"):
            summarise_rewards([[1.0], [bad]])


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    samples, right, k = case
    subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_refuses_more_than_there_are() -> None:
    with pytest.raises(ValueError, match="k = 3 of 2"):
        pass_at_k(2, 1, 3)
