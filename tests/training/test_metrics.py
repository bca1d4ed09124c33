"""Numbers of rollouts, advantages and the order of prompts."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config.objective import TaskRewardConfig
from limbeck.records import Prompt
from limbeck.reports import Mean, StepReport
from limbeck.seeding import derive_seed
from limbeck.training.advantage import group_advantages
from limbeck.training.metrics import describe, repeated_share
from limbeck.training.prompt_order import PromptOrder
from tests.helpers import random_rollout


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


class TestReport:
    def test_a_report_is_flat_and_keeps_standard_errors(self) -> None:
        report = StepReport(
            {"kl": Mean(6.0, 3.0, 0.18, clusters=2), "none": Mean(0.0, 0.0)}, {"grad_norm": 2.0}, {}, {"step": 1.5}
        )
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
