"""Trackers: what reaches them, and that a run neither waits for one nor fails with one."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import RecipeError
from limbeck.trackers import background, make_trackers
from limbeck.trackers.background import BackgroundTracker
from limbeck.trackers.samples import COLUMNS
from limbeck.trackers.tensorboard import TensorBoardSink
from limbeck.trackers.wandb import WandbSink
from tests import finished_run
from tests.view import made

from .wandb_file import history_of, runs_of


def _line(step: int, kind: str = "train", **values: Any) -> dict[str, Any]:
    return {"step": step, "kind": kind, "reverse_kl/exact": 0.5 / (step + 1), "alarms": [], **values}


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, dict[str, float], tuple[str, ...]]] = []
        self.closed = False

    def open(self, start: int) -> None:
        self.start = start

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        self.lines.append((step, dict(values), alarms))

    def close(self) -> None:
        self.closed = True


def test_every_line_arrives_in_order_with_its_numbers_and_alarms(caplog: pytest.LogCaptureFixture) -> None:
    sink = Kept()
    tracker = BackgroundTracker("kept", sink)
    tracker.started(3, 100)
    tracker.phase(4, "sample")
    for step in range(4, 104):
        tracker.stepped(_line(step, alarms=[{"name": "length", "message": "long"}] if step == 7 else []))
    tracker.evaluated(_line(103, "eval", accuracy=0.5, greedy=True))
    tracker.closed()
    assert (sink.start, sink.closed, len(sink.lines)) == (3, True, 101)
    assert sink.lines[0] == (4, {"train/reverse_kl/exact": 0.1}, ())
    assert sink.lines[3][2] == ("length: long",)
    assert sink.lines[-1][1]["eval/accuracy"] == 0.5
    assert "eval/greedy" not in sink.lines[-1][1]
    assert not caplog.records


def test_a_tracker_that_hangs_neither_holds_up_the_run_nor_its_end(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(Kept):
        def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
            release.wait(60)

    tracker = BackgroundTracker("hanging", Hanging(), queued=10, patience=0.2)
    start = time.perf_counter()
    tracker.started(0, 100)
    for step in range(100):
        tracker.stepped(_line(step))
    tracker.closed()
    assert time.perf_counter() - start < 2
    message = caplog.records[-1].getMessage()
    assert "tracker hanging" in message
    assert "because it was too slow" in message
    assert "still queued" in message
    release.set()


@pytest.mark.parametrize("where", ["open", "log", "close"])
def test_a_tracker_that_fails_is_a_warning_and_nothing_else(where: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: Any) -> None:
        raise ConnectionError("no route to the moon")

    sink = Kept()
    setattr(sink, where, fail)
    tracker = BackgroundTracker("failing", sink)
    tracker.started(0, 20)
    for step in range(20):
        tracker.stepped(_line(step))
    tracker.closed()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[0] == "tracker failing: ConnectionError: no route to the moon. The run goes on."
    lost = {"open": 20, "log": 20, "close": 0}[where]
    assert warnings[-1].startswith(f"tracker failing: {lost} of 20 lines were not logged")
    assert len(warnings) == 2


def test_a_tracker_that_wants_to_end_the_process_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Leaving(Kept):
        def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
            raise SystemExit(1)

    tracker = BackgroundTracker("leaving", Leaving())
    tracker.started(0, 20)
    for step in range(20):
        tracker.stepped(_line(step))
    tracker.closed()
    assert "20 of 20 lines were not logged" in caplog.records[-1].getMessage()


def test_one_failure_among_many_loses_one_line(caplog: pytest.LogCaptureFixture) -> None:
    class Once(Kept):
        def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
            if step == 2:
                raise OSError("disk")
            super().log(step, values, alarms)

    sink = Once()
    tracker = BackgroundTracker("once", sink)
    tracker.started(0, 5)
    for step in range(5):
        tracker.stepped(_line(step))
    tracker.closed()
    assert [step for step, _, _ in sink.lines] == [0, 1, 3, 4]
    assert "1 of 5 lines" in caplog.records[-1].getMessage()


def test_a_fleet_that_goes_back_to_a_checkpoint_ends_its_tracker_and_begins_it_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events: list[Any] = []

    class Noting(Kept):
        def open(self, start: int) -> None:
            events.append(("open", start))

        def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
            time.sleep(0.01)  # what is queued is written before the sink is opened again
            events.append(step)

        def close(self) -> None:
            events.append("close")

    tracker = BackgroundTracker("noting", Noting())
    tracker.started(0, 4)
    for step in (1, 2, 3):
        tracker.stepped(_line(step))
    tracker.started(2, 4)
    for step in (3, 4):
        tracker.stepped(_line(step))
    tracker.closed()
    assert events == [("open", 0), 1, 2, 3, "close", ("open", 2), 3, 4, "close"]
    assert not caplog.records


def test_a_tracker_that_hangs_is_not_begun_again_beside_itself(caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    class Hanging(Kept):
        opened = 0

        def open(self, start: int) -> None:
            self.opened += 1

        def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
            release.wait(60)

    sink = Hanging()
    tracker = BackgroundTracker("hanging", sink, patience=0.05)
    tracker.started(0, 4)
    tracker.stepped(_line(1))
    tracker.started(0, 4)
    for step in (1, 2):
        tracker.stepped(_line(step))
    release.set()
    tracker.closed()
    assert sink.opened == 1
    assert "2 of 3 lines were not logged" in caplog.records[-1].getMessage()


def test_a_run_that_never_started_closes_its_trackers_at_once() -> None:
    BackgroundTracker("idle", Kept()).closed()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the teacher is."""
    folder = tmp_path_factory.mktemp("models")
    finished_run.disturbed_student(folder / "teacher")
    return folder


