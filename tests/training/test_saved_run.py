"""A run's folder from Python: data frames and the model."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.config.recipe import parse_recipe
from limbeck.errors import RecipeError, RunError
from tests import finished_run
from tests.tiny_runs import table_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> limbeck.SavedRun:
    return limbeck.load_run(finished_run.shared(tmp_path_factory.mktemp("run")))


def test_metrics_are_the_lines(finished: limbeck.SavedRun) -> None:
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    frame = finished.metrics
    assert frame["kind"].tolist() == [line["kind"] for line in lines]
    assert frame["step"].tolist() == [line["step"] for line in lines]
    assert set(frame.columns) == {key for line in lines for key in line}
    train = frame[frame["kind"] == "train"]
    assert train["grad_norm"].tolist() == [line["grad_norm"] for line in lines if line["kind"] == "train"]
    assert frame[frame["kind"] == "eval"]["grad_norm"].isna().all()


def test_rollouts_are_those_of_all_steps(finished: limbeck.SavedRun) -> None:
    frame = finished.rollouts
    files = sorted((finished.folder / "rollouts").glob("*.parquet"))
    assert sorted(set(frame["step"])) == [int(path.stem.removeprefix("step-")) for path in files]
    row = frame.iloc[0]
    assert len(row["tokens"]) == len(row["token_ids"]) == len(row["trained"])


def test_a_run_without_rollouts_has_the_columns(finished: limbeck.SavedRun, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    frame = limbeck.load_run(tmp_path).rollouts
    assert len(frame) == 0
    assert set(frame.columns) == set(finished.rollouts.columns)
    assert limbeck.load_run(tmp_path).metrics.empty


def test_the_recipe_and_the_model(finished: limbeck.SavedRun) -> None:
    assert finished.recipe.steps == finished_run.STEPS
    model, tokenizer = finished.model(), finished.tokenizer()
    ids = torch.tensor([tokenizer("1+1=")["input_ids"]])
    assert model(ids).logits.shape[:2] == ids.shape


def test_the_model_of_an_unfinished_run_with_an_adapter_is_merged(tmp_path: Path) -> None:
    table = table_of(tmp_path, steps=2, output=str(tmp_path), record={"every": 0})
    table["learner"] = {"lr": 1e-2, "lora": {"rank": 2}}
    folder = limbeck.train(table).folder
    finished = limbeck.load_run(folder).model().state_dict()
    shutil.rmtree(folder / "model")
    merged = limbeck.load_run(folder).model().state_dict()
    assert merged.keys() == finished.keys()
    assert all(torch.equal(merged[name], finished[name]) for name in merged)


def test_what_is_wrong_is_one_message(finished: limbeck.SavedRun, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run folder"):
        limbeck.load_run(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-000001.parquet").write_bytes(b"PAR1 and no more")
    run = limbeck.load_run(tmp_path)
    with pytest.raises(RunError, match=r"step-000001.parquet cannot be read"):
        _ = run.rollouts
    with pytest.raises(RunError, match="no checkpoint and no model/ yet"):
        run.model()


def test_pandas_is_named_where_it_is_missing(finished: limbeck.SavedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    for read in (lambda: finished.metrics, lambda: finished.rollouts):
        with pytest.raises(RunError, match=r"pip install 'limbeck\[notebook\]'"):
            read()


def test_a_recipe_may_be_its_tables_or_an_object(tmp_path: Path) -> None:
    table = table_of(tmp_path, output=str(tmp_path / "runs"), record={"every": 0})
    result = limbeck.train(table, ["steps=1", "name=table"])
    same = limbeck.train(parse_recipe(table, ["steps=1", "name=object"]))
    assert (result.folder.name, same.folder.name) == ("table", "object")
    assert result.steps[0]["grad_norm"] == same.steps[0]["grad_norm"]
    assert repr(result) == f"TrainResult(folder={str(result.folder)!r}, 1 step, 2 evaluations)"
    with pytest.raises(RecipeError, match="unknown key"):
        limbeck.train({**table, "stepz": 3})
