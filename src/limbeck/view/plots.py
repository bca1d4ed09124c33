"""Plots for a paper, by matplotlib: the curves of the page, one PNG each.

What depends on the temperature has a picture for each.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.view.clipping import Line, axis_limits, beyond_limits
from limbeck.view.legend import add_legend, shortened
from limbeck.view.runs import Runs

COLOURS = ("#1f6fb2", "#d9700f", "#0a8f6c", "#a855a0", "#8a6d00", "#6f8aa3", "#c23b3b")
GREY = "#555555"
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "savefig.dpi": 200, "figure.constrained_layout.use": True, "text.parse_math": False,
}  # fmt: skip
WIDTH, HEIGHT = 4.6, 3.0  # inches
APART = 3.0  # points between evaluations of several runs at the same step
NOTE_SIZE, NOTE_WIDTH, NOTE_NAME = 7, 84, 30  # of what is said of values beyond the axis: points, and characters
LABEL_WIDTH = 38  # characters of a y axis's label that are in its height
ROOM = 0.05  # of an axis that is cut, at either end


@dataclass(frozen=True)
class _Curve:
    key: str
    kind: str
    label: str
    line: str = "-"  # "o": measured at some steps only, drawn as points with error bars
    band: tuple[str, str] | None = None  # keys of an interval, where it is not the standard error
    behind: str = ""  # key of a curve that says the same better: of several runs that one alone is drawn


@dataclass(frozen=True)
class _Plot:
    name: str
    quantity: str
    unit: str
    curves: tuple[_Curve, ...]
    at_temperature: bool = False  # those at different temperatures are different quantities


REWARD = _Curve("accuracy", "eval", "held-out", "o", ("accuracy/low", "accuracy/high"))
PLOTS = (
    _Plot(
        "reverse_kl",
        "reverse KL",
        "nats / token",
        (
            _Curve("reverse_kl/exact", "train", "exact"),
            _Curve("reverse_kl/sampled", "train", "sampled", ":", behind="reverse_kl/exact"),
            _Curve("reverse_kl/exact", "eval", "held-out", "o"),
        ),
        at_temperature=True,
    ),
    _Plot("accuracy", "accuracy", "", (REWARD,)),
    _Plot(
        "entropy",
        "entropy",
        "nats / token",
        (_Curve("entropy/student", "train", "student"), _Curve("entropy/teacher", "train", "teacher", "--")),
        at_temperature=True,
    ),
    _Plot("response_length", "response length", "tokens", (_Curve("response_length/mean", "train", "mean"),)),
)


@dataclass(frozen=True)
class _Drawn(Line):
    """A curve of a run, with what it is drawn by."""

    steps: Sequence[int] = ()
    curve: _Curve = REWARD
    temperature: float | None = None  # None: not known


@dataclass(frozen=True)
class _Picture:
    name: str
    label: str  # of its y axis
    lines: tuple[_Drawn, ...]
    cut: bool = True  # whether values far from the rest may be beyond the axis
    names_temperatures: bool = False


def require_matplotlib() -> None:
    """Raises `RunError` where it is missing."""
    if find_spec("matplotlib") is None:
        raise RunError("--png needs matplotlib: pip install 'limbeck[report]'")


def write_plots(path: Path, folder: Path) -> list[Path]:
    """The plots there are values for. Raises `RunError` where matplotlib or the values are missing."""
    require_matplotlib()
    from matplotlib import rc_context

    runs = Runs(path).all()
    metrics = {run.path.name: run.metrics() for run in runs}
    temperatures = {run.path.name: _temperatures(run.describe()["recipe"]) for run in runs}
    written = []
    with rc_context(STYLE):
        for plot in PLOTS:
            for picture in _pictures(plot, metrics, temperatures):
                written.append(folder / f"{picture.name}.png")
                figure = _figure(picture)
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                    figure.savefig(written[-1])
                except OSError as error:
                    raise RunError(f"cannot write {written[-1]}: {error.strerror}. Give another folder.") from None
    if not written:
        raise RunError(f"there is nothing to plot in {path}: no metrics.jsonl with steps or evaluations.")
    return written


def left_over(folder: Path, written: Sequence[Path]) -> list[Path]:
    """Pictures in `folder` with the names of plots, which are not `written`: an earlier report's."""
    names = re.compile(rf"(?:{'|'.join(plot.name for plot in PLOTS)})(?:_t_unknown|_t[-+.e\d]+)?\.png")
    return sorted(path for path in folder.iterdir() if names.fullmatch(path.name) and path not in written)


def _temperatures(recipe: Mapping[str, Any]) -> dict[str, float | None]:
    """At which temperature a run's lines of each kind are: an evaluation may have its own. None: nobody knows.

    A recipe that can be read and has none is at the default, 1.
    """
    tables = {name: recipe.get(name, {}) for name in ("rollout", "eval")}
    if not recipe or not all(isinstance(table, dict) for table in tables.values()):
        return {"train": None, "eval": None}
    sampled_at = tables["rollout"].get("temperature", 1.0)
    found = {"train": sampled_at, "eval": tables["eval"].get("temperature", sampled_at)}
    return {
        kind: float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        for kind, value in found.items()
    }


