"""Losses and advantages step by step: an estimator that changes in the middle fits no whole dump."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.audit.losses import Tokens
from limbeck.audit.report import Finding, NotChecked, since
from limbeck.records import Ints

PIECES = 40  # that a dump is looked at in
FEWEST = 60  # tokens in each

Dense = Callable[[Tokens], Mapping[str, Reals]]
Checked = tuple[list[Finding], list[NotChecked]]
Check = Callable[[Sequence[Row], Tokens, Dense], Checked]


def spells(rows: Sequence[Row], tokens: Tokens, units: Ints, dense: Dense, check: Check) -> Checked:
    """The findings of a check over the whole dump; where it has none, those that most pieces have from one on."""
    whole = check(rows, tokens, dense)
    borders = _borders(units[tokens.row])
    if whole[0] or len(borders) < 3:
        return whole
    estimates = dense(tokens)
    pieces: list[tuple[int, Sequence[Finding]]] = []
    for a, b in itertools.pairwise(borders):
        chosen = np.arange(a, b)
        part = Tokens(*(getattr(tokens, name)[chosen] for name in ("row", "place", "student", "teacher", "trained")))
        if any(np.isfinite(values[chosen]).sum() < FEWEST for values in estimates.values()):
            continue
        inside = {name: values[chosen] for name, values in estimates.items()}
        pieces.append((int(part.row[0]), _inside(check, rows, part, inside)))
    found: dict[str, list[int]] = {}
    for place, (_, findings) in enumerate(pieces):
        for finding in findings:
            found.setdefault(finding.name, []).append(place)
    kept = []
    for name, places in found.items():
        if len(places) > 0.5 * (len(pieces) - places[0]):
            first, findings = pieces[places[0]]
            start = since(rows, first)
            kept += [
                replace(f, since_step=start["since_step"], since_row=start["since_row"])
                for f in findings
                if f.name == name
            ]
    return (kept, []) if kept else whole


def _inside(check: Check, rows: Sequence[Row], part: Tokens, estimates: Mapping[str, Reals]) -> list[Finding]:
    return check(rows, part, lambda _: estimates)[0]


def _borders(unit: Ints) -> list[int]:
    """Places where pieces of whole units begin, and the end."""
    least = max(FEWEST, len(unit) // PIECES)
    borders = [0]
    for place in np.flatnonzero(np.diff(unit)) + 1:
        if place - borders[-1] >= least and len(unit) - place >= FEWEST:
            borders.append(int(place))
    return [*borders, len(unit)]
