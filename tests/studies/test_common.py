"""The frame of the studies: runs are made once each, and intervals are over seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limbeck.errors import RecipeError
from tests.script_module import script_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def common() -> ModuleType:
    return script_module("common", ROOT / "studies" / "common.py")


class Runs:
    """Runs that are counted. `fails` names one that is interrupted."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []
        self.fails: tuple[str, int] | None = None

    def __call__(self, condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[dict[str, Any]]:
        (scratch / "file").write_text("left over by an interrupted run")
        if (condition, seed) == self.fails:
            raise KeyboardInterrupt
        self.made.append((condition, seed))
        gain = {"plain": 1.0, "better": 2.0}[condition] * setting["steps"]
        return [{"step": step, "seconds": step * (seed + 1.0), "value": seed + gain * step} for step in (0, 1, 2)]


def study(common: ModuleType, runs: Runs, shown: list[Any]) -> Any:
    def report(results: Any) -> str:
        shown.append(results)
        return "table"

    def draw(results: Any, path: Path) -> None:
        path.write_text("picture")

    return common.Study("test", {"steps": 10}, {"steps": 1}, ("plain", "better"), runs, report, draw)


def test_each_run_is_made_once_and_an_interrupted_study_goes_on(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, shown = Runs(), []
    one = study(common, runs, shown)
    arguments = ["--seeds", "3", "7", "--output", str(tmp_path)]
    runs.fails = ("better", 7)
    assert common.main(one, arguments) == 130
    assert "goes on" in capsys.readouterr().err
    assert runs.made == [("plain", 3), ("better", 3), ("plain", 7)]  # conditions take turns
    runs.fails = None
    assert common.main(one, arguments) == 0
    assert runs.made[3:] == [("better", 7)]
    assert common.main(one, arguments) == 0
    assert len(runs.made) == 4
    assert (tmp_path / "result.md").read_text() == "table\n"
    assert (tmp_path / "test.png").exists()
    assert not list((tmp_path / ".scratch").iterdir())


def test_an_error_of_limbeck_ends_a_study_with_its_message(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[dict[str, Any]]:
        raise RecipeError("steps = 0, expected at least 1")

    one = dataclasses.replace(study(common, Runs(), []), run=refused)
    assert common.main(one, ["--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "steps = 0, expected at least 1\n"


def test_what_runs_need_is_prepared_once_before_them(common: ModuleType, tmp_path: Path) -> None:
    runs, prepared = Runs(), []

    def prepare(setting: Mapping[str, Any], folder: Path) -> None:
        prepared.append((setting["steps"], folder, len(runs.made)))

    one = dataclasses.replace(study(common, runs, []), prepare=prepare)
    for _ in range(2):
        assert common.main(one, ["--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert prepared == [(10, tmp_path, 0)]


def test_results_of_another_setting_are_refused(
    common: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    one = study(common, runs, [])
    assert common.main(one, ["--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    assert common.main(one, ["--seeds", "0", "1", "--output", str(tmp_path), "--quick"]) == 1
    assert "steps = 10 there, 1 now" in capsys.readouterr().err
    assert len(runs.made) == 4


def test_intervals_are_over_seeds_and_those_of_differences_are_paired(common: ModuleType, tmp_path: Path) -> None:
    shown: list[Any] = []
    assert common.main(study(common, Runs(), shown), ["--seeds", "0", "1", "2", "--output", str(tmp_path)]) == 0
    results = shown[0]
    last = results.at("plain", "value")  # 20, 21, 22: deviation 1, t = 4.303 at two degrees of freedom
    assert last.mean == pytest.approx(21)
    assert last.high - last.mean == pytest.approx(4.3027 / 3**0.5, rel=1e-3)
    gap = results.difference("better", "plain", "value")
    assert (gap.mean, gap.low, gap.high) == pytest.approx((20, 20, 20))  # seeds cancel
    steps, found = results.curve("better", "value")
    assert steps == [0, 1, 2]
    assert [one.mean for one in found] == pytest.approx([1, 21, 41])


def test_a_value_at_equal_seconds_lies_between_each_seeds_rows(common: ModuleType, tmp_path: Path) -> None:
    shown: list[Any] = []
    assert common.main(study(common, Runs(), shown), ["--seeds", "0", "1", "--output", str(tmp_path)]) == 0
    results = shown[0]
    assert results.extent("plain", "seconds") == (0, 2)
    assert results.along("plain", "value", "seconds", 1.0).mean == pytest.approx((10 + 6) / 2)
    with pytest.raises(ValueError, match="is not between"):
        results.along("plain", "value", "seconds", 3.0)


def test_seconds_of_training_leave_out_evaluations(common: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr(common.time, "process_time", lambda: next(times))
    clock = common.TrainingClock()
    clock.started(0, 2)  # at 1
    clock.stepped({"step": 1})  # at 3
    clock.evaluated({"step": 1, "accuracy": 0.5})  # at 10
    clock.stepped({"step": 2})  # at 14
    clock.evaluated({"step": 2, "accuracy": 0.6})
    assert [(row["step"], row["seconds"], row["accuracy"]) for row in clock.rows] == [(1, 2.0, 0.5), (2, 6.0, 0.6)]


def test_a_head_says_what_a_run_was_made_with(common: ModuleType, tmp_path: Path) -> None:
    assert common.main(study(common, Runs(), []), ["--seeds", "4", "--output", str(tmp_path)]) == 0
    head = json.loads((tmp_path / "plain" / "seed-4.jsonl").read_text().splitlines()[0])
    assert (head["condition"], head["seed"], head["setting"]) == ("plain", 4, {"steps": 10})
