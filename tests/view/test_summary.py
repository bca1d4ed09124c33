"""What the table of runs is filled with: it is the same as what all of the file says, however the file grew."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.view.metrics import read_metrics
from limbeck.view.runs import Runs
from limbeck.view.summary import EVALUATIONS, MetricsSummary, is_alive, read_history

from . import made, made_runs

ALARM = {"alarms": [{"name": "kl", "message": "high"}]}


def _expected(path: Path) -> dict[str, Any]:
    """From a reading of all lines."""
    metrics = read_metrics(path)
    train: dict[str, list[float]] = {}
    for key, column in metrics.train.values.items():
        known = [value for value in column[-20:] if value is not None]
        if known:
            train[key] = [known[0] if column[0] is None else column[0], known[-1]]
    evals = {}
    for key, some in metrics.eval.values.items():
        values = [value for value in some if value is not None]
        least, most = min(values), max(values)
        at = [metrics.eval.step[some.index(end)] for end in (least, most)]
        evals[key] = [values[0], values[-1], least, most, *at]
    seconds = [value for value in metrics.train.values.get("seconds/step", [])[-20:] if value is not None]
    return {
        "step": metrics.train.step[-1] if metrics.train.step else 0,
        "alarms": len(metrics.alarms),
        "alarm_names": sorted({alarm["name"] for alarm in metrics.alarms}),
        "seconds_per_step": sum(seconds) / len(seconds) if seconds else None,
        "train": train,
        "eval": evals,
        "evaluations": {
            "step": metrics.eval.step[-EVALUATIONS:],
            "values": {
                key: column[-EVALUATIONS:]
                for key, column in metrics.eval.values.items()
                if not key.endswith(("/se", "/low", "/high"))
            },
        },
    }


@st.composite
def _files(draw: st.DrawFn) -> list[list[str]]:
    """Lines in parts, as a page reads them while they are written."""
    lines, number = [], st.sampled_from([0.25, 0.5, 2.0, 3.0])
    for step in range(draw(st.integers(0, 30))):
        if step:
            more = ALARM if draw(st.integers(0, 5)) == 0 else {}
            lines.append(json.dumps(made.metrics_line(step, reward=draw(number), **more)))
        if draw(st.integers(0, 3)) == 0:
            lines.append(json.dumps(made.eval_line(step, accuracy=draw(number))))
        if draw(st.integers(0, 9)) == 0:
            lines.append(draw(st.sampled_from(["{", "", '{"step": -1}', '{"step": 2, "kind": "other"}'])))
    cuts = sorted(draw(st.lists(st.integers(0, len(lines)), max_size=3)))
    return [lines[a:b] for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)]


@given(parts=_files())
def test_a_summary_says_what_all_lines_say(parts: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    summary = MetricsSummary(path)
    for part in parts:
        with path.open("a") as file:
            file.write("".join(line + "\n" for line in part))
        assert summary.read() == _expected(path)
    json.dumps(summary.read(), allow_nan=False)


def test_a_run_that_went_back_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    summary = MetricsSummary(path)
    lines = [json.dumps(made.metrics_line(step, **ALARM)) + "\n" for step in range(1, 9)]
    path.write_text("".join(lines))
    assert summary.read()["alarms"] == 8
    length = path.stat().st_size
    again = [json.dumps(made.metrics_line(step)) for step in range(5, 9)]
    kept = "".join(lines[:4])
    for _ in range(2):  # back to step 4, and on past where the file had ended, a line ending at that very place
        text = kept + "\n".join(again) + "\n"
        fill = length - len(text.encode())
        path.write_text(text + " " * (fill - 1) + "\n" + again[-1].replace('"step": 8', '"step": 5') + "\n")
        assert summary.read() == _expected(path)
    assert summary.read()["alarms"] == 4
    path.unlink()
    assert summary.read()["step"] == 0


def test_a_history_says_when_where_and_how(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == {}
    start = {"event": "start", "step": 0, "steps": 10, "host": "gpu", "pid": 7, "uncommitted": True, "secret": "x"}
    events = [
        {**start, "time": "2026-01-01T00:00:00Z", "commit": "4f1c"},
        {"event": "end", "time": "2026-01-01T00:10:00Z", "outcome": "killed"},
        {**start, "time": "2026-01-02T00:00:00Z", "host": "other"},
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = read_history(path)
    begun = 1767225600.0
    assert found == {
        "starts": 2,
        "started": begun,
        "worked": 600.0,
        "since": begun + 86400,
        "place": {"host": "other", "pid": 7, "uncommitted": True},
        "began": {"host": "gpu", "commit": "4f1c"},
    }
    with path.open("a") as file:
        file.write('{"half": \n[1]\n{"event": "end"}\n{"event": "end", "time": 4}\n' + '{"event": "start", "time"')
    assert read_history(path) == found, "what is no event is left out"
    with path.open("a") as file:
        file.write(
            "\n" + json.dumps({"event": "end", "time": "2026-01-02T00:01:00Z", "outcome": "failed", "message": "m"})
        )
    found = read_history(path)
    assert (found["worked"], found["since"], found["outcome"], found["message"]) == (660.0, None, "failed", "m")


def test_a_process_of_this_machine_is_known_to_be_gone() -> None:
    def history(pid: Any, host: str = socket.gethostname()) -> dict[str, Any]:
        return {"since": 1.0, "place": {"host": host, "pid": pid}}

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert is_alive(history(os.getpid())) is True
    assert is_alive(history(gone.pid)) is False
    assert is_alive(history(gone.pid, "elsewhere")) is None
    assert is_alive({**history(gone.pid), "since": None}) is None
    for pid in (0, -1, 2**40, "7", None):
        assert is_alive(history(pid)) is None
    assert is_alive({}) is None


def test_a_run_says_what_it_has_and_its_recipe_as_it_was_written(tmp_path: Path) -> None:
    made_runs.write_run(tmp_path / "a", steps=4, every=2)
    recipe = (
        'steps = 4\nlr = 1.0\nbetas = [0.9, 1.0]\nday = 2026-01-01\nmost = inf\n[t]\nmany = [{ "a b" = 1.0, n = 1 }]\n'
    )
    (tmp_path / "a" / "recipe.toml").write_text(recipe)
    made_runs.write_run(tmp_path / "b", reached=0, outcome=None)
    described = Runs(tmp_path).describe()
    a, b = described["runs"]
    assert described["folder"] == tmp_path.name
    assert (a["recorded"], b["recorded"]) == (
        {"rollouts": True, "evaluations": True},
        {"rollouts": False, "evaluations": False},
    )
    assert a["written"] == {
        "steps": "4", "lr": "1.0", "betas": "[0.9, 1.0]", "day": "2026-01-01", "most": "inf",
        "t": {"many": '[{ "a b" = 1.0, n = 1 }]'},
    }  # fmt: skip


def test_only_runs_that_changed_are_described_again(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made_runs.write_run(tmp_path / name, steps=4, every=2, rollouts=False)
    runs = Runs(tmp_path)
    first = runs.describe()
    assert [run["id"] for run in first["runs"]] == first["ids"] == ["a", "b"]
    assert first["runs"][0]["history"]["outcome"] == "finished"
    assert first["runs"][0]["summary"]["step"] == 4
    again = runs.describe(first["version"])
    assert (again["ids"], again["runs"]) == (["a", "b"], [])
    with (tmp_path / "b" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made.metrics_line(5)) + "\n")
    later = runs.describe(first["version"])
    assert [(run["id"], run["summary"]["step"]) for run in later["runs"]] == [("b", 5)]
    assert [run["id"] for run in runs.describe(again["version"])["runs"]] == ["b"], "another page has not seen it"
    assert runs.describe(later["version"])["runs"] == []
    assert Runs(tmp_path).describe(later["version"])["runs"], "a server that was started anew knows that it was"
