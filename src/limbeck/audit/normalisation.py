"""What the loss is divided by: from the weight of each token, or from the logged losses of whole steps.

Right is one number for all trained tokens of the step: the sum of their losses over how many they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.audit.dump import Dump, Reals, Row
from limbeck.audit.report import Finding, NotChecked, since

SAME = 0.02  # relative: a logged loss that a denominator explains
EXACTLY = 2e-3  # relative: weights that are one number
LENGTHS = tuple(2**power for power in range(4, 18))  # constants that a loss is divided by


def normalisation(what: str, left: float, start: dict[str, int | None] | None = None) -> Finding:
    return Finding(
        "normalisation",
        what,
        "trained tokens of the whole step",
        f"the loss is divided by {what} ({left:.1%} is left): tokens do not weigh alike, or not as much as they are.",
        "a mean over each row or micro-batch, then over those, or a constant length",
        "sum over all trained tokens and divide once by their number in the whole step, before micro-batches",
        **(start or {}),
    )


def _by_step(rows: Sequence[Row]) -> dict[int | None, list[int]]:
    steps: dict[int | None, list[int]] = {}
    for index, row in enumerate(rows):
        steps.setdefault(row.step, []).append(index)
    return steps


def check_weights(dump: Dump, rows: Sequence[Row]) -> tuple[list[Finding], list[NotChecked]] | None:
    """The weight that each token's loss had, where the dump has it: alike within a step, and 1 / its trained tokens.

    The size is compared only where the dump has whole steps. Weights of 1, whatever the step, say nothing of it.
    """
    if not any(np.isfinite(row.recorded("weights")[row.trained]).any() for row in rows):
        return None
    bad: list[tuple[int, str, float]] = []
    constant: list[tuple[int, float]] = []
    for members in _by_step(rows).values():
        weights = [rows[i].recorded("weights")[rows[i].trained] for i in members]
        values = np.concatenate(weights)
        if not len(values) or not np.isfinite(values).all() or not (values > 0).any():
            continue
        lengths = np.concatenate([np.full(len(w), len(w)) for w in weights]).astype(float)
        spread = float(np.ptp(values) / np.abs(values).mean())
        if spread > EXACTLY:
            by_row = float(np.ptp(values * lengths) / np.abs(values * lengths).mean())
            name = "each row's own trained tokens" if by_row < EXACTLY else "something that differs between its tokens"
            bad.append((members[0], name, min(by_row, spread)))
        else:
            constant.append((members[0], float(values.mean()) * len(values)))
    if bad:
        first, name, left = bad[0]
        return [normalisation(name, left if "row" in name else 0.0, since(rows, first))], []
    return _size(dump, rows, constant)


def _size(
    dump: Dump, rows: Sequence[Row], constant: Sequence[tuple[int, float]]
) -> tuple[list[Finding], list[NotChecked]]:
    """Whether the weights of each step sum to 1."""
    if not constant:
        return [], [NotChecked("normalisation", "no step has a finite weight above 0 at each of its trained tokens")]
    sums = np.asarray([total for _, total in constant])
    if not dump.complete or any(row.step is None for row in rows):
        return [], [NotChecked("normalisation", "weights are alike within a step; its whole size is not in this dump")]
    wrong = np.abs(sums - 1) > 5 * EXACTLY
    if not wrong.any():
        return [], []
    counts = sorted({len(members) for members in _by_step(rows).values()})
    unit = [float(rows[index].recorded("weights")[rows[index].trained].mean()) for index, _ in constant]
    if np.ptp(unit) < EXACTLY * np.mean(unit) and abs(np.mean(unit) - 1) < EXACTLY:
        return [], [NotChecked("normalisation", "every weight is 1: what the sum is divided by is not in this dump")]
    first = int(np.flatnonzero(wrong)[0])
    text = f"1 / {1 / unit[first]:.1f}, where the step has {sums[first] / unit[first]:.0f} trained tokens"
    if len(counts) == 1 and abs(1 / unit[first] / counts[0] - round(1 / unit[first] / counts[0])) < 1e-3:
        text = f"the {counts[0]} rows of a step times {1 / unit[first] / counts[0]:.0f}"
    return [normalisation(text, 0.0, since(rows, constant[first][0]))], []


def check_step_losses(dump: Dump, rows: Sequence[Row]) -> tuple[list[Finding], list[NotChecked]]:
    """The logged loss of whole steps against the sum of its tokens' losses under each denominator.

    The one that fits best is named, and only where no other fits about as well.
    """
    steps: dict[int, list[Row]] = {}
    for row in rows:
        if row.step is not None and row.step_loss is not None and np.isfinite(row.recorded("losses")).any():
            steps.setdefault(row.step, []).append(row)
    if not steps or not dump.complete:
        why = (
            "the dump has no loss of whole steps beside those of their tokens"
            if dump.complete
            else "steps are not whole"
        )
        return [], [NotChecked("normalisation", why)]
    logged = np.asarray([members[0].step_loss for members in steps.values()], dtype=float)
    tried = [_denominators(members) for members in steps.values()]
    longest = max(len(row.token_ids) - row.start for row in rows)
    off: dict[str, Reals] = {}
    for name in tried[0]:
        values = np.asarray([each[name] for each in tried])
        off[name] = np.abs(values - logged) / np.maximum(np.abs(logged), 1e-9)
    per_row = np.asarray([each["the number of rows"] for each in tried])
    for length in LENGTHS:
        if length >= longest:
            off[f"rows times a constant of {length}"] = np.abs(per_row / length - logged) / np.maximum(
                np.abs(logged), 1e-9
            )
    return _best(off)


def _best(off: dict[str, Reals]) -> tuple[list[Finding], list[NotChecked]]:
    left = {name: float(np.mean(values)) for name, values in off.items()}
    right = off["trained tokens"]
    order = [name for name in off if name == "trained tokens" or not np.allclose(off[name], right, rtol=0, atol=1e-9)]
    order.sort(key=lambda name: left[name])
    best = order[0]
    if not left[best] < SAME:
        return [], [NotChecked("normalisation", "the logged losses fit none of the known denominators")]
    alike = [name for name in order if left[name] < max(3 * left[best], 1e-5)]
    if best == "trained tokens" and len(alike) == 1:
        return [], []
    if len(alike) > 1:
        return [], [NotChecked("normalisation", f"the logged losses fit {', '.join(alike)} alike")]
    return [normalisation(best, left[best])], []


def _denominators(rows: Sequence[Row]) -> dict[str, float]:
    """What a step's loss would be under each denominator."""
    losses = [np.nan_to_num(row.recorded("losses"))[row.trained] for row in rows]
    total, counts = sum(float(values.sum()) for values in losses), [len(values) for values in losses]
    responses = [len(row.token_ids) - row.start for row in rows]
    return {
        "trained tokens": total / max(1, sum(counts)),
        "each row's own trained tokens": float(np.mean([v.mean() if len(v) else 0.0 for v in losses])),
        "all tokens of the responses": total / max(1, sum(responses)),
        "all tokens, prompts too": total / max(1, sum(len(row.token_ids) for row in rows)),
        "the number of rows": total / len(rows),
        "rows times the longest response": total / max(1, len(rows) * max(responses)),
    }
