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
    Recorded,
    Stretch,
    candidates,
    choose,
    costs,
    explain,
    measure,
    predicted,
    recorded_of,
)
from limbeck.audit.precision import Blocks, begins_off, blocks_of, is_exact, strict_limit, surely_beyond
from limbeck.audit.recompute import Curves
from limbeck.audit.report import Finding, NotChecked, since
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
NAMES = {
    "next": "each value is that of the token after",
    "previous": "each value is that of the token before",
    "own": "each token was scored with the logits after the token itself",
    "early": "each token was scored with the logits one position too early",
}
OFFSETS = {"next": 1, "previous": -1, "own": 1, "early": -1}


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
    stretches = [part for stretch in stretches for part in _apart(side, recorded, stretch, temperature)]
    stretches = [_in_context(side, rows, recorded, stretch, temperature) for stretch in stretches]
    blocks = [_blocks(side, recorded, stretch) for stretch in stretches]
    found = [_judge(side, rows, recorded, stretch, temperature) for stretch in stretches]
    late = [_late(side, rows, recorded, *pair) for pair in zip(stretches, blocks, strict=True)]
    _join(result, [*found, *late])
    last = stretches[-1]
    good = [stretch for stretch in stretches if _explained(side, stretch)]
    result.explained = len(good) == len(stretches) and not any(late)
    result.exact = side.floor > 0 and any(is_exact(part, side.floor) for part in blocks)
    result.values["residual"] = last.raw if side.strict else last.residual
    if good:
        result.beta = good[-1].best.beta
    if _explained(side, last):  # what it is now; where nothing explains it, no temperature is one
        if last.error < VAGUE * last.temperature:
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


def _blocks(side: Side, recorded: Recorded, stretch: Stretch) -> Blocks:
    """What each block of a stretch's units leaves under its own prompt."""
    part = recorded.take(stretch.tokens)
    off = np.abs(part.values - predicted(side.curves, part, stretch.best)[0])
    known = np.isfinite(off)
    return blocks_of(off[known], part.unit[known])


def _late(side: Side, rows: Sequence[Row], recorded: Recorded, stretch: Stretch, blocks: Blocks) -> list[Finding]:
    """A stretch that is explained on average, and not where it counts: a fault that begins in the middle of it."""
    if not side.strict or not _explained(side, stretch) or stretch.context:
        return []
    off = begins_off(blocks, side.limit)
    if off is None:
        return []
    place, mean, _ = off
    first = int(recorded.row[stretch.tokens[place]])
    return [_unexplained(side.name, replace(stretch, raw=mean), side, "", since(rows, first))]


def _apart(side: Side, recorded: Recorded, stretch: Stretch, temperature: float) -> list[Stretch]:
    """The stretch, and apart from it those of its rows that fit it badly and something else well."""
    part = recorded.take(stretch.tokens)
    if part.row[0] == part.row[-1]:
        return [stretch]
    if not _explained(side, stretch):
        groups = two_groups(side.curves, recorded, stretch, temperature, FEWEST)
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
    honest = float(side.curves.betas[np.abs(side.curves.betas - 1 / temperature).argmin()])
    best = choose(side.curves, unit, costs(side.curves, unit, tried, 1)[0], tried, honest)
    other = measure(side.curves, recorded, Stretch(stretch.begin, stretch.end, best, tokens=tokens))
    other.context = f"{bad.mean():.0%} of the rows: "
    nothing_fits = other.residual > 0.5 * float(residual[bad[place]].mean())
    if nothing_fits and float(residual.mean()) <= side.limit:
        return [stretch]
    rest = measure(side.curves, recorded, replace(stretch, tokens=stretch.tokens[~bad[place]]))
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
        if found.residual < 0.5 * best.residual:
            best = replace(found, begin=stretch.begin, end=stretch.end, context=f"{other.name}|{other.text}")
    if best is stretch or not _explained(side, best):
        return stretch
    return replace(best, tokens=stretch.tokens)


def _judge(side: Side, rows: Sequence[Row], recorded: Recorded, stretch: Stretch, temperature: float) -> list[Finding]:
    start = since(rows, int(recorded.row[stretch.tokens[0]]))
    limit = side.limit
    share = stretch.context if stretch.context.endswith("rows: ") else ""
    if share:
        start = {"since_step": None, "since_row": None}
    if not _explained(side, stretch):
        return [_unexplained(side.name, stretch, side, share, start)]
    findings = []
    if "|" in stretch.context:
        findings.append(_context(side.name, stretch, limit, start))
    if stretch.best.shift != "none":
        findings.append(_shift(side.name, stretch.best, share, start))
    if stretch.best.form != "normalised":
        findings.append(_form(side.name, stretch.best, share, start))
    off = abs(stretch.temperature - temperature)
    if stretch.error < VAGUE * stretch.temperature and off > max(TOLERANCE * temperature, ERRORS * stretch.error):
        findings.append(_temperature(side.name, stretch, temperature, share, start))
    return findings