def _pictures(
    plot: _Plot, metrics: Mapping[str, Mapping[str, Any]], temperatures: Mapping[str, Mapping[str, float | None]]
) -> Iterator[_Picture]:
    """One for each temperature that its lines are at, where they depend on it; none where there are no values."""
    lines = [line for run in metrics for line in _lines(plot, run, metrics[run], temperatures[run], len(metrics) > 1)]
    known = sorted({line.temperature for line in lines if line.temperature is not None})
    found = [*known, *([None] if any(line.temperature is None for line in lines) else [])]
    if plot.at_temperature:
        for temperature in found:
            mine = tuple(line for line in lines if line.temperature == temperature)
            digits = "" if temperature is None else _digits(temperature)
            where = ", T unknown" if temperature is None else "" if len(found) == 1 else f" at T = {digits}"
            at = "" if len(found) == 1 else "_t_unknown" if temperature is None else f"_t{digits}"
            yield _Picture(plot.name + at, f"{plot.quantity}{where} ({plot.unit})", mine)
    elif lines:
        label, shares = f"{plot.quantity} ({plot.unit})" if plot.unit else plot.quantity, False
        if plot.name == "accuracy":
            shares = all(map(_has_shares, metrics.values()))
            label = label if shares else "mean reward"
        yield _Picture(plot.name, label, tuple(lines), cut=not shares, names_temperatures=len(found) > 1)


def _lines(
    plot: _Plot, run: str, metrics: Mapping[str, Any], temperatures: Mapping[str, float | None], several: bool
) -> Iterator[_Drawn]:
    for curve in plot.curves:
        columns = metrics[curve.kind]["values"]
        values = _floats(columns.get(curve.key, ()))
        hidden = several and any(map(math.isfinite, _floats(columns.get(curve.behind, ()))))
        if any(map(math.isfinite, values)) and not hidden:
            band = _band(columns, curve, values)
            steps, points = metrics[curve.kind]["step"], curve.line == "o"
            yield _Drawn(run, values, band, points, steps, curve, temperatures[curve.kind])


def _figure(picture: _Picture) -> Any:
    """Of one run each curve has a colour; of several each run, and each curve a stroke."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    FigureCanvasAgg(figure)  # measures texts
    axes = figure.add_subplot()
    runs = list(dict.fromkeys(line.run for line in picture.lines))
    curves = list(dict.fromkeys(line.curve for line in picture.lines))
    several = len(runs) > 1
    handles: dict[str, Any] = {}
    for line in picture.lines:
        index = runs.index(line.run)
        colour = _colour(index, len(runs)) if several else _colour(curves.index(line.curve), len(curves))
        beside = min(APART, 24 / len(runs)) * (index - (len(runs) - 1) / 2)
        handle = _draw(axes, line, colour, beside)
        at = "T unknown" if line.temperature is None else f"T = {_digits(line.temperature)}"
        name = line.run if several else line.curve.label
        handles.setdefault(f"{name}, {at}" if picture.names_temperatures else name, handle)
    # A list, as a run may have a curve's name.
    strokes = [(curve.label, _stroke(curve)) for curve in curves] if several and len(curves) > 1 else []
    axes.set_xlabel("step")
    axes.set_ylabel(picture.label if len(picture.label) <= LABEL_WIDTH else picture.label.replace(" (", "\n("))
    if picture.cut:
        _cut(axes, picture.lines)
    add_legend(figure, [*handles.items(), *strokes])
    return figure


def _cut(axes: Any, lines: Sequence[_Drawn]) -> None:
    """Leave values far from the rest beyond the axis, and say which."""
    if (found := axis_limits(lines)) is None:
        return
    room = ROOM * (found[1] - found[0])
    limits = found[0] - room, found[1] + room
    beyond = beyond_limits(lines, limits, lambda run: shortened(run, NOTE_NAME))
    if not beyond:  # the band of another value reaches as far
        return
    axes.set_ylim(*limits)
    note = textwrap.wrap(f"beyond the axis: {'; '.join(beyond)}", NOTE_WIDTH)
    axes.set_title("\n".join(note), fontsize=NOTE_SIZE, loc="right")


def _stroke(curve: _Curve) -> Any:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = (
        {"marker": "o", "linestyle": "", "markersize": 3} if curve.line == "o" else {"linestyle": curve.line}
    )
    return Line2D([], [], color=GREY, linewidth=1.2, **look)


def _draw(axes: Any, line: _Drawn, colour: Any, beside: float) -> Any:
    """What the legend shows of it."""
    if line.points:
        pairs = list(zip(line.values, *line.band, strict=True)) if line.band else []
        bars = [[abs(value - ends[side]) for value, *ends in pairs] for side in (0, 1)] if pairs else None
        handle = axes.errorbar(
            line.steps, line.values, yerr=bars, fmt="o", color=colour, linewidth=1, markersize=3, capsize=2,
            transform=_moved(axes, beside),
        )  # fmt: skip
        # The axes do not look at what is moved: they receive its ends.
        seen = [pair for column in (line.values, *(line.band or ())) for pair in zip(line.steps, column, strict=True)]
        axes.update_datalim([pair for pair in seen if math.isfinite(pair[1])])
        axes.autoscale_view()
        return handle
    (handle,) = axes.plot(line.steps, line.values, line.curve.line, color=colour, linewidth=1.2)
    if line.band:
        axes.fill_between(line.steps, *line.band, color=colour, alpha=0.15, linewidth=0)
    return handle


def _digits(temperature: float) -> str:
    """As few as tell it from any other: 1, 0.7, 0.7000001."""
    short = f"{temperature:g}"
    return short if float(short) == temperature else repr(temperature)


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
