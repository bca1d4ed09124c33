"""The drop-ins inside slime's and miles's own rollout loops, of checkouts that LIMBECK_SLIME and LIMBECK_MILES name.

Each loop gives the teacher's log-probs at the rollout temperature, and each stops by `TrainingStopped` where one cannot
be had, whatever it catches itself.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from limbeck.plugins import proving
from limbeck.plugins.stopping import TrainingStopped
from tests import tiny
from tests.fake_server import FakeServer, in_thread
from tests.peers.checkouts import Arguments, Prompts, load

pytestmark = pytest.mark.peers

SIZE, GROUPS = 4, 3
TOKENIZER = tiny.character_tokenizer()


def arguments(server: FakeServer, trainer: str, generate: str = "plain", **more: Any) -> Arguments:
    given = {
        "rm_url": f"{server.url}/generate",
        "custom_rm_path": f"limbeck.plugins.{trainer}.reward_func",
        "custom_generate_function_path": f"tests.peers.students.{generate}",
        "reward_key": "task_reward",
        "eval_reward_key": "task_reward",
        "hf_checkpoint": tiny.folder_of("llama"),
        "rollout_temperature": 0.7,
        "rollout_top_p": 1.0,
        "rollout_top_k": -1,
        "rollout_max_response_len": 16,
        "rollout_batch_size": GROUPS,
        "over_sampling_batch_size": GROUPS,
        "n_samples_per_prompt": SIZE,
        "rollout_global_dataset": True,
        "rollout_num_gpus": 1,
        "rollout_num_gpus_per_engine": 1,
        "rollout_num_engines": 1,
        "sglang_server_concurrency": 8,
        "sglang_dp_size": 1,
        "advantage_estimator": "grpo",
        "rewards_normalization": True,
        "grpo_std_normalization": True,
        "async_unused_samples_handler": "retry",
        "async_data_buffer_capacity_factor": 1.0,
        "use_dynamic_global_batch_size": False,
    }
    return Arguments(**{**given, **more})


# --- their loops: each takes arguments and gives the samples of a rollout -----------------------------------------


def slime(args: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    loop = load("LIMBECK_SLIME", "slime.rollout.sglang_rollout")
    _fresh_state(loop)
    monkeypatch.setattr(loop, "get", _workers)
    monkeypatch.setattr(loop, "abort_servers_until_idle", _nothing)
    sample = load("LIMBECK_SLIME", "slime.utils.types").Sample
    return _flat(loop.generate_rollout(args, 0, Prompts(sample, SIZE)).samples)


def miles(args: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    inner = load("LIMBECK_MILES", "miles.rollout.inference_rollout.inference_rollout_train")
    monkeypatch.setattr(inner, "get_worker_urls", _nothing)
    return _by_class("miles.rollout.inference_rollout.inference_rollout_common", "InferenceRolloutFn", args)


def miles_asynchronous(args: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return _by_class("miles.rollout.fully_async_rollout", "FullyAsyncRolloutFn", args)


def miles_legacy(args: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    loop = load("LIMBECK_MILES", "miles.rollout.sglang_rollout")
    _fresh_state(loop)
    for name in ("get", "post"):
        monkeypatch.setattr(loop, name, _workers)
    sample = load("LIMBECK_MILES", "miles.utils.types").Sample
    return _flat(loop.generate_rollout(args, 0, Prompts(sample, SIZE)).samples)


LOOPS = {loop.__name__: loop for loop in (slime, miles, miles_legacy, miles_asynchronous)}


def _by_class(module: str, name: str, args: Any) -> list[Any]:
    kind = getattr(load("LIMBECK_MILES", module), name)
    base = load("LIMBECK_MILES", "miles.rollout.base_types")
    call = load("LIMBECK_MILES", "miles.rollout.inference_rollout.compatibility").call_rollout_function
    sample = load("LIMBECK_MILES", "miles.utils.types").Sample
    rollout = kind(base.RolloutFnConstructorInput(args=args, data_source=Prompts(sample, SIZE)))
    try:
        return _flat(call(rollout, base.RolloutFnTrainInput(rollout_id=0)).samples)
    finally:
        if (worker := getattr(rollout, "_worker", None)) is not None:  # it would go on for the rest of the tests
            loop = load("LIMBECK_MILES", "miles.utils.async_utils").get_async_loop().loop
            loop.call_soon_threadsafe(worker.cancel)


def _fresh_state(loop: Any) -> None:
    """Their state is one for a process."""
    type(loop.GenerateState)._instances.pop(loop.GenerateState, None)


async def _workers(*_: Any, **__: Any) -> dict[str, Any]:
    return {"workers": [], "urls": []}


async def _nothing(*_: Any, **__: Any) -> list[str]:
    return []


def _flat(samples: Any) -> list[Any]:
    while isinstance(samples[0], list):
        samples = list(itertools.chain.from_iterable(samples))
    return list(samples)


# --- the tests ----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "GATHERING", 0.05)
    monkeypatch.setenv("LIMBECK_RETRY_SECONDS", "1")


def teacher(**more: Any) -> FakeServer:
    own = {"vocabulary": tiny.VOCABULARY, "knows_temperature": True, "tokenizer": lambda t: TOKENIZER(t).input_ids}
    return FakeServer(**{**own, **more})


def check(server: FakeServer, samples: list[Any], plugin: Any, args: Any) -> list[float]:
    """Every sample has the teacher's log-probs at 0.7; what the trainer gets as rewards."""
    raw, rewards = plugin.post_process_rewards(args, samples)
    assert raw == [one.reward["task_reward"] for one in samples]
    for one in samples:
        start = len(one.tokens) - one.response_length
        expected = server.truth(one.tokens, start, 0.7)[np.arange(one.response_length), one.tokens[start:]]
        np.testing.assert_allclose(one.teacher_log_probs.numpy(), expected, atol=1e-5)
    return list(rewards)


