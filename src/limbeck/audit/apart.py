"""Two kinds of rows in turn, such as every other one from a second server: what suits all of them may suit none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from limbeck.audit.fit import Candidate, Recorded, Stretch, candidates, choose, costs, measure
from limbeck.audit.recompute import Curves

HALVES = 0.5  # of what one candidate leaves, two must leave less


def two_groups(curves: Curves, recorded: Recorded, stretch: Stretch, temperature: float, fewest: int) -> list[Stretch]:
    """The stretch as two groups of its rows, each with a candidate of its own; itself where two are not far better."""
    part = recorded.take(stretch.tokens)
    _, place = np.unique(part.row, return_inverse=True)
    tried = candidates(curves)
    honest = float(curves.betas[np.abs(curves.betas - 1 / temperature).argmin()])
    cost_RH = costs(curves, replace(part, unit=place), tried, int(place.max()) + 1)
    common = int(np.bincount(cost_RH.argmin(axis=1)).argmax())
    pairs = []
    for base in (tried.index(Candidate("none", "normalised", honest)), common):
        together = np.minimum(cost_RH, cost_RH[:, [base]]).sum(axis=0)
        pairs.append((float(together.min()), base, int(together.argmin())))
    least, first, second = min(pairs)
    if least > HALVES * float(cost_RH.sum(axis=0).min()):
        return [stretch]
    odd = (cost_RH[:, second] < cost_RH[:, first])[place]
    if min(odd.sum(), (~odd).sum()) < fewest:
        return [stretch]
    groups = []
    for chosen in (odd, ~odd):
        own = recorded.take(stretch.tokens[chosen])
        flat = replace(own, unit=np.zeros(len(own.values), np.int64))
        best = choose(curves, flat, costs(curves, flat, tried, 1)[0], tried, honest)
        group = measure(curves, recorded, replace(stretch, best=best, tokens=stretch.tokens[chosen]))
        groups.append(replace(group, context=f"{np.unique(own.row).size / (place.max() + 1):.0%} of the rows: "))
    return groups
