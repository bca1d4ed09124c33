"""Whole runs that sample on a server: as good as in this process, and stopped where the server is not held."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck import api
from limbeck.config.engine import HFEngineConfig
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import EngineError, RecipeError
from tests import tiny
from tests.fake_engine import FakeEngine
from tests.fake_server import in_thread


def recipe(server: FakeEngine, folder: Path, kind: str = "sglang", **changes: Any) -> Recipe:
    return parse_recipe(
        {
            "output": str(folder), "steps": 3, "threads": 1,
            "student": {"model": tiny.folder_of("llama")}, "teacher": {"model": tiny.folder_of("llama-tied")},
            "task": {"kind": "arithmetic", "digits": 1, "train": 32, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 8, "prompts_per_step": 4},
            "engine": {"kind": kind, "url": server.url, "timeout": 30.0, "retry_seconds": 30.0},
            "learner": {"lr": 1e-3}, "eval": {"prompts": 2}, "record": {"watch": 1},
        }
        | changes
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_a_run_on_a_server(kind: str, tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as server:
        result = api.train(recipe(server, tmp_path, kind))
    assert len(result.steps) == 3
    assert all(line["mismatch"] < 1e-4 for line in result.steps)
    lines = [json.loads(line) for line in (result.folder / "contract.jsonl").read_text().splitlines()]
    assert [line["probe"] for line in lines if line["probe"].startswith("engine")] == [
        "engine: noise", "engine: weights", "engine: log-probs",
    ]  # fmt: skip
    assert not (result.folder / "weights").exists()


@pytest.mark.parametrize("raw", [False, True])
def test_a_server_samples_ahead_with_the_weights_of_the_rule(raw: bool, tmp_path: Path) -> None:
    """Evaluations are of the learner's own weights, steps of older ones, whoever says what their log-probs are."""
    ahead = {"rollout": {"temperature": 0.7, "max_tokens": 8, "prompts_per_step": 4, "lag": 1}, "eval": {"every": 1}}
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as server:
        server.raw_logprobs = raw
        result = api.train(recipe(server, tmp_path, "vllm", **ahead, steps=4))
    assert [line["lag"] for line in result.steps] == [0, 1, 1, 1]
    assert [line["mismatch"] < 1e-4 for line in result.steps] == [True, False, False, False]
    assert all(line["mismatch"] < 1e-4 for line in result.evaluations)
    assert len(result.evaluations) == 5


def test_check_says_what_was_proven_of_the_engine(tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as server:
        server.raw_logprobs = True
        results = api.check(recipe(server, tmp_path))
    (logprobs,) = [result for result in results if result.probe == "engine: log-probs"]
    assert "recomputed by the learner" in logprobs.measured


def test_a_server_that_keeps_its_weights_stops_the_run_after_the_first_update(tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as server:
        server.keeps_old_weights = True
        with pytest.raises(EngineError, match=r"update 1 but"):
            api.train(recipe(server, tmp_path))


def test_the_teacher_is_never_pushed_to_the_students_server(tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as server:
        one = recipe(server, tmp_path)
        api.evaluate(one, of="teacher")
        assert not server.bodies
        assert isinstance(one.model_copy(update={"engine": HFEngineConfig()}).engine, HFEngineConfig)


def test_an_engine_table_without_a_kind_is_in_this_process(tmp_path: Path) -> None:
    server = FakeEngine(tiny.lm_of("llama").model)
    server.port = 1
    assert recipe(server, tmp_path, engine={"max_rows": 8}).engine == HFEngineConfig(max_rows=8)
    with pytest.raises(RecipeError, match=r"engine.*url"):
        recipe(server, tmp_path, engine={"kind": "vllm"})
    with pytest.raises(RecipeError, match="must begin with http"):
        recipe(server, tmp_path, engine={"kind": "sglang", "url": "10.0.0.1:30000"})
    with pytest.raises(RecipeError, match="engine"):
        recipe(server, tmp_path, engine={"url": server.url})


def test_two_servers_make_the_run_of_one(tmp_path: Path) -> None:
    """To the last bit, and the second half of it on another number of them."""
    with (
        in_thread(FakeEngine(tiny.lm_of("llama").model)) as one,
        in_thread(FakeEngine(tiny.lm_of("llama").model)) as other,
    ):
        table = {"kind": "sglang", "url": one.url, "timeout": 30.0, "max_rows": 2}
        alone = api.train(recipe(one, tmp_path, name="alone", engine=table))
        table["url"] = [one.url, other.url]
        several = recipe(one, tmp_path, name="several", engine=table)
        api.train(several.model_copy(update={"steps": 2}))
        table["url"] = other.url
        resumed = api.train(recipe(one, tmp_path, name="several", engine=table))
    assert other.bodies
    for line in resumed.steps:
        assert line["weights/bytes"] > 0
        assert line["seconds/weights"] <= line["seconds/publish"]
    wanted, found = (load_file(run.folder / "model" / "model.safetensors") for run in (alone, resumed))
    assert all(torch.equal(tensor, found[name]) for name, tensor in wanted.items())


def test_a_server_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    server = FakeEngine(tiny.lm_of("llama").model)
    server.port = 1
    with pytest.raises(RecipeError, match=r"'http://127\.0\.0\.1:1' is given twice"):
        recipe(server, tmp_path, engine={"kind": "vllm", "url": [server.url, server.url + "/"]})