def plugin_of(loop: str) -> Any:
    from limbeck.plugins import miles, slime

    return slime if loop == "slime" else miles


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("generate", ["plain", "cut_off", "several"])
@pytest.mark.parametrize("group_rm", [False, True])
def test_each_loop_gives_the_teachers_log_probs(
    loop: str, generate: str, group_rm: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if group_rm and generate == "several":
        pytest.skip("their loops cannot: they assign one reward to a list of samples")
    if group_rm and loop == "miles_asynchronous":
        pytest.skip("it takes prompts without end while groups wait for their rewards, and a test's student is fast")
    monkeypatch.setenv("LIMBECK_TASK_REWARD", "tests.peers.students:grade")
    with in_thread(teacher()) as server:
        plugin = plugin_of(loop)
        args = arguments(server, plugin.__name__.rpartition(".")[2], generate, group_rm=group_rm)
        samples = LOOPS[loop](args, monkeypatch)
        assert len({one.index for one in samples}) == GROUPS * SIZE
        rewards = check(server, samples, plugin, args)
        assert rewards == pytest.approx(theirs(loop, args, samples), abs=1e-5)


def theirs(loop: str, args: Any, samples: list[Any]) -> list[float]:
    """What the trainer itself would have made of the task rewards."""
    if loop != "slime":
        module = load("LIMBECK_MILES", "miles.ray.rollout.train_data_conversion")
        return list(module._post_process_rewards(args, samples, None)[1])
    if len(samples) != GROUPS * SIZE:  # slime itself would normalise over all groups at once: its helper does not
        return list(
            load("LIMBECK_SLIME", "slime.rollout._fanout_test_helpers").grpo_normalize_by_group_index(args, samples)[1]
        )
    manager = load("LIMBECK_SLIME", "slime.ray.rollout").RolloutManager
    stand_in = SimpleNamespace(args=args, custom_reward_post_process_func=None)
    return list(manager._post_process_rewards(stand_in, samples)[1])


def shifted(text: str) -> list[int]:
    return [(token + 3) % tiny.VOCABULARY for token in TOKENIZER(text).input_ids]


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "a refused contract": ({"knows_temperature": False, "scale": 0.3}, "plain", "limbeck serve"),
    "another tokenizer": ({"tokenizer": shifted}, "plain", "token"),
    "a sample that is malformed": ({}, "spoilt", "sample 5 has the tokens"),
}  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("group_rm", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_loop_stops_by_name(loop: str, fault: str, group_rm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    lies, generate, match = FAULTS[fault]
    with in_thread(teacher(**lies)) as server:
        trainer = plugin_of(loop).__name__.rpartition(".")[2]
        with pytest.raises(TrainingStopped, match=match):
            LOOPS[loop](arguments(server, trainer, generate, group_rm=group_rm), monkeypatch)


@pytest.mark.parametrize("loop", LOOPS)
def test_each_loop_stops_where_the_server_dies_in_the_middle(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with in_thread(teacher()) as server:
        trainer = plugin_of(loop).__name__.rpartition(".")[2]
        args = arguments(server, trainer)
        LOOPS[loop](args, monkeypatch)
        server.drop = 1.0
        with pytest.raises(TrainingStopped, match="cannot be reached"):
            LOOPS[loop](args, monkeypatch)


@pytest.mark.parametrize("loop", ["slime", "miles"])
def test_an_evaluation_is_graded_and_stops_by_name(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_TASK_REWARD", "tests.peers.students:grade")
    with in_thread(teacher()) as server:
        args = arguments(server, loop)
        samples = evaluation(loop, args)
        assert [one["task_reward"] for one in (sample.reward for sample in samples)] == [0.0, 1.0, 0.0, 1.0]
        server.drop = 1.0
        with pytest.raises(TrainingStopped):
            evaluation(loop, args)


def evaluation(loop: str, args: Any) -> list[Any]:
    """Their evaluation of one sample after another, which is `generate_and_rm`."""
    import asyncio

    if loop == "slime":
        module = load("LIMBECK_SLIME", "slime.rollout.sglang_rollout")
        _fresh_state(module)
        state, sample = args, load("LIMBECK_SLIME", "slime.utils.types").Sample
        run = load("LIMBECK_SLIME", "slime.utils.async_utils").run
    else:
        module = load("LIMBECK_MILES", "miles.rollout.inference_rollout.inference_rollout_common")
        state, sample = module.GenerateState(args), load("LIMBECK_MILES", "miles.utils.types").Sample
        run = load("LIMBECK_MILES", "miles.utils.async_utils").run

    async def all_of_them() -> list[Any]:
        given = [sample(index=i, prompt="p") for i in range(4)]
        return list(await asyncio.gather(*(module.generate_and_rm(state, s, {}, evaluation=True) for s in given)))

    return list(run(all_of_them()))


def test_slimes_metrics_and_batches_take_what_the_hook_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a task reward, in groups of one, where slime rounds the reward of every group."""
    metrics = load("LIMBECK_SLIME", "slime.observability.rollout_metrics")
    manager = load("LIMBECK_SLIME", "slime.ray.rollout").RolloutManager
    from limbeck.plugins import slime as plugin

    with in_thread(teacher()) as server:
        args = arguments(server, "slime", use_rollout_routing_replay=False)
        samples = slime(args, monkeypatch)
        found = metrics.compute_metrics_from_samples(args, samples)
        assert found["zero_std/count_0.0"] == GROUPS
        stand_in = SimpleNamespace(
            args=args,
            custom_reward_post_process_func=plugin.post_process_rewards,
            custom_convert_samples_to_train_data_func=None,
        )
        stand_in._post_process_rewards = lambda s: manager._post_process_rewards(stand_in, s)
        data = manager._convert_samples_to_train_data(stand_in, samples)
        assert [len(one) for one in data["teacher_log_probs"]] == data["response_lengths"]
        assert data["rewards"] == data["raw_reward"] == [0.0] * len(samples)


def test_miles_metrics_and_batches_take_what_the_hook_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = load("LIMBECK_MILES", "miles.ray.rollout.metrics")
    convert = load("LIMBECK_MILES", "miles.ray.rollout.train_data_conversion").convert_samples_to_train_data
    from limbeck.plugins import miles as plugin

    with in_thread(teacher()) as server:
        args = arguments(server, "miles")
        samples = miles(args, monkeypatch)
        assert metrics._compute_metrics_from_samples(args, samples)["zero_std/count_0.0"] == GROUPS
        data = convert(args, samples, {}, None, plugin.post_process_rewards)
        assert [len(one) for one in data["teacher_log_probs"]] == data["response_lengths"]
        assert data["rewards"] == data["raw_reward"] == [0.0] * len(samples)


LOST = """
import sys
from tests.fake_server import in_thread
from tests.peers.checkouts import Prompts, load
from tests.peers.test_loops import SIZE, arguments, teacher
loop = load("LIMBECK_SLIME", "slime.rollout.fully_async_rollout")
sample = load("LIMBECK_SLIME", "slime.utils.types").Sample
with in_thread(teacher(knows_temperature=False, scale=0.3)) as server:
    loop.generate_rollout_fully_async(arguments(server, "slime"), 0, Prompts(sample, SIZE))
"""


def test_slimes_asynchronous_loop_ends_rather_than_wait_for_ever() -> None:
    """Its thread dies of the stop, and nobody who waits for its samples looks at the thread."""
    load("LIMBECK_SLIME", "slime.rollout.fully_async_rollout")
    ended = subprocess.run(
        [sys.executable, "-c", LOST], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )
    assert ended.returncode != 0
    assert "TrainingStopped: teacher" in ended.stderr
    assert "limbeck serve" in ended.stderr
