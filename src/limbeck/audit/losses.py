"""Which estimator recorded losses or advantages follow, and what they are divided by.

Each known estimator is computed from the recorded log-probs (or, where it needs whole distributions, from ours) and
compared with what was recorded, up to one factor. One is named only if it fits and no other does.

Shape legend: M tokens that are compared, V vocabulary, K tokens of a support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.audit.normalisation import normalisation
from limbeck.audit.report import Finding, NotChecked
from limbeck.records import Ints, Mask

FITS = 0.12  # share of the recorded variation that an estimator may leave
APART = 2.0  # times as much as another must leave
AT_T = " at T"  # of an estimator that was computed at the temperature that was meant
FEWEST = 50  # tokens
MOVED = ("k1 with the wrong sign", "k1 of the token after", "k1 of the token before")


@dataclass(frozen=True)
class Tokens:
    """The trained tokens with both log-probs, in order of rows."""

    row: Ints  # [M]
    place: Ints  # [M] index in the row
    student: Reals  # [M]
    teacher: Reals  # [M]
    trained: Ints  # [M] trained tokens of the row

    def of(self, rows: Sequence[Row], name: str) -> Reals:
        return np.asarray([rows[r].recorded(name)[p] for r, p in zip(self.row, self.place, strict=True)])


def tokens_of(rows: Sequence[Row], clean: Sequence[Mask]) -> Tokens:
    """Sampler's log-probs where the trainer's are not there."""
    parts: list[tuple[Ints, Ints, Reals, Reals, Ints]] = []
    for index, (row, mask) in enumerate(zip(rows, clean, strict=True)):
        student = row.recorded("student") if "student" in row.values else row.recorded("sampler")
        teacher = row.recorded("teacher")
        places = np.flatnonzero(mask & np.isfinite(student) & np.isfinite(teacher))
        count = np.full(len(places), int(row.trained.sum()))
        parts.append((np.full(len(places), index), places, student[places], teacher[places], count))
    columns = [np.concatenate([part[i] for part in parts]) for i in range(5)]
    return Tokens(columns[0], columns[1], columns[2], columns[3], columns[4])


def sampled_estimators(tokens: Tokens) -> dict[str, Reals]:
    """[M] of each, from the sampled token alone: r is log p - log q."""
    r = tokens.student - tokens.teacher
    up, down = np.exp(np.clip(r, -30, 30)), np.exp(np.clip(-r, -30, 30))
    return {
        "k1": r,
        "k1 log p": r * tokens.student,
        "k2": r**2 / 2,
        "k3": down - 1 + r,
        "k3 log p": (down - 1 + r) * tokens.student,
        "k3 forward": up - 1 - r,
        "absolute": np.abs(r),
    }


def moved(tokens: Tokens) -> dict[str, Reals]:
    """[M] the log-ratio with the wrong sign, or of a neighbour; 0 where a row has no neighbour."""
    r = tokens.student - tokens.teacher
    same = np.concatenate([tokens.row[1:] == tokens.row[:-1], [False]])
    after = np.where(same, np.concatenate([r[1:], [0.0]]), 0.0)
    before = np.where(np.concatenate([[False], same[:-1]]), np.concatenate([[0.0], r[:-1]]), 0.0)
    return dict(zip(MOVED, (-r, after, before), strict=True))


def returns(tokens: Tokens) -> Reals:
    """[M] the sum of r from each token to its row's end."""
    r = tokens.student - tokens.teacher
    total = np.cumsum(r[::-1])[::-1]
    after = np.concatenate([total[1:], [0.0]])
    last = np.concatenate([tokens.row[1:] != tokens.row[:-1], [True]])
    ends = np.flatnonzero(last)
    return np.asarray(total - after[ends[np.searchsorted(ends, np.arange(len(r)))]])


def _left(recorded: Reals, estimate: Reals) -> float:
    """The share of the recorded variation that the best factor times the estimate leaves."""
    scale = float(np.abs(recorded).mean())
    used = np.abs(estimate) > 0.05 * float(np.abs(estimate).mean() or 1.0)
    if scale == 0 or not used.any() or float(np.abs(estimate).mean()) < 1e-9:
        return 1.0
    ratio, weight = recorded[used] / estimate[used], np.abs(estimate[used])
    order = np.argsort(ratio)
    half = np.searchsorted(np.cumsum(weight[order]), weight.sum() / 2)
    factor = float(ratio[order[min(half, len(order) - 1)]])
    if factor <= 0:
        return 1.0
    return float(np.abs(recorded - factor * estimate).mean()) / scale


