"""Plots for a paper, by matplotlib: the curves of the page, one PNG each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.view.runs import Runs

COLOURS = ("#1f6fb2", "#d9700f", "#0a8f6c", "#a855a0", "#8a6d00", "#6f8aa3", "#c23b3b")
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "savefig.dpi": 200, "figure.figsize": (4.6, 3.0), "figure.constrained_layout.use": True,
}  # fmt: skip


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
    _Plot("accuracy", "mean reward", (REWARD,)),
    _Plot(
        "entropy",
        "entropy (nats / token)",
        (_Curve("entropy/student", "train", "student"), _Curve("entropy/teacher", "train", "teacher", "--")),
    ),
    _Plot("response_length", "tokens / response", (_Curve("response_length/mean", "train", "mean"),)),
)


def write_plots(path: Path, folder: Path) -> list[Path]:
    """The plots there are values for. Raises `RunError` where matplotlib or the values are missing."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("--png needs matplotlib: pip install 'limbeck[report]'") from None
    runs = {run.path.name: run.metrics() for run in Runs(path).all()}
    temperatures = {run.path.name: _temperatures(run.describe()["recipe"]) for run in Runs(path).all()}
    # Numbers at different temperatures are different quantities: then each curve says its own.
    mixed = len({str(value) for kinds in temperatures.values() for value in kinds.values()}) > 1
    written = []
    with rc_context(STYLE):
        for plot in PLOTS:
            figure = Figure()
            axes = figure.add_subplot()
            drawn = [
                _draw(axes, plot, name, metrics, i, len(runs), temperatures[name] if mixed else {})
                for i, (name, metrics) in enumerate(runs.items())
            ]
            if not any(drawn):
                continue
            axes.set_xlabel("step")
            axes.set_ylabel(plot.label)
            axes.legend()
            written.append(folder / f"{plot.name}.png")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                figure.savefig(written[-1])
            except OSError as error:
                raise RunError(f"cannot write {written[-1]}: {error.strerror}. Give another folder.") from None
    if not written:
        raise RunError(f"there is nothing to plot in {path}: no metrics.jsonl with steps or evaluations.")
    return written


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
        colour = COLOURS[(index if runs > 1 else number) % len(COLOURS)]
        steps, values = columns["step"], _floats(values)
        label = f"{run} {curve.label}" if runs > 1 else curve.label
        label += f", T = {temperatures[curve.kind]}" if temperatures else ""
        band = _band(columns["values"], curve, values)
        if curve.line == "o":
            bars = [[abs(v - end) for v, end in zip(values, side, strict=True)] for side in band] if band else None
            axes.errorbar(
                steps, values, yerr=bars, fmt="o", color=colour, label=label, linewidth=1, markersize=3, capsize=2
            )
        else:
            axes.plot(steps, values, curve.line, color=colour, label=label, linewidth=1.2)
            if band:
                axes.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
        drawn = True
    return drawn


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
