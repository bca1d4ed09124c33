"""The drop-ins keep slime's and miles's sample contract, and give q_T where stock hooks give q_1."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.plugins import miles, opd, proving, slime
from limbeck.plugins.stopping import TrainingStopped
from tests import tiny
from tests.fake_server import FakeServer

TOKENS = [int(i) for i in np.random.default_rng(0).integers(5, tiny.VOCABULARY, 20)]
TOKENIZER = tiny.character_tokenizer()


def split(text: str) -> list[int]:
    return list(TOKENIZER(text).input_ids)


def fake(**more: Any) -> FakeServer:
    return FakeServer(**{"vocabulary": tiny.VOCABULARY, "knows_temperature": True, "tokenizer": split, **more})


def sample(response: int, reward: Any = None, **more: Any) -> Any:
    return SimpleNamespace(**{"tokens": TOKENS, "response_length": response, "reward": reward, "metadata": {}, **more})


def args(server: FakeServer, **more: Any) -> Any:
    own = {"rm_url": f"{server.url}/generate", "rollout_temperature": 0.7, "hf_checkpoint": tiny.folder_of("llama")}
    return SimpleNamespace(**{**own, **more})


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "_proofs", {})
    monkeypatch.setattr(proving, "GATHERING", 0.01)
    monkeypatch.setattr(opd, "_warned", set())
    monkeypatch.setenv("LIMBECK_RETRY_SECONDS", "0.5")


def expected(server: FakeServer, one: Any, temperature: float = 0.7) -> np.ndarray:
    start = len(one.tokens) - one.response_length
    rows = server.truth(one.tokens, start, temperature)
    return rows[np.arange(one.response_length), one.tokens[start:]]


@pytest.mark.parametrize("plugin", [slime, miles])
async def test_a_sample_gets_the_teachers_log_probs_at_the_rollout_temperature(plugin: Any) -> None:
    async with fake() as server:
        samples = [sample(5, reward=0.0), sample(0, reward=0), sample(9, reward=1.0)]
        options = args(server)
        rewards = await asyncio.gather(*(plugin.reward_func(options, s) for s in samples))
        for one, reward in zip(samples, rewards, strict=True):
            one.reward = reward
        raw, trained = plugin.post_process_rewards(options, samples)
        for one in samples:
            np.testing.assert_allclose(one.teacher_log_probs.numpy(), expected(server, one), atol=1e-5)
        assert raw == trained == [0.0, 0.0, 1.0]  # the task reward is kept, not zeroed


@pytest.mark.parametrize("plugin", [slime, miles])
async def test_a_list_of_samples_gets_a_list_of_rewards(plugin: Any) -> None:
    """`--group-rm`, and rollouts of several samples, some in lists of their own."""
    async with fake() as server:
        group = [sample(5), [sample(4), sample(0)], sample(9)]
        first, (second, third), fourth = await plugin.reward_func(args(server), group)
        for one, reward in ((group[0], first), (group[1][0], second), (group[1][1], third), (group[2], fourth)):
            np.testing.assert_allclose(reward["teacher_log_probs"], expected(server, one), atol=1e-5)
        assert await plugin.reward_func(args(server), []) == []


async def test_one_bad_sample_of_a_group_stops_the_trainer_and_its_siblings() -> None:
    async with fake() as server:
        await slime.reward_func(args(server), sample(5))
        asked = server.requests
        with pytest.raises(
            TrainingStopped, match=r"sample 7 has 20 tokens and a response of 20: tokens must be prompt"
        ):
            await slime.reward_func(args(server), [sample(20, index=7), *(sample(5) for _ in range(50))])
        await asyncio.sleep(0.05)
        assert server.requests < asked + 60


async def test_a_group_in_which_some_have_a_task_reward_is_refused() -> None:
    with pytest.raises(TrainingStopped, match="1 of 2 samples of a group have a task reward"):
        await slime.reward_func(SimpleNamespace(), [sample(0, 1.0), sample(0)])
    resumed = sample(0, {"teacher_log_probs": [], "task_reward": 0.0})
    assert len(await slime.reward_func(SimpleNamespace(), [resumed, sample(0)])) == 2


async def test_a_server_that_cannot_score_at_t_is_refused_before_training() -> None:
    async with fake(scale=0.3, knows_temperature=False) as server:  # stock, and too flat to rescale
        with pytest.raises(TrainingStopped, match=r"limbeck serve[\s\S]*LIMBECK_BAKED[\s\S]*--rollout-temperature = 1"):
            await slime.reward_func(args(server), sample(5))


async def test_a_score_that_cannot_be_had_is_an_error_and_not_a_number() -> None:
    async with fake() as server:
        await slime.reward_func(args(server), sample(5))
        server.truncates = 1
        with pytest.raises(TrainingStopped, match=r"sample 3 cannot be scored: short|cannot be probed"):
            await slime.reward_func(args(server), sample(5, index=3))


async def test_a_server_that_dies_in_the_middle_stops_the_trainer() -> None:
    async with fake() as server:
        await slime.reward_func(args(server), sample(5))
        server.drop = 1.0
        with pytest.raises(TrainingStopped, match="cannot be reached"):
            await slime.reward_func(args(server), sample(5))


async def test_scores_at_another_temperature_are_refused() -> None:
    async with fake() as server:
        await slime.reward_func(args(server), sample(5))
        (proof,) = proving._proofs.values()
        teacher = await proof.task
        teacher.proof = replace(teacher.proof, method="plain", acknowledges=False)
        with pytest.raises(TrainingStopped, match=r"scored at temperature 1, expected rollout_temperature = 0\.7"):
            await slime.reward_func(args(server), sample(5))


async def test_a_failed_proof_is_tried_again() -> None:
    async with fake(truncates=1) as server:
        with pytest.raises(TrainingStopped):
            await slime.reward_func(args(server), sample(5))
        server.truncates = 0
        assert len((await slime.reward_func(args(server), sample(5)))["teacher_log_probs"]) == 5


async def test_a_teacher_with_a_permuted_vocabulary_is_refused() -> None:
    """Of the same size, it scores every id: only its way of splitting text tells."""
    order = np.random.default_rng(3).permutation(tiny.VOCABULARY)
    async with fake(tokenizer=lambda text: [int(order[i]) for i in split(text)]) as server:
        with pytest.raises(TrainingStopped, match="tokenizer"):
            await slime.reward_func(args(server), sample(5))


async def test_without_a_tokenizer_nothing_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as server:
        with pytest.raises(
            TrainingStopped, match=r"hf_checkpoint is None, .* Set --hf-checkpoint, or LIMBECK_TOKENIZER"
        ):
            await slime.reward_func(args(server, hf_checkpoint=None), sample(5))
        assert server.requests == 0
        monkeypatch.setenv("LIMBECK_TOKENIZER", tiny.folder_of("llama"))
        assert len((await slime.reward_func(args(server, hf_checkpoint=None), sample(5)))["teacher_log_probs"]) == 5


async def test_the_proof_is_of_the_samples_that_wait_and_of_texts_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "GATHERING", 60)
    rng = np.random.default_rng(1)
    async with fake() as server:
        group = [sample(5, tokens=[int(i) for i in rng.integers(5, tiny.VOCABULARY, 90)]) for _ in range(6)]
        await slime.reward_func(args(server), group)  # four wait, which is enough: no 60 seconds pass
        (proof,) = proving._proofs.values()
        assert [len(text) for text in proof.texts] == [64, 56, 48, 40]
        asked = [tuple(body["input_ids"]) for body in server.bodies if "input_ids" in body]
        assert {tuple(text) for text in proof.texts} <= set(asked)
        assert tuple(split("The quick brown fox jumps over the lazy dog, and 3 * 17 = 51."))[:64] in asked


@pytest.mark.slow
async def test_each_temperature_and_each_server_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake() as one, fake(seed=5) as other:
        routed = args(one, opd_teacher_urls=[f"math={one.url}/generate", f"default={other.url}/generate"])
        for server, teacher in ((one, "math"), (other, "code"), (other, None)):
            for temperature in (0.7, 1.3):
                routed.rollout_temperature = temperature
                asked = sample(5, metadata={"opd_teacher": teacher})
                scores = (await miles.reward_func(routed, asked))["teacher_log_probs"]
                np.testing.assert_allclose(scores, expected(server, asked, temperature), atol=1e-5)
        assert len(proving._proofs) == 4
        routed.opd_teacher_urls.pop()
        with pytest.raises(
            TrainingStopped, match=r"names the teacher None in metadata\['opd_teacher'\], expected one of"
        ):
            await miles.reward_func(routed, sample(5))


def estimator(name: str, deviation: bool, size: int = 2) -> Any:
    return SimpleNamespace(
        advantage_estimator=name,
        rewards_normalization=True,
        grpo_std_normalization=deviation,
        n_samples_per_prompt=size,
    )


def scored(*rewards: float | None) -> list[Any]:
    return [sample(0, {"teacher_log_probs": [], "task_reward": r}) for r in rewards]


@pytest.mark.parametrize("name", ["grpo", "gspo", "cispo", "reinforce_plus_plus_baseline"])
@pytest.mark.parametrize("plugin", [slime, miles])
def test_task_rewards_are_normalised_as_the_trainer_would_have(plugin: Any, name: str) -> None:
    raw, trained = plugin.post_process_rewards(estimator(name, False), scored(1.0, 0.0, 1.0, 1.0))
    assert raw == [1.0, 0.0, 1.0, 1.0]
    assert trained == [0.5, -0.5, 0.0, 0.0]
    _, trained = plugin.post_process_rewards(estimator(name, True), scored(1.0, 0.0))
    size = 0.5 if name == "reinforce_plus_plus_baseline" else 2**-0.5
    assert trained == pytest.approx([size, -size], abs=1e-5)


@pytest.mark.parametrize("name", ["ppo", "reinforce_plus_plus", None])
def test_other_estimators_get_their_rewards_as_they_are(name: Any) -> None:
    assert slime.post_process_rewards(estimator(name, True), scored(1.0, 0.0)) == ([1.0, 0.0], [1.0, 0.0])


def test_groups_are_those_the_samples_name() -> None:
    samples = scored(1.0, 0.0, 0.0, 1.0, 0.5)
    for one, group in zip(samples, (7, 3, 7, 3, 9), strict=True):
        one.group_index = group
    _, trained = slime.post_process_rewards(estimator("grpo", True), samples)
    assert trained == pytest.approx([2**-0.5, -(2**-0.5), -(2**-0.5), 2**-0.5, 0.0], abs=1e-5)
    for one in samples:
        one.group_index = None
    with pytest.raises(TrainingStopped, match="5 samples without a group_index"):
        slime.post_process_rewards(estimator("grpo", True), samples)


def test_miles_counts_a_rollout_once_whatever_its_parts() -> None:
    samples = scored(1.0, 1.0, 1.0, 0.0)
    for one, rollout in zip(samples, (4, 4, 4, 5), strict=True):
        one.group_index, one.rollout_id = 0, rollout
    _, trained = miles.post_process_rewards(estimator("grpo", False), samples)
    assert trained == [0.5, 0.5, 0.5, -0.5]
    _, trained = slime.post_process_rewards(estimator("grpo", False), samples)
    assert trained == [0.25, 0.25, 0.25, -0.75]  # as slime's own grouping
    samples[0].reward["task_reward"] = 0.25
    with pytest.raises(TrainingStopped, match=r"3 samples of rollout 4 have the task rewards \[0.25, 1.0\]"):
        miles.post_process_rewards(estimator("grpo", False), samples)


def grade(_: Any, one: Any) -> Any:
    return one.metadata.get("grade")


async def slow_grade(_: Any, one: Any) -> Any:
    return one.metadata["grade"]


@pytest.mark.parametrize(
    ("given", "key", "expected"),
    [
        (None, None, 0.0),  # a number, since slime's metrics round it
        (np.float32(0.5), None, 0.5),
        (True, None, 1.0),
        ({"score": 0.25, "acc": 1.0}, "score", 0.25),
        ({"teacher_log_probs": [], "task_reward": 0.75}, None, 0.75),  # scored before, in a rollout that was cut off
        ({"teacher_log_probs": [], "task_reward": None}, "score", 0.0),
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
    with pytest.raises(
        TrainingStopped, match=r"slow_grade \(LIMBECK_TASK_REWARD\) raised KeyError for sample 2: 'grade'"
    ):
        await miles.reward_func(SimpleNamespace(), sample(0, index=2))
    monkeypatch.setenv("LIMBECK_TASK_REWARD", f"{__name__}:grade")
    with pytest.raises(TrainingStopped, match="grade for a sample is None, expected a finite number"):
        await miles.reward_func(SimpleNamespace(), sample(0))
    monkeypatch.setenv("LIMBECK_TASK_REWARD", "no_such_module:grade")
    with pytest.raises(TrainingStopped, match="is not package"):
        await miles.reward_func(SimpleNamespace(), sample(0))


@pytest.mark.parametrize("given", [{"score": 1.0}, "right", float("nan")])
async def test_a_task_reward_that_cannot_be_read_is_refused_and_not_zeroed(given: Any) -> None:
    with pytest.raises(TrainingStopped, match="the reward of a sample is"):
        await slime.reward_func(SimpleNamespace(), sample(0, given))


async def test_a_reward_key_under_which_the_trainer_finds_no_number_is_said(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        await slime.reward_func(SimpleNamespace(reward_key=None), sample(0))
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert "Set --reward-key task_reward" in caplog.text


@pytest.mark.parametrize(
    ("strategy", "match"),
    [
        ("only-student", "at one temperature against `limbeck serve MODEL --temperature T`"),
        ("intersection", "at one temperature against"),
        ("only-teacher", "the student's router for the strategy 'only-teacher', and that answers at temperature 1"),
        ("union", "and that answers at temperature 1"),
        ("xor", "and that answers at temperature 1"),
    ],
)
async def test_what_only_miless_own_hook_does_is_refused(strategy: str, match: str) -> None:
    off = {"opd_log_prob_top_k": 0, "opd_top_k_strategy": strategy}
    assert (await miles.reward_func(SimpleNamespace(**off), sample(0)))["teacher_log_probs"] == []
    with pytest.raises(TrainingStopped, match=match):
        await miles.reward_func(SimpleNamespace(**(off | {"opd_log_prob_top_k": 16})), sample(0))


@pytest.mark.parametrize("cut", [{"rollout_top_p": 0.9}, {"rollout_top_k": 50}, {"rollout_min_p": 0.1}])
async def test_a_cut_sampling_distribution_is_refused(cut: dict[str, Any]) -> None:
    whole = {"rollout_top_p": 1.0, "rollout_top_k": -1}
    assert await slime.reward_func(SimpleNamespace(**whole), sample(0))
    ((name, value),) = cut.items()
    with pytest.raises(TrainingStopped, match=rf"{name} = {value} cuts the distribution"):
        await slime.reward_func(SimpleNamespace(**(whole | cut)), sample(0))


async def test_images_are_refused() -> None:
    async with fake() as server:
        plain = sample(5, multimodal_inputs={"images": None, "videos": []}, multimodal_train_inputs=None)
        assert await slime.reward_func(args(server), plain)
        for name in ("multimodal_inputs", "multimodal_train_inputs"):
            with pytest.raises(TrainingStopped, match=f"has {name}: the teacher would score its text without"):
                await slime.reward_func(args(server), sample(5, **{name: {"images": ["cat"]}}))


async def test_a_sample_that_repeats_one_token_is_scored() -> None:
    async with fake() as server:
        one = sample(4, tokens=[9] * 12)
        result = await slime.reward_func(args(server), one)
        np.testing.assert_allclose(result["teacher_log_probs"], expected(server, one), atol=1e-5)


@pytest.mark.parametrize("token", [2.5, True, None, "7"])
async def test_tokens_that_are_no_ids_stop_the_trainer(token: Any) -> None:
    with pytest.raises(TrainingStopped, match="expected a list of ids"):
        await slime.reward_func(SimpleNamespace(), sample(2, tokens=[1, token, 3]))


@pytest.mark.parametrize("length", [None, True, 1.0, -1, "2"])
async def test_a_length_that_is_no_count_stops_the_trainer(length: Any) -> None:
    one = sample(2)
    one.response_length = length
    with pytest.raises(TrainingStopped, match=r"response_length = .*expected a number of tokens"):
        await slime.reward_func(SimpleNamespace(), one)


@pytest.mark.parametrize("urls", [["default=http://a", "default=http://b"], ["http://a"], ["=http://a"], ["math="]])
async def test_teachers_that_are_named_twice_or_not_at_all_stop_the_trainer(urls: list[str]) -> None:
    with pytest.raises(TrainingStopped, match=r"expected NAME=URL with another name.*--opd-teacher-urls"):
        await miles.reward_func(SimpleNamespace(opd_teacher_urls=urls), sample(2))


async def test_vllms_route_may_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TEACHER_KIND", "vllm")
    async with fake() as server:
        options = args(server, rm_url=f"{server.url}/v1/completions")
        assert len((await slime.reward_func(options, sample(5)))["teacher_log_probs"]) == 5


async def test_the_top_of_a_rescaled_server_is_as_deep_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TOP_LOGPROBS", "60")
    async with fake(knows_temperature=False, scale=2.0) as server:
        one = sample(5)
        result = await slime.reward_func(args(server), one)
        np.testing.assert_allclose(result["teacher_log_probs"], expected(server, one), atol=0.02)
        assert server.bodies[-1]["top_logprobs_num"] == 60


@pytest.mark.parametrize(
    ("variable", "value", "match"),
    [
        ("LIMBECK_TEACHER_KIND", "tgi", "expected one of sglang, vllm, limbeck"),
        ("LIMBECK_TOP_LOGPROBS", "many", "LIMBECK_TOP_LOGPROBS = 'many': .*valid integer"),
        ("LIMBECK_TOP_LOGPROBS", "0", "LIMBECK_TOP_LOGPROBS = '0': .*greater than or equal to 1"),
        ("LIMBECK_PROBE_TOLERANCE", "-1", "LIMBECK_PROBE_TOLERANCE = '-1'"),
        ("LIMBECK_BAKED", "no/such/folder", "no/such/folder"),
        ("LIMBECK_TOKEN_ENV", "NO_SUCH_VARIABLE", "LIMBECK_TOKEN_ENV.*NO_SUCH_VARIABLE"),
        ("LIMBECK_TOKENIZER", "no/such/folder", "no/such/folder"),
    ],
)
async def test_a_wrong_variable_stops_the_trainer(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, match: str
) -> None:
    monkeypatch.setenv(variable, value)
    async with fake() as server:
        with pytest.raises(TrainingStopped, match=match):
            await slime.reward_func(args(server), sample(5))


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        ({"meta_info": {}}, "expected what limbeck's reward_func returned"),
        (1.0, "only for samples whose reward is None: let your generate function leave it so"),
        (None, "was never scored .*its status is 'aborted'"),
    ],
)
def test_a_sample_that_the_hook_never_scored_is_refused(reward: Any, match: str) -> None:
    one = sample(3, reward, status=SimpleNamespace(value="aborted"))
    with pytest.raises(TrainingStopped, match=match):
        slime.post_process_rewards(SimpleNamespace(), [one])


def test_a_sample_that_was_aborted_before_its_first_token_has_nothing_to_score(monkeypatch: pytest.MonkeyPatch) -> None:
    one = sample(0)
    assert miles.post_process_rewards(SimpleNamespace(), [one]) == ([0.0], [0.0])
    assert one.teacher_log_probs.shape == (0,)
    monkeypatch.setenv("LIMBECK_TASK_REWARD", f"{__name__}:grade")  # its grade would be made up
    with pytest.raises(TrainingStopped, match="was never scored"):
        miles.post_process_rewards(SimpleNamespace(), [one])


def test_a_sample_that_grew_after_it_was_scored_is_refused() -> None:
    with pytest.raises(TrainingStopped, match="2 teacher log-probs for a response of 3 tokens"):
        slime.post_process_rewards(
            SimpleNamespace(), [sample(3, {"teacher_log_probs": [-1.0, -2.0], "task_reward": 0.0})]
        )