def best_of(
    recorded: Reals, estimates: Mapping[str, Reals], kind: Callable[[str], str] | None = None
) -> tuple[str, float] | None:
    """The estimator that fits alone; None where none does, or several of another `kind`."""
    kind = kind or _kind
    left = {name: _left(recorded, values) for name, values in estimates.items()}
    order = sorted(left, key=lambda name: left[name])
    if not order or left[order[0]] > FITS:
        return None
    first = order[0]
    rivals = [
        name
        for name in order[1:]
        if left[name] < max(APART * left[first], left[first] + 0.002) and kind(name) != kind(first)
    ]
    return None if rivals else (first, left[first])


def _kind(name: str) -> str:
    """The estimator without its denominator and its K."""
    whole = (name.rpartition(" of ")[0] or name).removesuffix(AT_T)
    return whole.partition(" ")[0] if whole.startswith(("renormalised", "partial")) else whole


def _of_prefix(name: str) -> str:
    """Advantages that depend on the prefix alone are one kind: which of them it is changes nothing."""
    return "of the prefix" if name.startswith(("renormalised", "partial", "full")) else _kind(name)


def check_losses(
    rows: Sequence[Row], tokens: Tokens, dense: Callable[[Tokens], Mapping[str, Reals]]
) -> tuple[list[Finding], list[NotChecked]]:
    """What per-token losses follow, and whether each row is divided by its own length."""
    recorded = tokens.of(rows, "losses")
    known = np.isfinite(recorded)
    if int(known.sum()) < FEWEST:
        return [], [NotChecked("loss", "the dump has no losses of single tokens beside both log-probs")]
    if not np.abs(recorded[known]).any() and np.abs(tokens.student - tokens.teacher).mean() > 0.01:
        return [_all_zero()], []
    estimates: dict[str, Reals] = {**sampled_estimators(tokens), **dense(tokens)}
    weights = {"tokens": np.ones(len(recorded)), "rows": 1 / np.maximum(tokens.trained, 1)}
    finite = known & np.all([np.isfinite(v) for v in estimates.values()], axis=0)
    tried = {
        f"{name} of {how}": (values * weight)[finite]
        for name, values in estimates.items()
        for how, weight in weights.items()
    }
    found = best_of(recorded[finite], tried)
    if found is None:
        return (
            [],
            [NotChecked("loss", "the recorded losses follow none of the known estimators, or several alike")],
        )
    name, left = found
    kind = name.rpartition(" of ")[0].removesuffix(AT_T)
    by_row = name.endswith("of rows") and left < 0.6 * _left(
        recorded[finite], tried[name.replace(" of rows", " of tokens")]
    )
    advantages = tokens.of(rows, "advantages")
    findings = _loss_findings(kind, left, bool(np.isfinite(advantages).any()))
    if by_row:
        findings.append(normalisation("each row's own trained tokens", left))
    return findings, []


def _all_zero() -> Finding:
    return Finding(
        "renormalised_top_k",
        "0 at every token",
        "log p - log q weighs each token",
        "the recorded losses are 0 everywhere, though student and teacher differ.",
        "a KL that is renormalised within a top 1 is always 0",
        "use the sampled token, or the whole distribution",
    )


def _zero_advantages() -> Finding:
    return Finding(
        "zero_gradient",
        "0 at every token",
        "-(log p - log q) of the sampled token",
        "the recorded advantages are 0 everywhere, though student and teacher differ: nothing is learned.",
        "rewards of 0 were whitened or subtracted from themselves, and the teacher's log-probs never reached them",
        "use -(log p - log q) of the sampled token as its advantage",
    )


