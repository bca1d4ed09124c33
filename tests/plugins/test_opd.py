"""The drop-ins keep slime's and miles's sample contract, and give q_T where stock hooks give q_1."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.errors import ContractError, DataError, RecipeError, TeacherError
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
        samples = [sample(5, reward=0.0), sample(0, reward=0), sample(9, reward=1.0)]
        options = args(server)
        rewards = await asyncio.gather(*(plugin.reward_func(options, s) for s in samples))
        for one, reward in zip(samples, rewards, strict=True):
            one.reward = reward
        raw, trained = plugin.post_process_rewards(options, samples)
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


async def test_scores_at_another_temperature_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeServer(knows_temperature=True) as server:
        await slime.reward_func(args(server), sample(5))
        ((_, task),) = opd._proven.items()
        teacher = await task
        teacher.proof = replace(teacher.proof, method="plain", acknowledges=False)
        with pytest.raises(TeacherError, match=r"scored at temperature 1, expected rollout_temperature = 0\.7"):
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


def test_groups_are_those_the_samples_name() -> None:
    samples = [sample(0, {"teacher_log_probs": [], "task_reward": r}) for r in (1.0, 0.0, 0.0, 1.0, 0.5)]
    for one, group in zip(samples, (7, 3, 7, 3, 9), strict=True):
        one.group_index = group
    grpo = SimpleNamespace(
        advantage_estimator="grpo", rewards_normalization=True, grpo_std_normalization=True, n_samples_per_prompt=2
    )
    _, trained = slime.post_process_rewards(grpo, samples)
    assert trained == pytest.approx([2**-0.5, -(2**-0.5), -(2**-0.5), 2**-0.5, 0.0], abs=1e-5)
    for one in samples:
        one.group_index = None
    with pytest.raises(DataError, match="5 samples without a group_index"):
        slime.post_process_rewards(grpo, samples)


def grade(_: Any, one: Any) -> Any:
    return one.metadata.get("grade")


async def slow_grade(_: Any, one: Any) -> Any:
    return one.metadata["grade"]


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        (None, None, None),
        (np.float32(0.5), None, 0.5),
        (True, None, 1.0),
        ({"score": 0.25, "acc": 1.0}, "score", 0.25),
        ({"teacher_log_probs": [], "task_reward": 0.75}, None, 0.75),  # scored before, in a rollout that was cut off
        ({"teacher_log_probs": [], "task_reward": None}, "score", None),
    ],
)
async def test_a_task_reward_is_kept_whatever_it_comes_as(given: Any, key: Any, expected: Any) -> None:
    result = await slime.reward_func(SimpleNamespace(reward_key=key), sample(0, given))
    assert result == {"teacher_log_probs": [], "task_reward": expected}


async def test_a_task_reward_comes_from_a_function_too(monkeypatch: pytest.MonkeyPatch) -> None:
    one = sample(0)
    one.metadata["grade"] = 0.5
    for name in ("grade", "slow_grade"):
        monkeypatch.setenv("LIMBECK_TASK_REWARD", f"{__name__}:{name}")
        assert (await miles.reward_func(SimpleNamespace(), one))["task_reward"] == 0.5
    monkeypatch.setenv("LIMBECK_TASK_REWARD", f"{__name__}:grade")
    with pytest.raises(DataError, match="grade is None, expected a finite number"):
        await miles.reward_func(SimpleNamespace(), sample(0))
    monkeypatch.setenv("LIMBECK_TASK_REWARD", "no_such_module:grade")
    with pytest.raises(RecipeError, match="is not package"):
        await miles.reward_func(SimpleNamespace(), sample(0))


@pytest.mark.parametrize("given", [{"score": 1.0}, "right", float("nan")])
async def test_a_task_reward_that_cannot_be_read_is_refused_and_not_zeroed(given: Any) -> None:
    with pytest.raises(DataError, match="a sample's reward is"):
        await slime.reward_func(SimpleNamespace(), sample(0, given))


def test_a_batch_in_which_some_have_a_task_reward_is_refused() -> None:
    samples = [sample(0, {"teacher_log_probs": [], "task_reward": r}) for r in (1.0, None)]
    with pytest.raises(DataError, match="1 of 2 samples have a task reward"):
        slime.post_process_rewards(SimpleNamespace(), samples)


@pytest.mark.parametrize(
    "option",
    [{"opd_log_prob_top_k": 16}, {"opd_teacher_urls": ["math=http://x"]}, {"opd_teacher_adapters": ["math=lora"]}],
)
async def test_what_only_miless_own_hook_does_is_refused(option: dict[str, Any]) -> None:
    """Ignored, every sample would be scored by one teacher, and the trainer would miss what it reads."""
    off = dict.fromkeys(opd.UNSUPPORTED) | {"opd_log_prob_top_k": 0}
    assert (await miles.reward_func(SimpleNamespace(**off), sample(0)))["teacher_log_probs"] == []
    with pytest.raises(RecipeError, match="miles's own hook against `limbeck serve"):
        await miles.reward_func(SimpleNamespace(**(off | option)), sample(0))


async def test_a_sample_that_repeats_one_token_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeServer(knows_temperature=True) as server:
        one = SimpleNamespace(tokens=[9] * 12, response_length=4, reward=None)
        result = await slime.reward_func(args(server), one)
        np.testing.assert_allclose(result["teacher_log_probs"], server.truth([9] * 12, 8, 0.7)[:, 9], atol=1e-5)


async def test_vllms_route_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TEACHER_KIND", "vllm")
    async with FakeServer(knows_temperature=True) as server:
        options = SimpleNamespace(rm_url=f"{server.url}/v1/completions", rollout_temperature=0.7)
        assert len((await slime.reward_func(options, sample(5)))["teacher_log_probs"]) == 5


def test_another_hooks_reward_is_refused() -> None:
    with pytest.raises(DataError, match="reward_func"):
        slime.post_process_rewards(SimpleNamespace(), [sample(3, {"meta_info": {}})])
