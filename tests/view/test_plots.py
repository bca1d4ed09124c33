"""Plots for a paper: what their legends say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.view import plots

from . import made


def _legends(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    from matplotlib.figure import Figure

    found: list[list[str]] = []

    def note(figure: Any, *_: Any) -> None:
        found.append([text.get_text() for text in figure.axes[0].get_legend().get_texts()])

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
