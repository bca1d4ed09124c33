"""`limbeck check` says what a run takes before it loads anything, and `limbeck train` warns."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from limbeck import api
from limbeck.assemble import fit
from limbeck.cli.main import main
from tests.tiny_runs import save_models, write_recipe

SMALL = fit.Machine(gpus=(), memory=2**30, disk=1000)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    return write_recipe(folder / "recipe.toml", save_models(folder / "models"), steps=1)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_table_comes_before_the_probes(recipe: Path) -> None:
    result = run("check", recipe)
    assert result.exit_code == 0, result.output
    assert result.output.index("what the run takes") < result.output.index("temperature")
    assert "this process: memory" in result.output
    assert "checkpoints: 1 kept" in result.output
    assert "prompts of 60 tokens are assumed" in result.output, "what the context leaves"


def test_size_only_loads_nothing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "assemble", None)
    monkeypatch.setattr(fit, "this_machine", lambda folder: SMALL)
    result = run("check", recipe, "cluster.learners=2", "--size-only", "--prompt-tokens", 9)
    assert result.exit_code == 0, result.output
    assert "2 x learner rank: memory" in result.output
    assert "does not fit  disk" in result.output
    assert "assumed" not in result.output


def test_json_has_the_sizes_and_one_object(recipe: Path) -> None:
    answer = json.loads(run("check", recipe, "--json").stdout)
    assert answer["ok"]
    assert answer["sizing"]["misfits"] == []
    assert answer["sizing"]["peaks"][0]["host_bytes"] > 0
    assert answer["sizing"]["processes"][0]["roles"][0]["name"] == "learner"


def test_what_certainly_does_not_fit_ends_the_check(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "this_machine", lambda folder: SMALL)
    result = run("check", recipe)
    assert result.exit_code == 1
    assert "this machine is too small for the recipe" in result.output
    assert "record.max_mb" in result.output, "the key of the only large part"
    assert "checkpoint.keep_last" not in result.output
    assert "temperature" not in result.output, "nothing was loaded"
    assert json.loads(run("check", recipe, "--json").stdout)["ok"] is False
    assert run("check", recipe, "--anyway").exit_code == 0


def test_training_warns_and_goes_on(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit, "this_machine", lambda folder: SMALL)
    with caplog.at_level(logging.WARNING, "limbeck"):
        assert run("train", recipe, "--quiet").exit_code == 0
    assert any(record.message.startswith("disk: ") for record in caplog.records)


def test_options_of_sizes_go_with_a_recipe() -> None:
    result = run("check", "--teacher", "vllm=http://127.0.0.1:1", "--size-only")
    assert result.exit_code == 2
    assert "go with a RECIPE" in result.output