def _loss_findings(kind: str, left: float, has_advantages: bool) -> list[Finding]:
    fits = f"the recorded losses are {kind} up to one factor: {left:.1%} of them is left."
    good = "sg[log p - log q] * log p of the sampled token, or a support with everything outside it: mathematics.md"
    if kind == "k1" and not has_advantages:
        return [
            Finding(
                "zero_expected_gradient",
                kind,
                "sg[k1] log p",
                fits,
                "k1 = log p - log q is back-propagated: the gradient of log p is 0 on average, whatever q is",
                good,
            )
        ]
    if kind in ("k3", "k3 log p"):
        return [
            Finding(
                "k3_loss",
                kind,
                "sg[k1] log p",
                fits,
                "k3 is an estimate of the value of the KL: its gradient follows the forward KL",
                good,
            )
        ]
    if kind.startswith("renormalised"):
        return [
            Finding(
                "renormalised_top_k",
                kind,
                "the whole distribution, or its tail beside it",
                fits,
                "both distributions are renormalised within a top K: biased, and 0 at K = 1",
                good,
            )
        ]
    if kind.startswith("partial"):
        return [
            Finding(
                "partial_top_k",
                kind,
                "the whole distribution, or its tail beside it",
                fits,
                "the KL is summed within a top K, and the rest of the distribution is left out: mass drains there",
                good,
            )
        ]
    return []


def check_advantages(
    rows: Sequence[Row], tokens: Tokens, dense: Callable[[Tokens], Mapping[str, Reals]]
) -> tuple[list[Finding], list[NotChecked]]:
    """What per-token advantages follow, beside one number a row (a reward)."""
    recorded = tokens.of(rows, "advantages")
    known = np.isfinite(recorded)
    if int(known.sum()) < FEWEST:
        return [], [NotChecked("advantages", "the dump has no advantages of single tokens beside both log-probs")]
    if not np.abs(recorded[known]).any() and np.abs(tokens.student - tokens.teacher).mean() > 0.01:
        return [_zero_advantages()], []
    varied = _within_rows(recorded, tokens.row, known)
    if float(np.abs(varied[known]).mean()) < 1e-6 * max(1.0, float(np.abs(recorded[known]).mean())):
        return [], [NotChecked("advantages", "they are one number a row: no distillation signal is in them")]
    estimates: dict[str, Reals] = {**sampled_estimators(tokens), **dense(tokens)}
    estimates = {k: v for k, v in estimates.items() if "log p" not in k}
    estimates["k1 returns"] = returns(tokens)
    finite = known & np.all([np.isfinite(v) for v in estimates.values()], axis=0)
    target = _within_rows(recorded, tokens.row, finite)
    estimates |= moved(tokens)
    finite &= np.all([np.isfinite(v) for v in estimates.values()], axis=0)
    tried = {name: -_within_rows(values, tokens.row, finite)[finite] for name, values in estimates.items()}
    found = best_of(target[finite], tried, _of_prefix)
    if found is None:
        return [], [NotChecked("advantages", "they follow none of the known estimators, or several alike")]
    kind, left = found
    fits = f"the recorded advantages are -({kind}) up to one factor and one number a row: {left:.1%} is left."
    remedy = "use -(log p - log q) of the sampled token as its advantage"
    if kind.startswith(("renormalised", "partial", "full")):
        return [
            Finding(
                "zero_expected_gradient",
                kind,
                "-(log p - log q) of the sampled token",
                fits,
                "a penalty that depends on the prefix alone: times the gradient of log p it is 0 on average",
                remedy,
            )
        ], []
    if kind in MOVED:
        cause = "the sign of the penalty is lost" if kind == MOVED[0] else "a slice begins one place early or late"
        name = "advantage_sign" if kind == MOVED[0] else "advantage_shift"
        return [Finding(name, kind, "-(log p - log q)", fits, cause, remedy)], []
    if kind in ("k2", "k3", "k3 forward", "absolute"):
        return [
            Finding(
                "k3_advantage" if kind == "k3" else "biased_advantage",
                kind,
                "-(log p - log q)",
                fits,
                "an estimate of the KL's value in place of the log-ratio: another gradient",
                remedy,
            )
        ], []
    return [], []


def _within_rows(values: Reals, row: Ints, known: Mask) -> Reals:
    """The values less their row's mean."""
    count = int(row.max()) + 1
    total = np.bincount(row, np.where(known, values, 0.0), minlength=count)
    number = np.maximum(np.bincount(row, known.astype(float), minlength=count), 1)
    return np.where(known, values - (total / number)[row], 0.0)
