"""Plots for a paper: what their legends say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from limbeck.view import plots

from . import made


def _legends(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    from matplotlib.figure import Figure

    found: list[list[str]] = []

    def note(figure: Any, *_: Any) -> None:
        found.append([text.get_text() for text in figure.legends[0].get_texts()])

    monkeypatch.setattr(Figure, "savefig", note)
    plots.write_plots(path, folder)
    return found


def test_exact_comes_first_and_one_temperature_is_not_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write_metrics(tmp_path / "run", 4, every=2)
    assert _legends(tmp_path / "run", tmp_path, monkeypatch)[0] == ["exact", "sampled", "held-out"]


def test_curves_at_different_temperatures_say_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.write_metrics(tmp_path / "run", 4, every=2)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text() + "[eval]\ntemperature = 0.5\n")
    legends = _legends(tmp_path / "run", tmp_path, monkeypatch)
    assert legends[0] == ["exact, T = 0.7", "sampled, T = 0.7", "held-out, T = 0.5"]
    recipe.write_text("rollout = 3\neval = 4\n")
    assert _legends(tmp_path / "run", tmp_path, monkeypatch)[0] == ["exact", "sampled", "held-out"]


def test_many_runs_have_colours_of_their_own_and_points_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    figures: dict[str, Any] = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.update({path.stem: figure}))
    for name in "abcdefghi":
        made.write_metrics(tmp_path / "runs" / name, 4, every=2)
    plots.write_plots(tmp_path / "runs", tmp_path)
    axes = figures["accuracy"].axes[0]
    assert axes.get_ylabel() == "accuracy"
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert left < 0 < 4 < right
    evaluation = made.eval_line(4)
    assert bottom < evaluation["accuracy/low"] < evaluation["accuracy/high"] < top < 1.5
    points = [bars.lines[0] for bars in axes.containers]
    assert len({str(line.get_color()) for line in points}) == 9
    places = [line.get_transform().transform(line.get_xydata()[0])[0] for line in points]
    assert places == sorted(set(places)), "evaluations of the same step"
    with (tmp_path / "runs" / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made.metrics_line(5, reward=-1.0)) + "\n")
    plots.write_plots(tmp_path / "runs", tmp_path)
    assert figures["accuracy"].axes[0].get_ylabel() == "mean reward"
