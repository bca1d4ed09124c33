"""Plots for a paper: their pictures, axes and legends."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from limbeck.view import plots

from . import made, made_runs


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """By the names of the files, which are not written."""
    from matplotlib.figure import Figure

    found: dict[str, Any] = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: found.update({path.stem: figure}))
    return found


def _legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_exact_comes_first_and_one_temperature_is_not_named(tmp_path: Path, figures: dict[str, Any]) -> None:
    made.write_metrics(tmp_path / "run", 4, every=2)
    plots.write_plots(tmp_path / "run", tmp_path)
    assert _legend(figures["reverse_kl"]) == ["exact", "sampled", "held-out"]
    assert figures["reverse_kl"].axes[0].get_ylabel() == "reverse KL (nats / token)"


def test_each_temperature_has_a_picture(tmp_path: Path, figures: dict[str, Any]) -> None:
    made.write_metrics(tmp_path / "run", 4, every=2)
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text() + "[eval]\ntemperature = 0.5\n")
    plots.write_plots(tmp_path / "run", tmp_path)
    assert _legend(figures["reverse_kl_t0.7"]) == ["exact", "sampled"]
    assert _legend(figures["reverse_kl_t0.5"]) == ["held-out"]
    assert figures["reverse_kl_t0.5"].axes[0].get_ylabel() == "reverse KL at T = 0.5 (nats / token)"


def test_temperatures_that_are_almost_alike_have_pictures_of_their_own(tmp_path: Path, figures: dict[str, Any]) -> None:
    for name, temperature in (("a", 0.7), ("b", 0.7000001), ("c", 1.0)):
        made_runs.write_run(tmp_path / name, temperature=temperature, steps=4, rollouts=False)
    plots.write_plots(tmp_path, tmp_path)
    assert {"reverse_kl_t0.7", "reverse_kl_t0.7000001", "reverse_kl_t1"} <= set(figures)
    assert figures["reverse_kl_t0.7000001"].axes[0].get_ylabel() == "reverse KL at T = 0.7000001\n(nats / token)"
    assert _legend(figures["accuracy"]) == ["a, T = 0.7", "b, T = 0.7000001", "c, T = 1"]


def test_pictures_of_an_earlier_report_are_named_and_no_other_files(tmp_path: Path) -> None:
    ours = [
        "reverse_kl.png",
        "reverse_kl_t0.7000001.png",
        "entropy_t_unknown.png",
        "entropy_t1e-05.png",
        "accuracy.png",
    ]
    for name in [*ours, "reverse_kl_teacher.png", "mine.png", "entropy.svg"]:
        (tmp_path / name).touch()
    assert plots.left_over(tmp_path, [tmp_path / "accuracy.png"]) == sorted(tmp_path / name for name in ours[:-1])


@pytest.mark.parametrize("recipe", ["rollout = 3\neval = 4\n", "rollout = [", None, "[rollout]\ntemperature = 'hot'\n"])
def test_a_recipe_that_cannot_be_read_is_at_no_temperature(
    recipe: str | None, tmp_path: Path, figures: dict[str, Any]
) -> None:
    for name in ("a", "b"):
        made.write_metrics(tmp_path / "runs" / name, 4, every=2)
    path = tmp_path / "runs" / "a" / "recipe.toml"
    path.unlink() if recipe is None else path.write_text(recipe)
    plots.write_plots(tmp_path / "runs" / "a", tmp_path)
    assert figures["reverse_kl"].axes[0].get_ylabel() == "reverse KL, T unknown (nats / token)"
    plots.write_plots(tmp_path / "runs", tmp_path)
    assert {"reverse_kl_t0.7", "reverse_kl_t_unknown", "entropy_t0.7", "entropy_t_unknown"} <= set(figures)
    assert _legend(figures["accuracy"]) == ["a, T unknown", "b, T = 0.7"]


def test_several_runs_are_told_apart_by_colour_and_curves_by_stroke(tmp_path: Path, figures: dict[str, Any]) -> None:
    names = ["a", "_b", "long-" * 20 + "1", "long-" * 20 + "2", "$x^$"]
    for name in names:
        made.write_metrics(tmp_path / "runs" / name, 4, every=2)
    plots.write_plots(tmp_path / "runs", tmp_path)
    figure = figures["reverse_kl"]
    shown = _legend(figure)
    assert len(set(shown)) == len(names) + 2
    assert {"a", "_b", "$x^$", "exact", "held-out"} <= set(shown)
    extent = figure.legends[0].get_window_extent(figure.canvas.get_renderer())
    assert extent.width <= figure.bbox.width
    assert figure.get_figheight() == pytest.approx(plots.HEIGHT + extent.height / figure.dpi)


def test_a_run_that_diverges_does_not_flatten_the_others(tmp_path: Path, figures: dict[str, Any]) -> None:
    for seed in range(3):
        made_runs.write_run(tmp_path / f"s{seed}", seed, steps=30, rollouts=False)
    made_runs.write_run(tmp_path / "hot", lr=0.01, steps=30, rollouts=False)
    plots.write_plots(tmp_path, tmp_path)
    axes = figures["reverse_kl"].axes[0]
    assert axes.get_ylim()[1] < 1
    note = " ".join(axes.get_title(loc="right").split())
    assert re.fullmatch(r"beyond the axis: \d+ values of hot, up to 6\.98", note)
    assert not figures["entropy"].axes[0].get_title(loc="right")


def test_runs_named_like_curves_keep_their_colours(tmp_path: Path, figures: dict[str, Any]) -> None:
    names = ["exact", "student", "teacher"]
    for name in names:
        made.write_metrics(tmp_path / name, 4, every=2)
    plots.write_plots(tmp_path, tmp_path)
    for picture, curves in (("reverse_kl", ["exact", "held-out"]), ("entropy", ["student", "teacher"])):
        assert _legend(figures[picture]) == [*names, *curves]
        colours = [line.get_color() for line in figures[picture].legends[0].get_lines()]
        assert colours == [*plots.COLOURS[:3], plots.GREY, plots.GREY]


def test_an_axis_that_shows_every_value_is_not_cut(tmp_path: Path, figures: dict[str, Any]) -> None:
    odd = {12: {"reverse_kl/exact": 2.0}, 3: {"reverse_kl/exact/se": 2.5}}
    lines = [json.dumps(made.metrics_line(step, **odd.get(step, {}))) + "\n" for step in range(1, 41)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines))
    plots.write_plots(tmp_path / "run", tmp_path)
    axes = figures["reverse_kl"].axes[0]
    assert not axes.get_title(loc="right")
    assert axes.get_autoscaley_on()


def test_many_runs_have_colours_of_their_own_and_points_beside_each_other(
    tmp_path: Path, figures: dict[str, Any]
) -> None:
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
