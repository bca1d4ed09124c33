"""Files that are broken, or honest and odd: each is one message that names file, place, value and expectation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from limbeck.audit.read import read_dump
from limbeck.audit.tokenizers import check_tokenizers
from limbeck.cli.main import main
from limbeck.config.base import ModelConfig
from limbeck.errors import DataError
from limbeck.models.loading import load_model
from tests.audit.planted import World, write

IDS = torch.ones(2, 3, dtype=torch.long)
SAMPLE = {"tokens": [5, 6, 7], "response_length": 2, "reward": 1.0}
BATCH = {"prompts": IDS, "responses": IDS}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"samples": 5}, "samples is 5, expected a list of dictionaries"),
        ({"samples": [1, 2]}, "expected a list of dictionaries"),
        ({"samples": [{**SAMPLE, "tokens": [5, 1.5, 7]}]}, "whole numbers"),
        ({"rollout_data": None}, "rollout_data is None"),
        ({"prompts": torch.zeros(3), "responses": torch.zeros(3)}, r"shape \(3,\)"),
        ({"prompts": [[1], [1, 2]], "responses": [[1]]}, "prompts is .*expected a tensor"),
        ({**BATCH, "old_log_probs": torch.zeros(2, 9)}, r"old_log_probs has the shape \(2, 9\), expected \(2, 3\)"),
        ({**BATCH, "attention_mask": torch.ones(2, 3)}, r"attention_mask has the shape"),
        ({**BATCH, "prompts": torch.ones(3, 3)}, "as many rows"),
        ({"prompt_ids": None, "completion_ids": None}, "prompt_ids is None, expected a tensor"),
        ({"prompt_ids": IDS, "completion_ids": IDS, "completion_mask": torch.ones(2)}, "completion_mask"),
    ],
)
def test_a_wrong_layout_is_one_message(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=says) as caught:
        read_dump(tmp_path)
    assert "a.pt" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", bytes(range(256))])
def test_no_torch_file_is_told_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"torch\.save") as caught:
        read_dump(tmp_path)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "field", [{"step": float("inf")}, {"step": 1.5}, {"response_ids": [1.5, 2]}, {"prompt_ids": 3}]
)
def test_a_value_that_cannot_be_is_named(field: dict[str, Any], tmp_path: Path) -> None:
    row = {"prompt_ids": [5, 6], "response_ids": [7, 8], "step": 1, **field}
    with pytest.raises(DataError, match=r"row 1: .*expected"):
        read_dump(write([{**row, "prompt_ids": [5], "response_ids": [6], "step": 1}, row], tmp_path / "a.jsonl"))


def test_numbers_of_numpy_are_plain_values(tmp_path: Path) -> None:
    sample = {**SAMPLE, "reward": np.float64(0.5), "response_length": np.int64(2), "metadata": {"x": np.float32(1)}}
    torch.save({"rollout_id": np.int64(4), "samples": [sample]}, tmp_path / "0.pt")
    (row,) = read_dump(tmp_path).rows
    assert (row.reward, row.start, row.step) == (0.5, 1, 4)


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"samples": [{**SAMPLE, "metadata": np.array([Path], dtype=object)}]}, tmp_path / "0.pt")
    with pytest.raises(DataError, match="not loaded"):
        read_dump(tmp_path)


def test_files_of_evaluation_are_left_out_and_named(tmp_path: Path) -> None:
    for name in ("0", "1", "eval_0", "medieval_2"):
        torch.save({"rollout_id": name, "samples": [SAMPLE]}, tmp_path / f"{name}.pt")
    dump = read_dump(tmp_path)
    assert [row.step for row in dump.rows] == [0, 1, 2]
    assert "eval_0.pt" in dump.lacks["evaluations"]
    assert len(read_dump(tmp_path / "eval_0.pt").rows) == 1


@pytest.mark.parametrize("rows", ["one", "no mask"])
def test_where_nothing_was_checked_the_exit_status_is_1(world: World, tmp_path: Path, rows: str) -> None:
    dump = world.dump(0.7, 1 if rows == "one" else 4, length=5)
    for row in dump:
        row.pop("finish")
        if rows == "no mask":
            row["mask"] = [0] * len(row["mask"])
    path, folders = write(dump, tmp_path / "a.jsonl"), (world.student_folder, world.teacher_folder)
    options = ["audit", str(path), "--student", folders[0], "--teacher", folders[1], "--temperature", "0.7"]
    result = CliRunner().invoke(main, options)
    assert (result.exit_code, type(result.exception)) == (1, SystemExit)
    assert "Nothing could be checked" in result.stdout


def test_one_file_read_by_two_classes_is_one_tokenizer(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.teacher_folder, tmp_path / "teacher")
    models = [load_model(ModelConfig(model=name), torch.device("cpu"))
              for name in (world.student_folder, str(tmp_path / "teacher"))]  # fmt: skip
    models[1].tokenizer.backend_tokenizer.add_tokens(["changed-by-its-class"])
    assert not check_tokenizers(models[0], models[1], [])
    (tmp_path / "teacher" / "tokenizer.json").write_text((tmp_path / "teacher" / "tokenizer.json").read_text() + "\n")
    assert [finding.name for finding in check_tokenizers(models[0], models[1], [])] == ["tokenizer"]