def _temperature(name: str, stretch: Stretch, temperature: float, share: str, start: dict[str, int | None]) -> Finding:
    at_one = abs(stretch.temperature - 1) < 0.03
    cause = {
        "teacher": "the server scores given text at its own temperature, 1, whatever it is asked"
        if at_one
        else "teacher and rollout were given different temperatures",
        "student": "the trainer does not divide its logits by the rollout temperature"
        if at_one
        else "trainer and sampler were given different temperatures",
        "sampler": "the sampler reports raw log-probs at temperature 1, not those it sampled from"
        if at_one
        else "the sampler was given another temperature than the trainer",
    }[name]
    remedy = {
        "teacher": "limbeck serve, limbeck bake --temperature, or log-probs rescaled within certified bounds: "
        "docs/guides/remote-teachers.md",
        "student": f"divide the student's logits by {temperature:g} before the log-softmax, in the loss too",
        "sampler": "ask for log-probs after temperature (vLLM: logprobs_mode=processed_logprobs), or recompute them",
    }[name]
    return Finding(
        f"{name}_temperature",
        stretch.temperature,
        temperature,
        f"{share}the {name}'s log-probs are those of temperature {stretch.temperature:.4f} ± {stretch.error:.4f}, not "
        f"{temperature:g}.",
        cause,
        remedy,
        **start,
    )


def _shift(name: str, best: Candidate, share: str, start: dict[str, int | None]) -> Finding:
    return Finding(
        f"{name}_shift",
        OFFSETS[best.shift],
        0,
        f"{share}the {name}'s log-probs are off by one: {NAMES[best.shift]}.",
        "a slice of the scored sequence that begins one place early or late, or a leading token that is counted twice",
        "take the log-prob of token i from the logits at position i - 1, and align the list with the response's ids",
        **start,
    )


def _form(name: str, best: Candidate, share: str, start: dict[str, int | None]) -> Finding:
    if best.form == "divided":
        return Finding(
            f"{name}_not_normalised",
            "log q_1 / T",
            "log q_T",
            f"{share}the {name}'s values are its log-probs at temperature 1 times {best.beta:.4f}: no distribution.",
            "log-probs at temperature 1 were divided by T without normalising again",
            "divide the logits by T, then take the log-softmax",
            **start,
        )
    return Finding(
        f"{name}_not_nats",
        best.form,
        "base e",
        f"{share}the {name}'s values are logarithms to {best.form}.",
        "the server reports logarithms to another base",
        "multiply by the logarithm of that base",
        **start,
    )


def _context(name: str, stretch: Stretch, limit: float, start: dict[str, int | None]) -> Finding:
    kind, _, text = stretch.context.partition("|")
    return Finding(
        f"{name}_{kind}",
        text,
        "the tokens of the rollout",
        f"the {name}'s log-probs are explained by {text}: {stretch.residual:.3f} nats a token are left.",
        "the prompt was put through a template, or split, again before it was scored"
        if kind == "template"
        else "the scorer was sent only a part of the sequence",
        "send the sampler's own token ids, prompt and response together, and let nobody template or cut them",
        **start,
    )


def _unexplained(name: str, stretch: Stretch, side: Side, share: str, start: dict[str, int | None]) -> Finding:
    left, limit = stretch.raw if side.strict else stretch.residual, side.limit
    return Finding(
        f"{name}_tokenizer_or_weights",
        left,
        limit,
        f"{share}the {name}'s log-probs are {left:.3f} nats a token from what this model gives, at any "
        f"temperature, shift or prompt that was tried (at most {limit:.3f} is noise).",
        {
            "student": "another checkpoint than the one given, or ids of another tokenizer",
            "teacher": "ids of another tokenizer, or another model than the one given",
            "sampler": "the sampler's weights were not the trainer's",
        }[name],
        "compare both tokenizers (limbeck check) and give the very checkpoint that scored these steps",
        **start,
    )


def _join(result: SideResult, found: Sequence[Sequence[Finding]]) -> None:
    """The findings of all stretches, each name once, since its first stretch, unless its value changed."""
    for findings in found:
        for finding in findings:
            same = [f for f in result.findings if f.name == finding.name and _alike(f.measured, finding.measured)]
            if not same:
                result.findings.append(finding)


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) < 0.03 * max(abs(a), abs(b))
    return bool(a == b)
