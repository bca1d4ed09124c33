"""What explains the recorded log-probs of one side: a shift, a form and a temperature, and from which step on.

Every candidate is compared on the same tokens by its summed absolute residual, cut at `CAP` so that a few wild tokens
decide nothing. A dynamic programme splits the steps into at most `SEGMENTS` stretches with one candidate each; then
the temperature of each stretch is fitted by iteratively reweighted least squares.

Shape legend: N recorded tokens, U units (steps, or runs of rows), H candidates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.audit.recompute import Curves
from limbeck.records import Ints

Shift: TypeAlias = Literal["none", "next", "previous", "own", "early"]
Form: TypeAlias = Literal["normalised", "divided", "base 2", "base 10"]
SHIFTS: tuple[Shift, ...] = ("none", "next", "previous", "own", "early")
FORMS: tuple[Form, ...] = ("normalised", "divided", "base 2", "base 10")
CAP = 2.0  # nats
SEGMENTS = 3
UNITS = 200  # units that the segmentation looks at
CLEARLY = 0.8  # a stranger candidate must leave less than this share of the plain one's residual
HALF = 2.0**-8  # what a value recorded in bfloat16 may be off, relative to its size
GAIN = 0.004  # nats a token that it must also save


@dataclass(frozen=True)
class Recorded:
    """The tokens of one side that are compared."""

    values: Reals  # [N]
    state: Ints  # [N] the state that predicts each
    room: tuple[Ints, Ints]  # [N] states before it in its row, trained tokens after it
    row: Ints  # [N] its row
    unit: Ints  # [N] 0 to U - 1
    into: Ints  # [N] recorded tokens of its row that precede it

    def take(self, chosen: Ints) -> Recorded:
        before, after = self.room
        return Recorded(
            self.values[chosen], self.state[chosen], (before[chosen], after[chosen]), self.row[chosen],
            self.unit[chosen], self.into[chosen],
        )  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    shift: Shift
    form: Form
    beta: float


@dataclass
class Stretch:
    """Some units in a row, and what explains them."""

    begin: int
    end: int
    best: Candidate
    temperature: float = math.nan
    error: float = math.nan  # standard error of the temperature
    noise: float = math.nan  # median absolute residual, nats
    residual: float = math.nan  # its mean, each cut at `CAP`
    raw: float = math.nan  # the same without allowing for values that were recorded in bfloat16
    square: float = math.nan  # the mean of the squares of `raw`
    size: float = math.nan  # the mean of the values themselves, cut in the same way: what guessing 0 would leave
    wild: float = 0.0  # share of tokens that are far off
    count: int = 0
    context: str = ""  # what the model saw in place of the row's own prefix, where that explains more
    tokens: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # [N] places in `Recorded`


def units_of(rows: Sequence[Row]) -> tuple[Ints, list[int | None]]:
    """[rows] the unit of each row, and the step each unit begins with: whole steps where there are any."""
    steps = [row.step for row in rows]
    if None in steps or len(set(steps)) == 1:
        size = max(1, math.ceil(len(rows) / UNITS))
        unit = np.arange(len(rows)) // size
        return unit, [None] * (int(unit[-1]) + 1)
    known = sorted({step for step in steps if step is not None})
    size = max(1, math.ceil(len(known) / UNITS))
    place = {step: index // size for index, step in enumerate(known)}
    return np.asarray([place[step] for step in steps if step is not None]), list(known[::size])


def recorded_of(rows: Sequence[Row], units: Ints, curves: Curves, name: str) -> Recorded:
    """The trained tokens of the response for which a side has recorded a value."""
    parts: list[tuple[Reals, Ints, Ints, Ints, Ints, Ints]] = []
    for index, row in enumerate(rows):
        values = row.recorded(name)
        trained = np.flatnonzero(row.trained & (np.arange(len(values)) >= max(1, row.start)))
        places = trained[np.isfinite(values[trained])]
        if curves.first[index] < 0 or not len(places):
            continue
        after = trained[-1] - places  # what follows the last one, such as padding, is no token of the response
        parts.append((values[places], places, np.full(len(places), index), after, places - 1, np.arange(len(places))))
    if not parts:
        empty = np.zeros(0, np.int64)
        return Recorded(np.zeros(0), empty, (empty, empty), empty, empty, empty)
    values, places, row_of, after, before, into = (np.concatenate([part[i] for part in parts]) for i in range(6))
    state = curves.first[row_of] + places - 1
    return Recorded(values, state, (before, after), row_of, units[row_of], into)


def predicted(curves: Curves, recorded: Recorded, candidate: Candidate) -> tuple[Reals, Reals]:
    """[N] what a candidate says was recorded, and its derivative by 1/T. NaN where it says nothing."""
    before, after = recorded.room
    state, beta = recorded.state, candidate.beta
    match candidate.shift:
        case "none":
            places, z = state, curves.z_next[state]
        case "next":  # the list is one place too early: the value of the token after
            places = np.where(after >= 1, state + 1, -1)
            z = curves.z_next[places]
        case "previous":  # the first of the list is whatever was there
            places = np.where(recorded.into >= 1, state - 1, -1)
            z = curves.z_next[places]
        case "own":  # the logits after the token itself
            last = len(curves.z_own) - 1
            places = np.where(state + 1 <= last, state + 1, -1)
            z = curves.z_own[places]
        case "early":  # the logits before the token that precedes it
            places = np.where(before >= 1, state - 1, -1)
            z = curves.z_skip[places]
    if candidate.form == "divided":
        lse, _ = curves.at(places, 1.0)
        return beta * (z - lse), z - lse
    lse, mean = curves.at(places, beta)
    scale = {"base 2": 1 / math.log(2), "base 10": 1 / math.log(10)}.get(candidate.form, 1.0)
    return scale * (beta * z - lse), scale * (z - mean)


def candidates(curves: Curves) -> list[Candidate]:
    shifts = SHIFTS[:3] if curves.served else SHIFTS
    forms = FORMS if len(curves.betas) > 1 else ("normalised", "base 2", "base 10")
    return [
        Candidate(s, f, float(b)) for s in shifts for f in forms for b in curves.betas if f[0] != "b" or s == "none"
    ]


def honest_beta(curves: Curves, temperature: float) -> float:
    """1/T of the temperature that was meant, as it is in the grid."""
    return float(curves.betas[np.abs(curves.betas - 1 / temperature).argmin()])


def costs(curves: Curves, recorded: Recorded, tried: Sequence[Candidate], units: int) -> Reals:
    """[U, H] summed residuals. Where a candidate says nothing of a token it pays what no shift pays."""
    cost_UH = np.zeros((units, len(tried)))
    plain: dict[float, Reals] = {}
    for h, candidate in enumerate(tried):
        residual = np.minimum(np.abs(recorded.values - predicted(curves, recorded, candidate)[0]), CAP)
        if candidate.shift == "none" and candidate.form == "normalised":
            plain[candidate.beta] = np.where(np.isnan(residual), 0.0, residual)
        residual = np.where(np.isnan(residual), plain[candidate.beta], residual)
        cost_UH[:, h] = np.bincount(recorded.unit, residual, minlength=units)
    return cost_UH


def split(cost_UH: Reals, penalty: float) -> list[tuple[int, int]]:
    """The stretches of units with least cost where each keeps one candidate and each border costs `penalty`."""
    count = len(cost_UH)
    sums = np.concatenate([np.zeros((1, cost_UH.shape[1])), np.cumsum(cost_UH, axis=0)])
    best = np.full((SEGMENTS + 1, count + 1), np.inf)
    came = np.zeros((SEGMENTS + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    alone = np.full((count + 1, count + 1), np.inf)
    for i in range(count):
        alone[i, i + 1 :] = (sums[i + 1 :] - sums[i]).min(axis=1)
    for pieces in range(1, SEGMENTS + 1):
        for j in range(1, count + 1):
            options = best[pieces - 1, :j] + alone[:j, j]
            came[pieces, j] = int(options.argmin())
            best[pieces, j] = options[came[pieces, j]]
    pieces = int(np.argmin([best[k, count] + penalty * k for k in range(1, SEGMENTS + 1)])) + 1
    borders, at = [count], count
    for k in range(pieces, 0, -1):
        at = int(came[k, at])
        borders.append(at)
    borders.reverse()
    return list(itertools.pairwise(borders))


def choose(curves: Curves, recorded: Recorded, cost_H: Reals, tried: Sequence[Candidate], honest: float) -> Candidate:
    """The plainest candidate that does about as well as the best: no shift, normalised, at `honest` = 1/T.

    Each shift and form is compared at the temperature that suits it best, and not at the next one of the grid.
    """
    best: dict[tuple[Shift, Form], int] = {}
    for h in np.argsort(cost_H):
        best.setdefault((tried[h].shift, tried[h].form), int(h))
    left: dict[Candidate, float] = {}
    for h in best.values():
        if cost_H[h] <= 3 * cost_H.min() + GAIN * len(recorded.values) or tried[h].shift == "none":
            candidate, _ = refine(curves, recorded, tried[h])
            left[candidate] = summed(curves, recorded, candidate)
    plain = next(c for c in left if (c.shift, c.form) == ("none", "normalised"))
    same = replace(plain, beta=honest)
    allowed = GAIN * len(recorded.values)
    if summed(curves, recorded, same) <= left[plain] + allowed / 10:
        plain = same
        left[same] = summed(curves, recorded, same)
    rival = min(left, key=lambda c: left[c] + allowed / 4 * ((c.shift != "none") + 2 * (c.form != "normalised")))
    return rival if left[rival] < CLEARLY * left[plain] and left[plain] - left[rival] > allowed else plain


def summed(curves: Curves, recorded: Recorded, candidate: Candidate) -> float:
    """The summed residual of a candidate. Where it says nothing of a token it pays what no shift pays."""
    residual = np.minimum(np.abs(recorded.values - predicted(curves, recorded, candidate)[0]), CAP)
    unknown = np.isnan(residual)
    if unknown.any() and candidate.shift != "none":
        part = recorded.take(np.flatnonzero(unknown))
        residual[unknown] = np.minimum(
            np.abs(part.values - predicted(curves, part, replace(candidate, shift="none"))[0]), CAP
        )
    return float(np.nansum(residual))


def refine(curves: Curves, recorded: Recorded, start: Candidate) -> tuple[Candidate, float]:
    """The temperature that fits best near `start`, and the standard error of 1/T, with rows as clusters."""
    if len(curves.betas) < 2:
        return start, math.inf
    beta, low, high = start.beta, float(curves.betas[0]), float(curves.betas[-1])
    error = math.inf
    for _ in range(12):
        value, slope = predicted(curves, recorded, replace(start, beta=beta))
        known = np.isfinite(value) & np.isfinite(slope)
        residual, slope = (recorded.values - value)[known], slope[known]
        if not len(residual):
            break
        scale = max(2 * 1.4826 * float(np.median(np.abs(residual))), 1e-4)
        weight = 1.0 / (1.0 + (residual / scale) ** 2)
        information = float((weight * slope**2).sum())
        if information < 1e-12:
            return start, math.inf
        moved = float(np.clip(beta + (weight * slope * residual).sum() / information, low, high))
        clusters = np.bincount(recorded.row[known], weight * slope * residual)
        error = math.sqrt(float((clusters**2).sum())) / information
        if abs(moved - beta) < 1e-7:
            beta = moved
            break
        beta = moved
    return replace(start, beta=beta), error


def explain(
    curves: Curves, recorded: Recorded, units: int, temperature: float, limit: float, steps: bool = False
) -> list[Stretch]:
    """The stretches of units in order, each with its best candidate, temperature and noise.

    Beyond `limit` nats a token nothing is explained: such units form stretches of their own. Where units are single
    `steps`, a stretch begins with a step; else its border is moved to the row where it fits best.
    """
    tried = candidates(curves)
    honest = honest_beta(curves, temperature)
    cost_UH = costs(curves, recorded, tried, units)
    floor = float(cost_UH.sum(axis=0).min())
    total = len(recorded.values)
    nothing_U = 1.5 * limit * np.bincount(recorded.unit, minlength=units)
    found = []
    for begin, end in split(
        np.column_stack([cost_UH, nothing_U]), penalty=0.5 + 0.03 * floor + GAIN / 4 * total / units
    ):
        chosen = np.flatnonzero((recorded.unit >= begin) & (recorded.unit < end))
        if len(chosen):
            part = recorded.take(chosen)
            best = choose(curves, part, cost_UH[begin:end].sum(axis=0), tried, honest)
            found.append(Stretch(begin, end, best, tokens=chosen))
    if not steps:
        found = sharpen(curves, recorded, found, limit)
    return [measure(curves, recorded, stretch) for stretch in found]


def sharpen(curves: Curves, recorded: Recorded, found: Sequence[Stretch], limit: float) -> list[Stretch]:
    """The stretches with each border moved to the row where it fits best, within a unit on either side."""
    moved = list(found)
    for i in range(1, len(moved)):
        before, after = moved[i - 1], moved[i]
        tokens = np.concatenate([before.tokens, after.tokens])
        unit = recorded.unit[tokens]
        part = recorded.take(tokens)
        gain = [_paid(curves, part, stretch, recorded, limit) for stretch in (before, after)]
        rows, place = np.unique(part.row, return_inverse=True)
        near = np.unique(part.row[np.abs(unit - after.begin + 0.5) < 1])
        later = np.concatenate([[0.0], np.cumsum(np.bincount(place, gain[0] - gain[1], minlength=len(rows)))])
        options = [k for k, row in enumerate(rows) if row in near]
        cut = min(options, key=lambda k: later[k]) if options else 0
        first = rows[cut] if options else after.tokens[0]
        early = part.row < first
        if early.any() and not early.all():
            moved[i - 1], moved[i] = replace(before, tokens=tokens[early]), replace(after, tokens=tokens[~early])
    return moved


def _paid(curves: Curves, part: Recorded, stretch: Stretch, recorded: Recorded, limit: float) -> Reals:
    """[N] what each token of `part` leaves under a stretch's candidate, or under none where that explains nothing."""
    own = recorded.take(stretch.tokens)
    if summed(curves, own, stretch.best) > 1.5 * limit * len(own.values):
        return np.full(len(part.values), 1.5 * limit)
    residual = np.abs(part.values - predicted(curves, part, stretch.best)[0])
    return np.asarray(np.nan_to_num(np.minimum(residual, CAP), nan=0.0))


def measure(curves: Curves, recorded: Recorded, stretch: Stretch, fitted: bool = True) -> Stretch:
    """The stretch with its temperature `fitted`, or as it is, and its residuals counted."""
    part = recorded.take(stretch.tokens)
    best, error = refine(curves, part, stretch.best) if fitted else (stretch.best, math.inf)
    raw = np.abs(part.values - predicted(curves, part, best)[0])
    residual = np.maximum(raw - HALF * np.abs(part.values), 0.0)[np.isfinite(raw)]
    raw = raw[np.isfinite(raw)]
    noise = float(np.median(residual)) if len(residual) else math.nan
    wild = float((residual > 0.5 + 10 * noise).mean()) if len(residual) else 0.0
    return replace(
        stretch, best=best, temperature=1 / best.beta, error=error / best.beta**2, noise=noise, wild=wild,
        residual=float(np.minimum(residual, CAP).mean()) if len(residual) else math.nan, count=len(residual),
        raw=float(np.minimum(raw, CAP).mean()) if len(raw) else math.nan,
        square=float((np.minimum(raw, CAP) ** 2).mean()) if len(raw) else math.nan,
        size=float(np.minimum(np.abs(part.values), CAP).mean()) if len(part.values) else math.nan,
    )  # fmt: skip
