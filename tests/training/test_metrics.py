"""Numbers of rollouts, alarms, the order of prompts and the statistics of evaluations."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config.objective import TaskRewardConfig
from limbeck.records import Mean, Prompt, StepReport
from limbeck.training.advantage import group_advantages
from limbeck.training.alarms import Alarms
from limbeck.training.evaluation import grade_summary, pass_at_k, wilson
from limbeck.training.metrics import describe, repeated_share
from limbeck.training.prompt_order import PromptOrder, derive_seed
from tests.helpers import random_rollout

HEALTHY = {
    "reverse_kl/exact": 0.3, "entropy/student": 1.0, "entropy/teacher": 0.8, "response_length/mean": 20.0,
    "truncated": 0.1, "repetition": 0.0, "mismatch": 1e-6,
}  # fmt: skip


class TestAlarms:
    def names(self, line: dict, same_weights: bool = False, steps: int = 12) -> list[str]:
        alarms = Alarms(same_weights, [HEALTHY] * steps)
        return [alarm["name"] for alarm in alarms.check({**HEALTHY, **line})]

    def test_a_healthy_run_is_silent(self) -> None:
        assert self.names({}) == []

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("negative_kl", {"reverse_kl/exact": -0.01}),
            ("entropy", {"entropy/student": 0.05}),
            ("length", {"response_length/mean": 45.0}),
            ("truncation", {"truncated": 0.8}),
            ("repetition", {"repetition": 0.7}),
            ("mismatch", {"mismatch": 0.3}),
        ],
    )
    def test_each_sickness_raises_its_alarm_alone(self, name: str, line: dict) -> None:
        assert self.names(line) == [name]

    def test_same_weights_must_have_no_kl(self) -> None:
        assert [a["name"] for a in Alarms(True).check(HEALTHY)] == ["identity"]
        assert Alarms(True).check({**HEALTHY, "reverse_kl/exact": 1e-6}) == []
        assert self.names({}, same_weights=True) == []  # after the first update they differ

    def test_a_sharp_teacher_is_not_a_collapse(self) -> None:
        assert self.names({"entropy/student": 0.15, "entropy/teacher": 0.2}) == []

    def test_rounding_below_zero_is_not_an_alarm(self) -> None:
        assert self.names({"reverse_kl/exact": -1e-6}) == []

    def test_a_resumed_run_remembers_its_start(self) -> None:
        straight = Alarms(False)
        for _ in range(12):
            straight.check(HEALTHY)
        resumed = Alarms(False, [HEALTHY] * 12)
        sick = {**HEALTHY, "response_length/mean": 45.0}
        assert straight.check(sick) == resumed.check(sick) != []


class TestOrder:
    prompts = tuple(Prompt(str(i), (1,)) for i in range(10))

    def test_every_epoch_sees_every_prompt_once(self) -> None:
        order = PromptOrder(self.prompts, 4, seed=3)
        seen = [prompt.id for step in range(5) for prompt in order.at(step)]
        assert sorted(seen[:10]) == sorted(seen[10:]) == [str(i) for i in range(10)]
        assert seen[:10] != seen[10:]

    def test_a_step_does_not_depend_on_those_before(self) -> None:
        straight = PromptOrder(self.prompts, 4, seed=3)
        steps = [straight.at(step) for step in range(8)]
        for step in random.Random(0).sample(range(8), 8):
            assert PromptOrder(self.prompts, 4, seed=3).at(step) == steps[step]

    def test_seeds_depend_on_every_part(self) -> None:
        seeds = {derive_seed(*parts) for parts in itertools.product(range(3), ("a", "b"), range(3))}
        assert len(seeds) == 18
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert derive_seed(1, 23) != derive_seed(12, 3)


class TestStatistics:
    def test_wilson_against_the_published_table(self) -> None:
        """Newcombe 1998, table I, method 3: 81/263 gives 0.2553 to 0.3662."""
        low, high = wilson(81 / 263, 263)
        assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
        assert wilson(0.0, 20) == (0.0, pytest.approx(0.1611, abs=1e-4))
        assert wilson(1.0, 20)[1] == pytest.approx(1.0)

    @given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
    def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(self, case: tuple[int, int, int]) -> None:
        samples, right, k = case
        subsets = list(itertools.combinations([True] * right + [False] * (samples - right), k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))

    def test_pass_at_k_refuses_more_than_there_are(self) -> None:
        with pytest.raises(ValueError, match="k = 3 of 2"):
            pass_at_k(2, 1, 3)

    def test_summary(self) -> None:
        accuracy, (low, high), pass_at = grade_summary([[1, 0, 0, 0], [1, 1, 1, 1]])
        assert accuracy == pytest.approx(0.625)
        assert pass_at == {1: pytest.approx(0.625), 2: pytest.approx(0.75), 4: pytest.approx(1.0)}
        assert low < accuracy < high

    def test_a_report_is_flat_and_keeps_standard_errors(self) -> None:
        report = StepReport({"kl": Mean(6.0, 3.0, 0.36), "none": Mean(0.0, 0.0)}, {"grad_norm": 2.0}, {}, {"step": 1.5})
        assert report.values() == {"kl": 2.0, "kl/se": pytest.approx(0.2), "grad_norm": 2.0, "seconds/step": 1.5}


class TestAdvantages:
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.sampled_from(["mean", "mean_std"]))
    def test_each_group_has_mean_zero(self, rewards: list[float], normalise: str) -> None:
        groups = ["a"] * len(rewards)
        advantages = group_advantages(rewards, groups, TaskRewardConfig(weight=2.0, normalise=normalise))
        assert math.isclose(sum(advantages), 0, abs_tol=1e-6)

    def test_groups_are_by_prompt_wherever_they_stand(self) -> None:
        advantages = group_advantages([1, 0, 0, 4], ["a", "b", "a", "b"], TaskRewardConfig(normalise="mean"))
        assert advantages == [0.5, -2.0, -0.5, 2.0]

    def test_deviation_and_weight(self) -> None:
        assert group_advantages([0, 4], ["a", "a"], TaskRewardConfig(weight=3.0)) == [-3.0, 3.0]

    def test_equal_rewards_teach_nothing(self) -> None:
        assert group_advantages([1, 1, 1], ["a"] * 3, TaskRewardConfig()) == [0.0, 0.0, 0.0]


class TestRollouts:
    def test_lengths_truncation_and_reward(self) -> None:
        rng = np.random.default_rng(0)
        rollouts = [random_rollout(rng, 0, 2), random_rollout(rng, 1, 6)]
        numbers = describe(rollouts, [1.0, 0.0])
        assert numbers["response_length/mean"] == 4
        assert numbers["response_length/max"] == 6
        assert numbers["tokens/sampled"] == 8
        assert numbers["reward"] == 0.5
        assert numbers["truncated"] == 0
        assert "reward" not in describe(rollouts, [None, None])

    def test_repetition(self) -> None:
        assert repeated_share(np.arange(40)) == 0
        assert repeated_share(np.array([1, 2, 3] * 20)) > 0.9
        assert repeated_share(np.array([1, 1, 1])) == 0  # too short to tell
