"""`history.jsonl`: when, where and with what a run was started, and how it ended."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.errors import LimbeckError, RunError
from limbeck.training.history import describe_place, recorded
from limbeck.training.interruption import Interrupted
from limbeck.training.run_folder import RunFolder

PLACE = {"host": "here", "pid": 1}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.open("", {})
    return run


def _history(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder.path / "history.jsonl").read_text().splitlines()]


def test_each_start_and_each_end_is_a_line(folder: RunFolder) -> None:
    with pytest.raises(LimbeckError), recorded(folder, 0, 10, PLACE):
        raise LimbeckError("the teacher is at temperature 1")
    with pytest.raises(Interrupted), recorded(folder, 0, 10, PLACE):
        raise Interrupted(2)
    with recorded(folder, 4, 10, PLACE):
        folder.save(10, lambda path: None, 1)
    found = _history(folder)
    assert [(line["event"], line["step"], line.get("outcome")) for line in found] == [
        ("start", 0, None), ("end", 0, "failed"), ("start", 0, None), ("end", 0, "stopped"),
        ("start", 4, None), ("end", 10, "finished"),
    ]  # fmt: skip
    assert found[1]["message"] == "the teacher is at temperature 1"
    assert found[4] | PLACE | {"steps": 10} == found[4]
    times = [line["time"] for line in found]
    assert times == sorted(times)
    assert all(len(time) == len("2026-11-30T06:12:49Z") and time.endswith("Z") for time in times)


@pytest.mark.parametrize("cut", [0, 7], ids=["whole", "cut off"])
def test_a_killed_process_has_no_end_and_the_next_start_gives_it_one(folder: RunFolder, cut: int) -> None:
    start = {"event": "start", "time": "2026-01-01T00:00:00Z", "step": 0, "steps": 10}
    text = json.dumps(start) + "\n"
    (folder.path / "history.jsonl").write_text(text[: len(text) - cut])
    folder.metrics.write_text("")
    os.utime(folder.metrics, (1.8e9, 1.8e9))
    with recorded(folder, 0, 10, PLACE):
        pass
    lines = (folder.path / "history.jsonl").read_text().splitlines()
    if cut:
        assert lines[0] == text[:-cut], "what is there is left alone, and no line is appended to half of one"
    else:
        assert json.loads(lines[1]) == {"event": "end", "time": "2027-01-15T08:00:00Z", "step": 0, "outcome": "killed"}
    assert [json.loads(line)["event"] for line in lines[-2:]] == ["start", "end"]


def test_an_end_that_cannot_be_written_hides_no_error(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        with recorded(folder, 0, 10, PLACE):
            (folder.path / "history.jsonl").unlink()
            (folder.path / "history.jsonl").mkdir()
            raise LimbeckError("the reason")

    with caplog.at_level(logging.WARNING, "limbeck"), pytest.raises(LimbeckError, match="the reason"):
        fails()
    assert "how the run ended is not in" in caplog.text
    with pytest.raises(RunError, match=r"history\.jsonl"), recorded(folder, 0, 10, PLACE):
        pass


def test_where_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    place = describe_place(torch.device("cpu"))
    assert place["host"] == socket.gethostname()
    assert (place["pid"], place["device"], place["torch"]) == (os.getpid(), "cpu", torch.__version__)
    assert place["limbeck"] == version("limbeck")
    assert "core" in place["device_name"]
    assert "commit" not in place, "no git repository"
    assert "device_name" not in describe_place(None)
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for command in ("init -q", "add file", "-c user.name=n -c user.email=e@example.com commit -qm first"):
        (tmp_path / "file").write_text("one")
        subprocess.run(["git", *command.split()], check=True, env=environment)
    place = describe_place(torch.device("cpu"))
    assert len(place["commit"]) == 40
    assert place["uncommitted"] is False
    (tmp_path / "file").write_text("two")
    assert describe_place(torch.device("cpu")) == place | {"uncommitted": True}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit" not in describe_place(torch.device("cpu")), "no git"
