"""What was recorded as NaN or infinite, and what was not recorded at all: neither is compared with anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.audit.dump import Row
from limbeck.audit.report import Finding, NotChecked, since

WORDS = {
    "student": "student log-probs", "teacher": "teacher log-probs", "sampler": "sampler log-probs",
    "advantages": "advantages", "losses": "losses", "weights": "loss weights",
}  # fmt: skip


def check_finite(rows: Sequence[Row]) -> tuple[list[Finding], list[NotChecked]]:
    """One finding for each column that has a NaN or an infinity at a trained token."""
    findings, untold = [], []
    trained = sum(int(row.trained.sum()) for row in rows)
    for name, words in WORDS.items():
        known = [row for row in rows if name in row.values]
        if not known or not trained:
            continue
        bad = [int((row.broken[name] & row.trained).sum()) if name in row.broken else 0 for row in rows]
        if any(bad):
            findings.append(_not_finite(rows, name, words, bad, trained))
        missing = sum(int((np.isnan(row.recorded(name)) & row.trained).sum()) for row in rows) - sum(bad)
        if missing and missing + sum(bad) < trained:
            why = f"{missing / trained:.1%} of the trained tokens have no {words}: nothing is said of them"
            untold.append(NotChecked(f"{name}_missing", why))
    return findings, untold


def _not_finite(rows: Sequence[Row], name: str, words: str, bad: Sequence[int], trained: int) -> Finding:
    share, first = sum(bad) / trained, next(i for i, count in enumerate(bad) if count)
    text = (
        f"the {words} of {share:.1%} of the trained tokens are NaN or infinite, in {sum(count > 0 for count in bad)} "
        f"of {len(rows)} rows; the first is {rows[first].where}."
    )
    return Finding(
        f"{name}_not_finite",
        share,
        0.0,
        text,
        "an overflow, a token outside the scorer's top list or a failed answer that was filled in",
        "find where the first one comes from; leave such a row out of the step and count it, or record null",
        **since(rows, first),
    )
