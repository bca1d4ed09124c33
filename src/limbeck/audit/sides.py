"""What is wrong with the log-probs of one side: temperature, shift, form, prompt, tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from limbeck.audit.apart import two_groups
from limbeck.audit.context import Other
from limbeck.audit.dump import Row
from limbeck.audit.fit import (
    CAP,
    HALF,
    Candidate,
    Form,
    Recorded,
    Stretch,
    candidates,
    choose,
    costs,
    explain,
    honest_beta,
    measure,
    predicted,
    recorded_of,
)
from limbeck.audit.precision import Blocks, begins_off, blocks_of, is_exact, strict_limit, surely_beyond
from limbeck.audit.recompute import Curves
from limbeck.audit.report import Finding, NotChecked, since
from limbeck.audit.side_findings import (
    context_finding,
    form_finding,
    shift_finding,
    temperature_finding,
    unexplained_finding,
)
from limbeck.records import Ints

TOLERANCE = 0.02  # of T
ERRORS = 5.0  # standard errors that a temperature must be off
VAGUE = 0.15  # a standard error beyond this share of T says nothing
UNEXPLAINED = 0.08  # nats a token that the best candidate may leave, and
NOISES = 3.0  # times the noise that half precision makes in this model
WORST = 0.5  # nats a token that are never noise
FEWEST = 24  # tokens without which nothing is said of a side
PROBE_ROWS = 48  # rows that another prompt is tried on
SOME_ROWS = 0.03  # share of rows that fit differently, from which on it is said
EMPTY = 0.5  # of what guessing 0 at every token leaves; a fault that leaves more explains nothing
BASES: dict[int, Form] = {2: "base 2", 10: "base 10"}


@dataclass
class Side:
    """One side, recomputed, and how to compute it for other tokens."""

    name: str  # "student", "teacher", "sampler"
    curves: Curves
    floor: float  # nats a token that bfloat16 changes this model's scores by, on average
    recompute: Callable[[Sequence[Row]], Curves] | None = None  # None: a server
    others: Callable[[Sequence[Row]], Iterable[Other]] | None = None
    strict: bool = False  # some side of this dump is exact: little more than that noise is allowed

    @property
    def limit(self) -> float:
        """Nats a token beyond which a candidate explains nothing."""
        if self.strict:
            return min(WORST, strict_limit(self.floor))
        return min(WORST, max(UNEXPLAINED, NOISES * self.floor))


@dataclass
class SideResult:
    values: dict[str, Any]
    findings: list[Finding] = field(default_factory=list)
    not_checked: list[NotChecked] = field(default_factory=list)
    explained: bool = False
    beta: float = math.nan  # of the last stretch
    exact: bool = False  # some of it agrees with what we compute as float32 does


def audit_side(side: Side, rows: Sequence[Row], units: Ints, temperature: float) -> SideResult:
    """What the recorded log-probs of one side say."""
    empty: dict[str, Any] = {"temperature": None, "temperature_error": None, "residual": None}
    recorded = recorded_of(rows, units, side.curves, side.name)
    if len(recorded.values) < FEWEST:
        why = f"{len(recorded.values)} trained tokens have {side.name} log-probs, at least {FEWEST} are needed"
        return SideResult(empty, not_checked=[NotChecked(f"{side.name}_temperature", why)])
    result = SideResult({**empty, "tokens": len(recorded.values), "bfloat16_noise": side.floor})
    count = int(units.max()) + 1
    steps = len({row.step for row in rows}) == count > 1  # each unit is one step
    stretches = explain(side.curves, recorded, count, temperature, side.limit, steps)
    stretches = [_settled(side, recorded, stretch, temperature) for stretch in stretches]
    stretches = [part for stretch in stretches for part in _apart(side, recorded, stretch, temperature)]
    stretches = [_in_context(side, rows, recorded, stretch, temperature) for stretch in stretches]
    blocks = [_blocks(side, recorded, stretch) for stretch in stretches]
    found = [_judge(side, rows, recorded, stretch, temperature) for stretch in stretches]
    fits = [_explained(side, stretch) for stretch in stretches]
    late = [
        _late(side, rows, recorded, stretch, part) if fit else []
        for stretch, part, fit in zip(stretches, blocks, fits, strict=True)
    ]
    _join(result, [*found, *late])
    last = stretches[-1]
    good = [stretch for stretch, fit in zip(stretches, fits, strict=True) if fit]
    result.explained = len(good) == len(stretches) and not any(late)
    result.exact = side.floor > 0 and any(is_exact(part, side.floor) for part in blocks)
    result.values["residual"] = last.raw if side.strict else last.residual
    if good:
        result.beta = good[-1].best.beta
    if fits[-1]:  # what it is now; where nothing explains it, no temperature is one
        if _beyond(side, last):
            result.not_checked.append(NotChecked(f"{side.name}_temperature", f"it is {_beyond(side, last)}"))
        elif last.error < VAGUE * last.temperature:
            result.values |= {"temperature": last.temperature, "temperature_error": last.error}
        else:
            _vague(result, side, last, temperature)
    if len(stretches) > 1:
        result.values["stretches"] = [
            {
                "from_row": rows[int(recorded.row[s.tokens[0]])].index,
                "from_step": rows[int(recorded.row[s.tokens[0]])].step,
                "temperature": s.temperature,
                "temperature_error": s.error,
            }
            for s in stretches
        ]
    return result


def _vague(result: SideResult, side: Side, stretch: Stretch, temperature: float) -> None:
    if len(side.curves.betas) < 2:  # a server that scores at one temperature alone: it fits, or it does not
        result.values |= {"temperature": temperature, "temperature_error": None}
        return
    why = f"these distributions hardly depend on it: {stretch.temperature:.2f} ± {stretch.error:.2f}"
    result.not_checked.append(NotChecked(f"{side.name}_temperature", why))


def _explained(side: Side, stretch: Stretch) -> bool:
    if side.strict:
        return not surely_beyond(stretch.raw, stretch.square, stretch.count, side.limit)
    return stretch.residual <= side.limit


def _empty(side: Side, stretch: Stretch, temperature: float) -> bool:
    """Whether a fault fits no better than chance allows.

    Most log-probs of a peaked model are nearly 0. Scores of other weights are then "explained" by whatever makes them
    small, such as a factor or a temperature at the end of the range that is tried.
    """
    best, edge = stretch.best, bool(_beyond(side, stretch))
    if best.form != "normalised" and edge:
        return True
    if edge and stretch.residual > min(side.limit, strict_limit(side.floor)):
        return True
    fault = best.shift != "none" or best.form != "normalised" or _is_off(stretch, temperature)
    return fault and stretch.raw > EMPTY * stretch.size


def _settled(side: Side, recorded: Recorded, stretch: Stretch, temperature: float) -> Stretch:
    """The stretch; where its fault is empty, under what was meant instead."""
    if not _empty(side, stretch, temperature):
        return stretch
    plain = replace(stretch, best=Candidate("none", "normalised", honest_beta(side.curves, temperature)))
    fitted = measure(side.curves, recorded, plain)
    return measure(side.curves, recorded, plain, fitted=False) if _empty(side, fitted, temperature) else fitted


def _is_off(stretch: Stretch, temperature: float) -> bool:
    off = abs(stretch.temperature - temperature)
    return stretch.error < VAGUE * stretch.temperature and off > max(TOLERANCE * temperature, ERRORS * stretch.error)


def _blocks(side: Side, recorded: Recorded, stretch: Stretch) -> Blocks:
    """What each block of a stretch's units leaves under its own prompt."""
    part = recorded.take(stretch.tokens)
    off = np.abs(part.values - predicted(side.curves, part, stretch.best)[0])
    known = np.isfinite(off)
    return blocks_of(off[known], part.unit[known])


