"""What a y axis shows where a few values, or a few runs, would flatten all the rest. As `extent` of the page's charts.

limits = axis_limits(lines)     (0.1, 0.7), or None where all is shown
beyond_limits(lines, limits)    ["12 values of hot, up to 7.68"]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

FEW = 10  # values of a line, of which none is called an outlier
NEWEST_FEW = 3  # may be the start of a divergence
FAR = 3  # a run that is merely worse than the others is shown


@dataclass(frozen=True)
class Line:
    """Values of a run, and the ends of their band. `points`: evaluations, which are few."""

    run: str
    values: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    points: bool = False

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]


def axis_limits(lines: Sequence[Line]) -> tuple[float, float] | None:
    """What is left of the values without outliers, as [low, high] with the bands; None where nothing is left out.

    Left out is, of a line, the hundredth part that is furthest out, and never its newest values, where that alone would
    take more of the axis than all the rest; and of whole runs those that are furthest out, as long as they are fewer
    than the others and would take `FAR` times as much as those.
    """
    low, high = -_end(lines, -1), _end(lines, 1)
    inside = [
        (value, around)
        for line in lines
        for value, *around in zip(line.values, *(line.band or ()), strict=True)
        if math.isfinite(value)
    ]
    kept = [(value, *around) for value, around in inside if low <= value <= high]
    if len(kept) == len(inside):
        return None
    ends = [end for values in kept for end in values if math.isfinite(end)]
    return min(ends), max(ends)


def beyond_limits(lines: Iterable[Line], limits: tuple[float, float], name: Callable[[str], str]) -> list[str]:
    """What is not seen of each run, in words."""
    beyond: dict[str, list[float]] = {}
    for line in lines:
        beyond.setdefault(line.run, []).extend(v for v in line.finite if not limits[0] <= v <= limits[1])
    return [
        f"{len(values)} {'value' if len(values) == 1 else 'values'} of {name(run)}, "
        + " and ".join(
            [f"up to {max(values):.3g}"] * (max(values) > limits[1])
            + [f"down to {min(values):.3g}"] * (min(values) < limits[0])
        )
        for run, values in beyond.items()
        if values
    ]


def _end(lines: Sequence[Line], sign: int) -> float:
    """The largest value that is shown of the values times `sign`; infinity where none is too large."""
    least, most, high = math.inf, -math.inf, -math.inf
    for line in lines:
        values = sorted(sign * value for value in line.finite)
        if values:
            out = 0 if line.points or len(values) < FEW else -(-len(values) // 100)
            newest = [sign * value for value in line.finite[-NEWEST_FEW:]]
            least = min(least, values[out], *newest)
            high = max(high, values[-1 - out], *newest)
            most = max(most, values[-1])
    top = high if 0 < high - least < most - high else math.inf
    return min(top, _end_of_most(lines, sign, top))


def _end_of_most(lines: Sequence[Line], sign: int, top: float) -> float:
    """The same of whole runs, without what is above `top` already."""
    shown: dict[str, list[float]] = {}
    for line in lines:
        shown.setdefault(line.run, []).extend(v for value in line.finite if (v := sign * value) <= top)
    highest = sorted((max(values) for values in shown.values() if values), reverse=True)
    least = min((min(values) for values in shown.values() if values), default=0.0)
    for count in range((len(highest) - 1) // 2, 0, -1):
        if highest[count - 1] - highest[count] > FAR * (highest[count] - least) > 0:
            return highest[count]
    return math.inf
