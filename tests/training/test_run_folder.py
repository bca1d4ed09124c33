"""Nothing half-written is taken for whole, and a full disk leaves what was there."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from limbeck.errors import NonFiniteError, RunError
from limbeck.training.finite import require_finite
from limbeck.training.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    return run


def write(text: str):
    def writer(target: Path) -> None:
        (target / "model").mkdir()
        (target / "model" / "weights").write_text(text)

    return writer


def full_disk(target: Path) -> None:
    (target / "half").write_text("some of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_checkpoints_are_named_by_step_and_the_oldest_go(folder: RunFolder) -> None:
    for step in (5, 10, 15):
        folder.save(step, write(str(step)), keep_last=2)
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == ["step-000010", "step-000015"]
    assert folder.newest_step() == 15
    assert (folder.checkpoints / "step-000015" / "model" / "weights").read_text() == "15"


def test_a_full_disk_leaves_earlier_checkpoints_whole(folder: RunFolder) -> None:
    folder.save(5, write("five"), keep_last=1)
    with pytest.raises(RunError, match=r"step-000010; earlier checkpoints are intact: .*No space left") as caught:
        folder.save(10, full_disk, keep_last=1)
    assert "Free some space" in str(caught.value)
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000005"]
    assert (folder.checkpoints / "step-000005" / "model" / "weights").read_text() == "five"


def test_the_first_checkpoint_that_fails_speaks_of_no_earlier_ones(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"step-000010: .*No space left"):
        folder.save(10, full_disk, keep_last=1)


def test_a_folder_that_cannot_be_made_is_named() -> None:
    expected = r"cannot make the folder /proc/nowhere: .* No folder can be made in /proc: .*output="
    with pytest.raises(RunError, match=expected):
        RunFolder(Path("/proc/nowhere/run")).open("", {})


def test_safetensors_running_out_of_disk_is_the_same_error(folder: RunFolder) -> None:
    from safetensors import SafetensorError

    def fails(target: Path) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RunError, match="No space left"):
        folder.save(5, fails, keep_last=1)


def test_half_written_checkpoints_are_swept_and_never_read(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    run.save(5, write("five"), keep_last=2)
    half = run.checkpoints / ".step-000010.half"
    half.mkdir()
    (half / "state.json").write_text(json.dumps({"format": 1, "step": 10, "metrics_bytes": 0}))
    run.close()
    newest = RunFolder(tmp_path / "run").open("", {})
    assert newest.step == 5
    assert not half.exists()


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    run.append({"step": 1, "kind": "train"})
    run.save(1, write("one"), keep_last=1)
    run.append({"step": 2, "kind": "train"})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "half')
    run.close()
    again = RunFolder(tmp_path / "run")
    again.open("", {})
    assert again.lines() == [{"step": 1, "kind": "train"}]


def test_metrics_shorter_than_the_checkpoint_says_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    run.append({"step": 1})
    run.save(1, write("one"), keep_last=1)
    run.metrics.write_text("")
    run.close()
    with pytest.raises(RunError, match=r"has 0 bytes, fewer than the \d+ of the last checkpoint"):
        RunFolder(tmp_path / "run").open("", {})


def test_a_fresh_run_over_stale_metrics_starts_empty(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    run.append({"step": 1})  # killed before the first checkpoint
    run.close()
    again = RunFolder(tmp_path / "run")
    assert again.open("", {}) is None
    assert again.lines() == []


def test_only_run_folders_are_removed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="does not look like a run folder"):
        RunFolder(precious).open("", {}, fresh=True)
    assert [path.name for path in precious.iterdir()] == ["thesis.tex"]
    assert RunFolder(tmp_path / "absent").open("", {}, fresh=True) is None


def test_the_finished_model_is_whole_or_as_before(folder: RunFolder) -> None:
    folder.finish(1, {"model": write("first")})
    with pytest.raises(RunError):
        folder.finish(2, {"model": full_disk})
    assert (folder.path / "model" / "model" / "weights").read_text() == "first"


def test_what_json_has_no_number_for_is_an_error_that_names_it_and_writes_nothing(folder: RunFolder) -> None:
    folder.append({"step": 1, "kind": "train", "lr": 1e-4})
    before = folder.metrics.read_bytes()
    bad = {"step": 2, "kind": "eval", "reverse_kl/exact": float("nan")}
    with pytest.raises(NonFiniteError, match=r"metrics of step 2 \(eval\): reverse_kl/exact is nan"):
        folder.append(bad)
    assert folder.metrics.read_bytes() == before
    with pytest.raises(NonFiniteError, match=r"row 1 of evaluations/a\.jsonl: reward is inf"):
        folder.write_lines("evaluations/a.jsonl", [{"reward": 1.0}, {"reward": float("inf")}])
    assert not (folder.path / "evaluations" / "a.jsonl").exists()


def test_require_finite_looks_into_lists_and_tables() -> None:
    require_finite({"a": 1, "b": [0.5, {"c": "nan"}], "d": None, "e": True}, "a line")
    with pytest.raises(NonFiniteError, match=r"a line: b\[1\]\.c is -inf"):
        require_finite({"a": 1, "b": [0.5, {"c": float("-inf")}]}, "a line")