def _late(side: Side, rows: Sequence[Row], recorded: Recorded, stretch: Stretch, blocks: Blocks) -> list[Finding]:
    """A stretch that is explained on average, and not where it counts: a fault that begins in the middle of it."""
    if not side.strict or stretch.context:
        return []
    off = begins_off(blocks, side.limit)
    if off is None:
        return []
    place, mean, _ = off
    first = int(recorded.row[stretch.tokens[place]])
    return [unexplained_finding(side.name, mean, side.limit, "", since(rows, first))]


def _apart(side: Side, recorded: Recorded, stretch: Stretch, temperature: float) -> list[Stretch]:
    """The stretch, and apart from it those of its rows that fit it badly and something else well."""
    part = recorded.take(stretch.tokens)
    if part.row[0] == part.row[-1]:
        return [stretch]
    if not _explained(side, stretch):
        groups = [
            _settled(side, recorded, group, temperature)
            for group in two_groups(side.curves, recorded, stretch, temperature, FEWEST)
        ]
        if len(groups) > 1 and all(_explained(side, group) for group in groups):
            return groups
    residual = np.abs(part.values - predicted(side.curves, part, stretch.best)[0])
    residual = np.nan_to_num(np.clip(residual - HALF * np.abs(part.values), 0.0, CAP), nan=0.0)
    _, place, counts = np.unique(part.row, return_inverse=True, return_counts=True)
    of_row = np.bincount(place, residual) / counts
    limit = max(side.limit, 4 * float(np.median(of_row)))
    bad = of_row > limit
    if not SOME_ROWS < bad.mean() <= 0.5:
        return [stretch]
    tokens = stretch.tokens[bad[place]]
    if len(tokens) < FEWEST:
        return [stretch]
    odd = recorded.take(tokens)
    tried = candidates(side.curves)
    unit = replace(odd, unit=np.zeros(len(tokens), np.int64))
    honest = honest_beta(side.curves, temperature)
    best = choose(side.curves, unit, costs(side.curves, unit, tried, 1)[0], tried, honest)
    other = measure(side.curves, recorded, Stretch(stretch.begin, stretch.end, best, tokens=tokens))
    other = _settled(side, recorded, other, temperature)
    other.context = f"{bad.mean():.0%} of the rows: "
    nothing_fits = other.residual > 0.5 * float(residual[bad[place]].mean())
    if nothing_fits and float(residual.mean()) <= side.limit:
        return [stretch]
    rest = measure(side.curves, recorded, replace(stretch, tokens=stretch.tokens[~bad[place]]))
    rest = _settled(side, recorded, rest, temperature)
    if not _explained(side, other) and not _explained(side, rest):
        return [stretch]  # nothing explains either: one finding
    return [other, rest]


