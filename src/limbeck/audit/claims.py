"""The temperatures that a dump itself claims for its rows, beside the one that was meant.

Each row is audited at its own. Where rows differ, the logits of each are scaled so that its own temperature stands
where the most frequent one does: every number is then of that one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from limbeck.audit.dump import Dump, Row
from limbeck.audit.report import Finding
from limbeck.errors import DataError

SAME = 1e-3  # relative: two temperatures that are one


@dataclass(frozen=True)
class Claims:
    temperature: float  # that the audit is made at
    rows: list[Row]
    notes: list[str]
    findings: list[Finding]


def settle(dump: Dump, meant: float, served: bool) -> Claims:
    """The rows with their scales. A server answers at one temperature: rows of another are left out, and counted.

    Raises `DataError` for a temperature that is none.
    """
    for row in dump.rows:
        if row.temperature is not None and not 0 < row.temperature < float("inf"):
            raise DataError(f"{row.where}: temperature is {row.temperature}, expected a finite number above 0.")
    claimed = [row.temperature if row.temperature is not None else meant for row in dump.rows]
    if all(_alike(value, meant) for value in claimed):
        return Claims(meant, dump.rows, [], [])
    found = sorted({round(value, 6) for value in claimed})
    agree = sum(_alike(value, meant) for value in claimed)
    base = meant if agree else Counter(claimed).most_common(1)[0][0]
    said = f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"
    note = f"The dump's own temperatures are {said}, --temperature is {meant:g}: {agree} of {len(claimed)} rows agree."
    rows = dump.rows
    if served:
        rows = [row for row, value in zip(rows, claimed, strict=True) if _alike(value, base)]
        note += f" The {len(rows)} rows at {base:g} are audited: a server answers at one temperature."
    else:
        for row, value in zip(rows, claimed, strict=True):
            row.scale = base / value
        note += f" Each row is audited at its own; the numbers below are those of rows at {base:g}."
    return Claims(base, rows, [note], [] if agree else [_other(base, meant, note)])


def _alike(a: float, b: float) -> bool:
    return abs(a - b) < SAME * b


def _other(claimed: float, meant: float, text: str) -> Finding:
    return Finding(
        "rollout_temperature",
        claimed,
        meant,
        text,
        "the run was started with another temperature than the one that was meant",
        f"sample at {meant:g}, or audit at the temperature of the run",
    )
