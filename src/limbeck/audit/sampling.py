"""Whether the tokens were sampled by this student at T, and whether sampler and trainer agree on their log-probs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from limbeck.audit.dump import Reals, Row
from limbeck.audit.masks import first_stop
from limbeck.audit.precision import begins_off, blocks_of, mismatch_limit
from limbeck.audit.recompute import Curves
from limbeck.audit.report import Finding, NotChecked, since
from limbeck.records import Ints, Mask

ENOUGH = 200  # tokens, for a temperature from the tokens alone
OFF = 0.08  # of T
ERRORS = 6.0
DISPERSION = (0.8, 1.25)  # squared surprise against its variance, for tokens that were sampled so
ENDS = 5  # stop tokens without which their number says nothing
RATIO = 1.3


def sampled_at(curves: Curves, states: Ints, row_of: Ints, temperature: float) -> tuple[float, float] | NotChecked:
    """The temperature at which the tokens are most likely, and its standard error.

    The likelihood is concave in 1/T: where its derivative, sum of z - mean(z), is 0.
    """
    name = "sampling_temperature"
    if curves.served or len(states) < ENOUGH:
        return NotChecked(
            name, f"{len(states)} sampled tokens, at least {ENOUGH} are needed to tell it from them alone"
        )
    z = curves.z_next[states]

    def slope(beta: float) -> float:
        return float((z - curves.at(states, beta)[1]).sum())

    low, high = float(curves.betas[0]), float(curves.betas[-1])
    if slope(low) <= 0 or slope(high) >= 0:
        return NotChecked(name, "the tokens are no samples of this student at any temperature from 0.125 to 8")
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    beta = 0.5 * (low + high)
    score = z - curves.at(states, beta)[1]
    h = 0.02 * beta
    information = (slope(beta - h) - slope(beta + h)) / (2 * h)
    clusters = np.bincount(row_of, score)
    error = math.sqrt(float((clusters**2).sum())) / max(information, 1e-12)
    dispersion = float((score**2).sum()) / max(information, 1e-12)
    doubt = ERRORS * math.sqrt(float((score**4).sum())) / max(information, 1e-12)
    if not DISPERSION[0] - doubt < dispersion < DISPERSION[1] + doubt:
        return NotChecked(
            name,
            f"the tokens are no plain samples of this student: their surprise varies {dispersion:.2f} "
            "times as much as that of samples",
        )
    return 1 / beta, max(error, 1 / math.sqrt(max(information, 1e-12))) / beta**2


def check_sampling(fitted: tuple[float, float], temperature: float) -> list[Finding]:
    found, error = fitted
    if abs(found - temperature) <= max(OFF * temperature, ERRORS * error):
        return []
    return [
        Finding(
            "sampling_temperature",
            found,
            temperature,
            f"the tokens themselves are samples of temperature {found:.3f} ± {error:.3f}, not {temperature:g}.",
            "the sampler was given another temperature, or it cuts the distribution (top_p, top_k, min_p)",
            f"sample at {temperature:g} with top_p = 1, top_k off and min_p = 0, or audit at the sampler's temperature",
        )
    ]


def mismatch_of(rows: Sequence[Row], clean: Sequence[Mask]) -> tuple[Reals, Ints]:
    """[M] absolute differences of the sampler's and the trainer's log-probs of the same tokens, and the row of each."""
    off = [
        np.abs(row.recorded("student") - row.recorded("sampler"))[mask] for row, mask in zip(rows, clean, strict=True)
    ]
    row_of = np.concatenate([np.full(len(values), index) for index, values in enumerate(off)])
    values = np.concatenate(off)
    return values[np.isfinite(values)], row_of[np.isfinite(values)]


def check_mismatch(
    rows: Sequence[Row], units: Ints, mismatch: tuple[Reals, Ints], floor: float, exact: bool
) -> list[Finding]:
    """Sampler's and trainer's log-probs of the same tokens, step by step."""
    values, row_of = mismatch
    if not len(values):
        return []
    limit = mismatch_limit(floor, exact)
    off = begins_off(blocks_of(values, units[row_of]), limit)
    if off is None:
        return []
    place, mean, share = off
    where = "" if share > 0.99 else f", in blocks of {share:.0%} of them"
    return [
        Finding(
            "sampler_trainer_mismatch",
            mean,
            limit,
            f"sampler and trainer differ by {mean:.3f} nats a token on the same tokens{where}.",
            "other weights, another temperature or another precision in the sampler",
            "load the sampler's weights after each update, in one dtype, and correct with the importance ratio",
            **since(rows, int(row_of[place])),
        )
    ]


def check_lengths(rows: Sequence[Row], curves: Curves, stops: frozenset[int]) -> list[Finding]:
    """More or fewer ends than the student would have sampled at these very positions.

    For rows that nobody filtered, the number of stop tokens less the sum of their probabilities is 0 on average,
    wherever the rows were cut.
    """
    ended, likely, variance = 0, 0.0, 0.0
    for index, row in enumerate(rows):
        if curves.first[index] < 0:
            continue
        stop = first_stop(row, stops)
        last = len(row.token_ids) - 1 if stop is None else stop
        start = max(1, row.start)
        p = curves.stop_N[curves.first[index] + start - 1 : curves.first[index] + last]
        ended += stop is not None
        likely, variance = likely + float(p.sum()), variance + float((p * (1 - p)).sum())
    if curves.served or ended < ENDS or variance <= 0:
        return []
    z = (ended - likely) / math.sqrt(variance)
    ratio = ended / max(likely, 1e-9)
    if abs(z) <= ERRORS or 1 / RATIO < ratio < RATIO:
        return []
    more = ratio > 1
    return [
        Finding(
            "length_bias",
            ended,
            likely,
            f"{ended} rows end with a stop token, the student would have ended {likely:.0f} of them there.",
            "rows that were cut, or long ones, are missing" if more else "short rows are missing",
            "keep every sampled row, whatever its length",
        )
    ]
