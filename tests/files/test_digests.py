"""A changed byte anywhere in a checkpoint is found, and so is a file too many or too few."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from limbeck.errors import RunError
from limbeck.files.digests import (
    DamagedError,
    check_checkpoint,
    check_model_folder,
    digests_of,
    newest_whole,
    seal,
)


def make(folder: Path, step: int = 4) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text('{"layers": 2}')
    (folder / "model" / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "learner.safetensors").write_bytes(b"optimizer")
    seal(folder, {"step": step, "metrics_bytes": 10, "recipe": {"seed": 0, "learner": {"lr": 1e-4}}})
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make(tmp_path / "checkpoints" / "step-000004")


def test_what_was_written_is_read(checkpoint: Path) -> None:
    state = check_checkpoint(checkpoint)
    assert (state.step, state.metrics_bytes, state.recipe) == (4, 10, {"seed": 0, "learner": {"lr": 1e-4}})
    assert set(state.files or ()) == {"model/config.json", "model/model.safetensors", "learner.safetensors"}


@pytest.mark.parametrize("name", ["model/config.json", "model/model.safetensors", "learner.safetensors", "state.json"])
def test_every_byte_counts(checkpoint: Path, name: str) -> None:
    path = checkpoint / name
    data = path.read_bytes()
    for place in range(len(data)):
        for bit in (0, 5) if len(data) > 300 else range(8):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
            with pytest.raises(DamagedError) as caught:
                check_checkpoint(checkpoint)
            assert str(path) in str(caught.value)
    path.write_bytes(data)
    check_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["model/config.json", "learner.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut", "longer", "folder", "dangling", "pipe"])
def test_damaged_files_are_named(checkpoint: Path, name: str, how: str) -> None:
    path = checkpoint / name
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
        (path / "file").touch()
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "pipe" and name != "state.json":
        os.mkfifo(path)  # must not be waited for
    elif how in ("empty", "cut", "longer"):
        path.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"\n"}[how])
    with pytest.raises(DamagedError) as caught:
        check_checkpoint(checkpoint)
    assert str(path) in str(caught.value)


def test_a_file_too_many(checkpoint: Path) -> None:
    (checkpoint / "model" / "more.safetensors").touch()
    with pytest.raises(DamagedError, match=r"more\.safetensors was not written with the rest"):
        check_checkpoint(checkpoint)


def test_a_state_of_another_step(checkpoint: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "checkpoints" / "step-000002", 2)
    shutil.copy(other / "state.json", checkpoint / "state.json")
    with pytest.raises(DamagedError, match="is of step 2, expected 4"):
        check_checkpoint(checkpoint)


WRONG = [
    "[]", "null", "3", "[" * 100_000, '{"format": 1}', '{"format": 99, "step": 4, "metrics_bytes": 0}',
    '{"format": 1, "step": "4", "metrics_bytes": 0}', '{"format": 1, "step": true, "metrics_bytes": 0}',
    '{"format": 1, "step": 4, "metrics_bytes": -1}', '{"format": 1, "step": 4.0, "metrics_bytes": 0}',
    '{"format": 2, "step": 4, "metrics_bytes": 0}', '{"format": 1, "step": 4, "metrics_bytes": 0, "files": {}}',
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=[text[:50] for text in WRONG])
def test_states_of_wrong_types(checkpoint: Path, text: str) -> None:
    (checkpoint / "state.json").write_text(text)
    with pytest.raises(DamagedError, match=r"state\.json"):
        check_checkpoint(checkpoint)


def test_the_former_format_is_taken_with_one_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    (checkpoint / "state.json").write_text(json.dumps({"format": 1, "step": 4, "metrics_bytes": 7}))
    state = check_checkpoint(checkpoint)
    assert (state.step, state.metrics_bytes, state.files, state.recipe) == (4, 7, None, None)
    (record,) = caplog.records
    assert "kept no digests" in record.message


def test_the_newest_whole_one(tmp_path: Path) -> None:
    for step in (2, 4, 1_000_000):
        make(tmp_path / f"step-{step:06d}", step)
    assert newest_whole(tmp_path) == tmp_path / "step-1000000"
    (tmp_path / "step-1000000" / "learner.safetensors").unlink()
    (tmp_path / "step-000004" / "model" / "config.json").write_text("{}")
    assert newest_whole(tmp_path) == tmp_path / "step-000002"
    (tmp_path / "step-000002" / "state.json").unlink()
    assert newest_whole(tmp_path) is None


class TestModelFolders:
    """What `load_model` asks before it reads a folder."""

    def test_in_a_checkpoint(self, checkpoint: Path) -> None:
        check_model_folder(checkpoint / "model")
        (checkpoint / "learner.safetensors").write_bytes(b"")  # of no concern to who evaluates
        check_model_folder(checkpoint / "model")
        (checkpoint / "model" / "config.json").write_text("{}")
        with pytest.raises(RunError, match=r"config\.json does not match its digest\. No checkpoint .* is whole"):
            check_model_folder(checkpoint / "model")
        make(checkpoint.parent / "step-000002", 2)
        with pytest.raises(RunError, match=r"The newest whole checkpoint is .*step-000002"):
            check_model_folder(checkpoint / "model")

    def test_the_finished_one(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "recipe.toml").touch()
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        check_model_folder(tmp_path / "model")  # of a version without state.json, or that was removed
        (record,) = caplog.records
        assert "state.json is missing: its files are not checked" in record.message
        seal(tmp_path, {"step": 4}, digests_of(tmp_path / "model", "model/"))
        check_model_folder(tmp_path / "model")
        (tmp_path / "model" / "added").touch()
        with pytest.raises(RunError, match=r"model/added was not written.*writes it anew"):
            check_model_folder(tmp_path / "model")

    def test_anybody_elses(self, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        check_model_folder(tmp_path / "model")
        (tmp_path / "state.json").write_text('{"_data_files": []}')  # as of a saved data set
        check_model_folder(tmp_path / "model")
