"""The drop-ins keep slime's and miles's sample contract, and give q_T where stock hooks give q_1."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import ContractError, DataError, TeacherError
from limbeck.plugins import miles, opd, slime
from tests.fake_server import FakeServer

TOKENS = [int(i) for i in np.random.default_rng(0).integers(0, 99, 20)]


def sample(response: int, reward: Any = None) -> Any:
    return SimpleNamespace(tokens=TOKENS, response_length=response, reward=reward, metadata={})


def args(server: FakeServer, **more: Any) -> Any:
    return SimpleNamespace(rm_url=f"{server.url}/generate", rollout_temperature=0.7, **more)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opd, "_proven", {})
    monkeypatch.setenv("LIMBECK_RETRY_SECONDS", "20")


@pytest.mark.parametrize("plugin", [slime, miles])
async def test_a_sample_gets_the_teachers_log_probs_at_the_rollout_temperature(plugin: Any) -> None:
    async with FakeServer(knows_temperature=True) as server:
        samples = [sample(5), sample(0), sample(9, reward=1.0)]
        told = args(server)
        rewards = await asyncio.gather(*(plugin.reward_func(told, s) for s in samples))
        for one, reward in zip(samples, rewards, strict=True):
            one.reward = reward
        raw, trained = plugin.post_process_rewards(told, samples)
        for one in samples:
            start = len(TOKENS) - one.response_length
            rows = server.truth(TOKENS, start, 0.7)
            expected = rows[np.arange(one.response_length), TOKENS[start:]]
            np.testing.assert_allclose(one.teacher_log_probs.numpy(), expected, atol=1e-5)
        assert raw == trained == [0.0, 0.0, 1.0]  # the task reward is kept, not zeroed


async def test_a_server_that_cannot_score_at_t_is_refused_before_training() -> None:
    async with FakeServer(scale=0.3) as server:  # stock, and too flat to rescale
        with pytest.raises(ContractError, match="limbeck serve"):
            await slime.reward_func(args(server), sample(5))


async def test_a_score_that_cannot_be_had_is_an_error_and_not_a_number() -> None:
    async with FakeServer(knows_temperature=True) as server:
        await slime.reward_func(args(server), sample(5))
        server.truncates = 1
        with pytest.raises(TeacherError, match="short"):
            await slime.reward_func(args(server), sample(5))


async def test_a_failed_proof_is_tried_again() -> None:
    async with FakeServer(truncates=1, knows_temperature=True) as server:
        with pytest.raises(ContractError):
            await slime.reward_func(args(server), sample(5))
        server.truncates = 0
        assert len((await slime.reward_func(args(server), sample(5)))["teacher_log_probs"]) == 5


def test_task_rewards_are_normalised_as_the_trainer_would_have() -> None:
    samples = [sample(0, {"teacher_log_probs": [], "task_reward": r}) for r in (1.0, 0.0, 1.0, 1.0)]
    grpo = SimpleNamespace(
        advantage_estimator="grpo", rewards_normalization=True, grpo_std_normalization=False, n_samples_per_prompt=2
    )
    raw, trained = slime.post_process_rewards(grpo, samples)
    assert raw == [1.0, 0.0, 1.0, 1.0]
    assert trained == [0.5, -0.5, 0.0, 0.0]


def test_another_hooks_reward_is_refused() -> None:
    with pytest.raises(DataError, match="reward_func"):
        slime.post_process_rewards(SimpleNamespace(), [sample(3, {"meta_info": {}})])
