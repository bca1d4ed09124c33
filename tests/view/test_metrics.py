"""metrics.jsonl in columns: whole, in parts while it grows, cut, half-written and of older versions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from limbeck.view.metrics import Columns, read_metrics
from limbeck.view.summary import MetricsSummary

from . import made


def _write(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_lines_become_columns_with_holes_where_a_key_is_missing(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "metrics.jsonl",
        made.eval_line(0),
        {"step": 1, "kind": "train", "a": 1.0},
        {"step": 2, "kind": "train", "b": 2, "alarms": [{"name": "length", "message": "too long"}]},
    )
    metrics = read_metrics(path)
    assert metrics.train == Columns([1, 2], {"a": [1.0, None], "b": [None, 2]})
    assert metrics.eval.step == [0]
    assert metrics.alarms == [{"step": 2, "name": "length", "message": "too long"}]
    assert metrics.problems == []
    assert metrics.offset == path.stat().st_size


def test_what_is_not_finite_is_told_from_what_is_absent(tmp_path: Path) -> None:
    lines = ({"step": step, "kind": "train", "a": a, "b": 1.0} for step, a in ((1, 0.5), (2, math.nan), (4, -math.inf)))
    path = _write(tmp_path / "metrics.jsonl", *lines, {"step": 3, "kind": "train", "b": 2.0})
    train = read_metrics(path).train
    assert train == Columns([1, 2, 3], {"a": [0.5, None, None], "b": [1.0, 1.0, 2.0]}, {"a": [2]})


def test_reading_in_two_parts_is_reading_the_whole(tmp_path: Path) -> None:
    """Cut at every byte: a line is read once, when it is whole."""
    path, steps = tmp_path / "metrics.jsonl", range(4)
    lines = "".join(json.dumps({"step": s, "kind": "train", "x": s / 7}) + "\n" for s in steps)
    for cut in range(len(lines) + 1):
        path.write_text(lines[:cut])
        first = read_metrics(path)
        path.write_text(lines)
        second = read_metrics(path, first.offset)
        assert first.train.step + second.train.step == list(steps)
        assert second.reset == (first.offset == 0)
        assert first.train.values.get("x", []) + second.train.values.get("x", []) == [s / 7 for s in steps]


def test_a_half_written_line_is_said_and_read_when_it_is_whole(tmp_path: Path) -> None:
    path = _write(tmp_path / "metrics.jsonl", made.metrics_line(1), '{"step": 2, "kind": "tra')
    metrics = read_metrics(path)
    assert metrics.train.step == [1]
    assert "half-written line" in metrics.problems[0]
    with path.open("a") as file:
        file.write('in"}\n')
    later = read_metrics(path, metrics.offset)
    assert (later.train.step, later.problems, later.reset) == ([2], [], False)
    with path.open("a") as file:
        file.write("\nbroken\n")
    assert read_metrics(path, later.offset).skipped == ["metrics.jsonl: skipped line 4 (not JSON)."], "of the file"


@pytest.mark.parametrize("kept", [0, 1])
def test_a_file_that_was_cut_is_read_again(tmp_path: Path, kept: int) -> None:
    path = _write(tmp_path / "metrics.jsonl", *[made.metrics_line(step) for step in range(1, 6)])
    offset = read_metrics(path).offset
    _write(path, *[made.metrics_line(step) for step in range(1, kept + 1)])
    again = read_metrics(path, offset)
    assert again.reset
    assert again.train.step == list(range(1, kept + 1))


def test_a_step_that_comes_again_replaces_what_stood_there(tmp_path: Path) -> None:
    lines = [made.metrics_line(s, x=old) for s, old in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0))]
    lines[2]["alarms"] = [{"name": "gone", "message": ""}]
    metrics = read_metrics(_write(tmp_path / "metrics.jsonl", *lines))
    assert metrics.train.step == [1, 2]
    assert metrics.train.values["x"] == [1.0, 20.0]
    assert metrics.alarms == []


def test_bad_lines_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "metrics.jsonl",
        "not json\n",
        {"step": 1, "x": 0.5},  # a line of the first versions: no kind
        {"kind": "train", "x": 1.0},
        "[1, 2]\n",
        {"step": 2, "kind": "other"},
        {"step": True, "kind": "train"},
        "\n",
        made.metrics_line(3, alarms="odd", x=float("nan")),
    )
    metrics = read_metrics(path)
    assert metrics.train.step == [1, 3]
    assert metrics.train.values["x"] == [0.5, None]
    (problem,) = metrics.skipped
    assert "line 1 (not JSON); line 3 (no step); line 4 (no step), and 2 more" in problem


def test_a_missing_or_unreadable_file_is_said(tmp_path: Path) -> None:
    assert "is missing" in read_metrics(tmp_path / "metrics.jsonl").problems[0]
    (tmp_path / "metrics.jsonl").mkdir()
    assert "cannot be read" in read_metrics(tmp_path / "metrics.jsonl").problems[0]


def test_a_number_that_is_none_is_an_alarm_of_its_step(tmp_path: Path) -> None:
    lines = [made.metrics_line(1), made.metrics_line(2, entropy=float("nan"), grad_norm=float("inf"))]
    path = _write(tmp_path / "metrics.jsonl", *lines, made.metrics_line(3))
    (alarm,) = read_metrics(path).alarms
    assert (alarm["step"], alarm["name"]) == (2, "not_finite")
    assert "inf" in alarm["message"]
    assert "nan" in alarm["message"]
    assert MetricsSummary(path).read()["alarms"] == 1


def test_a_number_that_is_none_in_an_evaluation_is_an_alarm_too(tmp_path: Path) -> None:
    bad = made.eval_line(2, accuracy=float("nan"))
    path = _write(tmp_path / "metrics.jsonl", made.eval_line(0), made.metrics_line(1), made.metrics_line(2), bad, bad)
    metrics = read_metrics(path)
    message = "evaluation: 'accuracy' is nan: the curves have no value there"
    assert metrics.alarms == [{"step": 2, "name": "not_finite", "message": message}]
    summary = MetricsSummary(path).read()
    assert (summary["alarms"], summary["alarm_names"]) == (1, ["not_finite"])
    _write(path, made.eval_line(0), made.metrics_line(1), made.metrics_line(2), bad, made.metrics_line(2))
    assert read_metrics(path).alarms == [], "the step was made again"