def _in_context(side: Side, rows: Sequence[Row], recorded: Recorded, stretch: Stretch, temperature: float) -> Stretch:
    """The stretch as another prompt explains it, where its own does not."""
    if _explained(side, stretch) or side.recompute is None or side.others is None:
        return stretch
    of_stretch = np.unique(recorded.row[stretch.tokens])
    chosen = of_stretch[np.linspace(0, len(of_stretch) - 1, min(PROBE_ROWS, len(of_stretch))).astype(int)]
    subset = [rows[int(i)] for i in chosen if rows[int(i)].start > 0]
    if not subset:
        return stretch
    best = stretch
    for other in side.others(subset):
        curves = side.recompute(other.rows)
        flat = np.zeros(len(other.rows), np.int64)
        again = recorded_of(other.rows, flat, curves, side.name)
        if len(again.values) < FEWEST:
            continue
        found = explain(curves, again, 1, temperature, side.limit)[0]
        if found.residual < 0.5 * best.residual and not _empty(side, found, temperature):
            best = replace(found, begin=stretch.begin, end=stretch.end, context=f"{other.name}|{other.text}")
    if best is stretch or not _explained(side, best):
        return stretch
    return replace(best, tokens=stretch.tokens)


def _judge(side: Side, rows: Sequence[Row], recorded: Recorded, stretch: Stretch, temperature: float) -> list[Finding]:
    start = since(rows, int(recorded.row[stretch.tokens[0]]))
    stretch = _renamed(stretch, temperature)
    share = stretch.context if stretch.context.endswith("rows: ") else ""
    if share:
        start = {"since_step": None, "since_row": None}
    if not _explained(side, stretch):
        left = stretch.raw if side.strict else stretch.residual
        return [unexplained_finding(side.name, left, side.limit, share, start)]
    findings = []
    if "|" in stretch.context:
        findings.append(context_finding(side.name, stretch, start))
    if stretch.best.shift != "none":
        findings.append(shift_finding(side.name, stretch.best, share, start))
    if stretch.best.form != "normalised":
        findings.append(form_finding(side.name, stretch.best, share, start))
    if _is_off(stretch, temperature):
        finding = temperature_finding(side.name, stretch, temperature, share, start)
        if edge := _beyond(side, stretch):
            text = f"{share}the {side.name}'s log-probs are those of a temperature {edge}, not {temperature:g}."
            finding = replace(finding, measured=edge, text=text)
        findings.append(finding)
    return findings


def _renamed(stretch: Stretch, temperature: float) -> Stretch:
    """Logarithms to another base at temperature 1, where they look like log-probs divided by an odd temperature."""
    if stretch.best.form != "divided" or abs(stretch.best.beta * temperature - 1) < 0.003:
        return stretch
    for base, form in BASES.items():
        if abs(stretch.best.beta * math.log(base) - 1) < 0.003:
            return replace(stretch, best=Candidate(stretch.best.shift, form, 1.0), temperature=1.0)
    return stretch


def _beyond(side: Side, stretch: Stretch) -> str:
    """ "above 4" for a temperature at the end of the range that is tried, which is no fitted number."""
    if len(side.curves.betas) < 2:
        return ""
    for end, word in ((0, "above"), (-1, "below")):
        if abs(stretch.best.beta - side.curves.betas[end]) < 1e-6:
            return f"{word} {1 / stretch.best.beta:.3g}"
    return ""


def _join(result: SideResult, found: Sequence[Sequence[Finding]]) -> None:
    """The findings of all stretches, each name once, since its first stretch, unless its value changed."""
    for findings in found:
        for finding in findings:
            same = [f for f in result.findings if f.name == finding.name and _same(f, finding)]
            if not same:
                result.findings.append(finding)


def _same(a: Finding, b: Finding) -> bool:
    """Scores that nothing explains are one finding, however far off each stretch is: weights that train move on."""
    if a.name.endswith("_tokenizer_or_weights"):
        return ("rows: " in a.text) == ("rows: " in b.text)
    return _alike(a.measured, b.measured)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 0.03 * max(abs(a), abs(b))
    return bool(a == b)
