"""Plots for a paper, by matplotlib: the curves of the page, one PNG each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.view.runs import Runs

COLOURS = ("#1f6fb2", "#d9700f", "#0a8f6c", "#a855a0", "#8a6d00", "#6f8aa3", "#c23b3b")
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "savefig.dpi": 200, "figure.constrained_layout.use": True,
}  # fmt: skip
WIDTH, HEIGHT, LEGEND_ROW = 4.6, 3.0, 0.19  # inches
LEGEND_WIDTH = 74  # characters of a legend's row
APART = 3.0  # points between evaluations of several runs at the same step


@dataclass(frozen=True)
class _Curve:
    key: str
    kind: str
    label: str
    line: str = "-"  # "o": measured at some steps only, drawn as points with error bars
    band: tuple[str, str] | None = None  # keys of an interval, where it is not the standard error


@dataclass(frozen=True)
class _Plot:
    name: str
    label: str
    curves: tuple[_Curve, ...]


REWARD = _Curve("accuracy", "eval", "held-out", "o", ("accuracy/low", "accuracy/high"))
PLOTS = (
    _Plot(
        "reverse_kl",
        "reverse KL (nats / token)",
        (
            _Curve("reverse_kl/exact", "train", "exact"),
            _Curve("reverse_kl/sampled", "train", "sampled", ":"),
            _Curve("reverse_kl/exact", "eval", "held-out", "o"),
        ),
    ),
    _Plot("accuracy", "accuracy", (REWARD,)),
    _Plot(
        "entropy",
        "entropy (nats / token)",
        (_Curve("entropy/student", "train", "student"), _Curve("entropy/teacher", "train", "teacher", "--")),
    ),
    _Plot("response_length", "tokens / response", (_Curve("response_length/mean", "train", "mean"),)),
)


def require_matplotlib() -> None:
    """Raises `RunError` where it is missing."""
    if find_spec("matplotlib") is None:
        raise RunError("--png needs matplotlib: pip install 'limbeck[report]'")


def write_plots(path: Path, folder: Path) -> list[Path]:
    """The plots there are values for. Raises `RunError` where matplotlib or the values are missing."""
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    runs = {run.path.name: run.metrics() for run in Runs(path).all()}
    temperatures = {run.path.name: _temperatures(run.describe()["recipe"]) for run in Runs(path).all()}
    # Numbers at different temperatures are different quantities: then each curve says its own.
    mixed = len({str(value) for kinds in temperatures.values() for value in kinds.values()}) > 1
    written = []
    with rc_context(STYLE):
        for plot in PLOTS:
            figure = Figure(figsize=(WIDTH, HEIGHT))
            axes = figure.add_subplot()
            drawn = [
                _draw(axes, plot, name, metrics, i, len(runs), temperatures[name] if mixed else {})
                for i, (name, metrics) in enumerate(runs.items())
            ]
            if not any(drawn):
                continue
            axes.set_xlabel("step")
            shares = all(map(_has_shares, runs.values()))
            axes.set_ylabel(plot.label if shares or plot.name != "accuracy" else "mean reward")
            _add_legend(figure, axes)
            written.append(folder / f"{plot.name}.png")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(written[-1])
            except OSError as error:
                raise RunError(f"cannot write {written[-1]}: {error.strerror}. Give another folder.") from None
    if not written:
        raise RunError(f"there is nothing to plot in {path}: no metrics.jsonl with steps or evaluations.")
    return written


def _add_legend(figure: Any, axes: Any) -> None:
    """Below the plot, where no point is behind it; the figure grows by its rows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, LEGEND_WIDTH // (max(map(len, labels)) + 8))
    figure.set_figheight(HEIGHT + LEGEND_ROW * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def _has_shares(metrics: Mapping[str, Any]) -> bool:
    """Whether all rewards are in [0, 1], so that their mean is an accuracy. As `hasShares` of the page."""
    beyond = [value for value in metrics["eval"]["values"].get("accuracy/min", ()) if value is not None]
    rewards = [value for value in metrics["train"]["values"].get("reward", ()) if value is not None]
    return not beyond and all(0 <= value <= 1 for value in rewards)


def _colour(index: int, count: int) -> Any:
    """One for each of `count` lines."""
    if count <= len(COLOURS):
        return COLOURS[index]
    from matplotlib import colormaps

    return colormaps["turbo"](0.04 + 0.92 * index / (count - 1))


def _temperatures(recipe: Mapping[str, Any]) -> dict[str, float]:
    """At which temperature a run's lines of each kind are: an evaluation may have its own."""
    tables = {name: recipe.get(name) for name in ("rollout", "eval")}
    rollout, evaluation = (table if isinstance(table, dict) else {} for table in tables.values())
    sampled_at = rollout.get("temperature", 1.0)
    return {"train": sampled_at, "eval": evaluation.get("temperature", sampled_at)}


def _draw(
    axes: Any,
    plot: _Plot,
    run: str,
    metrics: Mapping[str, Any],
    index: int,
    runs: int,
    temperatures: Mapping[str, float],
) -> bool:
    """Whether the run had values for the plot."""
    drawn = False
    for number, curve in enumerate(plot.curves):
        columns = metrics[curve.kind]
        values = columns["values"].get(curve.key)
        if not values or all(value is None for value in values):
            continue
        colour = _colour(index, runs) if runs > 1 else _colour(number, len(plot.curves))
        steps, values = columns["step"], _floats(values)
        label = f"{run} {curve.label}" if runs > 1 else curve.label
        label += f", T = {temperatures[curve.kind]}" if temperatures else ""
        band = _band(columns["values"], curve, values)
        if curve.line == "o":
            bars = [[abs(v - end) for v, end in zip(values, side, strict=True)] for side in band] if band else None
            beside = min(APART, 24 / runs) * (index - (runs - 1) / 2)
            axes.errorbar(
                steps, values, yerr=bars, fmt="o", color=colour, label=label, linewidth=1, markersize=3, capsize=2,
                transform=_moved(axes, beside),
            )  # fmt: skip
            # The axes do not look at what is moved: they receive its ends.
            seen = [pair for column in (values, *(band or ())) for pair in zip(steps, column, strict=True)]
            axes.update_datalim([pair for pair in seen if math.isfinite(pair[1])])
            axes.autoscale_view()
        else:
            axes.plot(steps, values, curve.line, color=colour, label=label, linewidth=1.2)
            if band:
                axes.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
        drawn = True
    return drawn


def _moved(axes: Any, points: float) -> Any:
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def _band(columns: Mapping[str, Any], curve: _Curve, values: Sequence[float]) -> tuple[list[float], list[float]] | None:
    if curve.band and all(key in columns for key in curve.band):
        return _floats(columns[curve.band[0]]), _floats(columns[curve.band[1]])
    if f"{curve.key}/se" not in columns:
        return None
    errors = _floats(columns[f"{curve.key}/se"])
    pairs = list(zip(values, errors, strict=True))
    return [v - e for v, e in pairs], [v + e for v, e in pairs]


def _floats(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