def _recipe(output: Path, tracker: dict[str, Any], models: Path | None = None, **more: Any) -> Recipe:
    """Two short steps; without `models` one that is only read."""
    changes = {"trackers": [tracker], "steps": 2, "record": {"every": 0}, "output": str(output / "runs"), **more}
    if models is not None:
        return parse_recipe(finished_run.table_of(models, **changes))
    table = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:student"}}
    return parse_recipe({**table, "task": {"kind": "arithmetic"}, **changes})


def test_a_missing_package_is_said_before_the_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path, {"kind": "wandb", "mode": "offline"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'limbeck\[wandb\]'"):
        api.train(recipe)
    assert not (tmp_path / "runs").exists()


def test_a_package_that_does_not_import_is_said_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "limbeck.trackers.trackio", raising=False)
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match=r"cannot be imported.*'limbeck\[trackio\]'"):
        make_trackers(_recipe(tmp_path, {"kind": "trackio", "project": "x"}), tmp_path)


def test_an_unknown_tracker_or_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tensorboard"):
        _recipe(tmp_path, {"kind": "tensorbord"})
    with pytest.raises(RecipeError, match="projekt"):
        _recipe(tmp_path, {"kind": "wandb", "projekt": "x"})


def test_tensorboard_has_the_numbers_of_the_file(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = api.train(_recipe(tmp_path, {"kind": "tensorboard"}, models)).folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for key, value in line.items():
            if key in ("step", "kind", "alarms"):
                continue
            scalars = {event.step: event.value for event in events.Scalars(f"{line['kind']}/{key}")}
            assert scalars[line["step"]] == pytest.approx(value, rel=1e-5)


def _hparams(folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """What TensorBoard's HPARAMS tab asks its server for: columns, and a row a run."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    backend = backend_context.Context(base_plugin.TBContext(logdir=str(folder), data_provider=provider))
    request, experiment = RequestContext(), get_experiment
    found = experiment.Handler(request, backend, "", api_pb2.GetExperimentRequest()).run()
    asked = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=100)
    asked.allowed_statuses.extend([api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE])
    rows = list_session_groups.Handler(request, backend, "", asked).run()
    return {info.name: info for info in found.hparam_infos}, list(rows.session_groups)


def test_tensorboard_has_a_row_a_run_of_hyperparameters_and_final_metrics(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.plugins.hparams import api_pb2

    def run(name: str, lr: float, lines: list[dict[str, Any]], start: int = 0, **more: Any) -> None:
        models = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:student"}}
        table = {**models, "task": {"kind": "arithmetic"}, **more}
        recipe = parse_recipe({**table, "name": name, "steps": 2, "learner": {"lr": lr}})
        folder = tmp_path / name
        sink = TensorBoardSink(folder / "tensorboard", recipe, folder)
        sink.open(start)
        with (folder / "metrics.jsonl").open("a") as file:
            for line in lines:
                file.write(json.dumps(line) + "\n")
                sink.log(line["step"], background.values_of(line), ())
        sink.close()

    lines = [_line(0, "eval", accuracy=0.1), _line(1, reward=0.2), _line(2, reward=0.3)]
    lines.append(_line(2, "eval", accuracy=0.75))
    run("a", 1e-3, lines)
    run("b", 5e-3, lines[:2], objective={"reference": {"weight": 0.25}})
    columns, rows = _hparams(tmp_path)
    assert {"learner.lr", "task.digits", "student.model", "seed", "objective.reference.weight"} <= set(columns)
    assert not {"name", "output", "record.every"} & set(columns)
    by_name = {row.sessions[0].name: row for row in rows}
    a, b = by_name["a/tensorboard/hparams"], by_name["b/tensorboard/hparams"]
    assert [row.hparams["learner.lr"].number_value for row in (a, b)] == [1e-3, 5e-3]
    metrics = {value.name.tag: value.value for value in a.metric_values}
    assert metrics == pytest.approx(
        {"final/eval/accuracy": 0.75, "final/train/reward": 0.3, "final/eval/reverse_kl/exact": 0.5 / 3,
         "final/train/reverse_kl/exact": 0.5 / 3}
    )  # fmt: skip
    assert {value.name.tag: value.value for value in b.metric_values}["final/train/reward"] == pytest.approx(0.2)
    assert [row.sessions[0].status for row in (a, b)] == [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE]
    run("a", 1e-3, [], start=2)  # again, though it is finished
    again = {row.sessions[0].name: row for row in _hparams(tmp_path)[1]}["a/tensorboard/hparams"]
    assert again.sessions[0].status == api_pb2.STATUS_SUCCESS
    assert {value.name.tag: value.value for value in again.metric_values} == pytest.approx(metrics)
    run("b", 5e-3, lines[2:], start=1)  # what was stopped goes on, and ends
    b = {row.sessions[0].name: row for row in _hparams(tmp_path)[1]}["b/tensorboard/hparams"]
    assert b.sessions[0].status == api_pb2.STATUS_SUCCESS
    metrics = {value.name.tag: value.value for value in b.metric_values}
    assert metrics["final/eval/accuracy"] == pytest.approx(0.75)
    (tmp_path / "b" / "metrics.jsonl").unlink()  # as the message of a damaged one advises
    run("b", 5e-3, lines[2:3], start=1)
    b = {row.sessions[0].name: row for row in _hparams(tmp_path)[1]}["b/tensorboard/hparams"]
    assert {value.name.tag: value.value for value in b.metric_values}["final/train/reward"] == pytest.approx(0.3)


def test_wandb_offline_writes_a_run_of_all_lines(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setattr("limbeck.trackers.background.PATIENCE", 120.0)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    tracker = {"kind": "wandb", "mode": "offline", "group": "seeds of tiny"}
    folder = api.train(
        _recipe(tmp_path, tracker, models, record={"every": 2, "watch": 1, "rollouts_per_step": 2})
    ).folder
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    deadline = time.monotonic() + 60  # wandb's own process closes the file some time after `finish` has returned
    while len(rows := history_of(file)) < len(lines) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [row["step"] for row in rows] == [line["step"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert row[f"{line['kind']}/reverse_kl/exact"] == pytest.approx(line["reverse_kl/exact"])
        assert ("samples/path" in row) == (line["kind"] == "train")
        if "samples/path" in row:
            table = json.loads((file.parent / "files" / row["samples/path"]).read_text())
            assert table["data"] == _recorded(folder, line["step"])
            assert table["columns"][:5] == ["source", "task", "prompt_id", "prompt_text", "response_text"]
    assert {run.run_group for run in runs_of(file)} == {"seeds of tiny"}


def _recorded(folder: Path, step: int) -> list[list[Any]]:
    rows = pq.read_table(folder / "rollouts" / f"step-{step:06d}.parquet").to_pylist()
    return [[row[name] for name in COLUMNS] for row in rows]


def test_wandb_is_given_no_text_where_the_recipe_says_so(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    made.write_rollout_files(tmp_path, range(1, 2))
    line = {"train/reward": 1.0}
    for samples, expected in ((True, ["samples"]), (False, [])):
        recipe = _recipe(tmp_path, {"kind": "wandb", "mode": "offline", "samples": samples})
        sink = WandbSink(recipe.trackers[0], recipe, tmp_path)
        assert list(sink._samples(1, line)) == expected
        assert list(sink._samples(2, line)) == [], "it was not recorded"
        assert list(sink._samples(1, {"eval/accuracy": 1.0})) == []


def test_wandb_online_without_a_key_is_said_before_the_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(RecipeError, match="mode = 'offline'"):
        make_trackers(_recipe(tmp_path, {"kind": "wandb"}), tmp_path)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert len(make_trackers(_recipe(tmp_path, {"kind": "wandb"}), tmp_path)) == 1


def test_trackio_has_the_numbers_of_the_file(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    folder = api.train(_recipe(tmp_path, {"kind": "trackio"}, models)).folder
    assert storage.get_runs("limbeck") == ["tiny"]
    logged = {row["step"]: row for row in storage.get_logs("limbeck", "tiny") if "train/reverse_kl/exact" in row}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in (line for line in lines if line["kind"] == "train"):
        for key in ("reverse_kl/exact", "grad_norm"):
            assert logged[line["step"]][f"train/{key}"] == pytest.approx(line[key], rel=1e-6)
