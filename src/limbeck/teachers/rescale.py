"""From top-K log-probs at temperature 1 to log-probs at temperature T, with a certificate.

    rescaled = rescale(top_SK, sampled_S, inside_S, temperature=0.7, vocabulary=32000)
    rescaled.sampled_S      midpoint of the interval that holds log q_T(y)
    rescaled.half_width_S   nats: how far the truth can be from any midpoint of that position
    rescaled.prefix_width_S the same without what is known of the sampled token: what a selection may look at

With b = 1/T and pi the distribution at temperature 1,

    log q_T(y) = b log pi_y - log Z        Z = sum_{known} pi_v^b + R,   R = sum_{tail} pi_v^b

and only R is unknown. Of the tail three things are known: its mass rho = 1 - sum_{known} pi, that it has
M tokens, and that none of them is above c = pi_K. Over all such tails the sum of a convex power (b > 1)
is largest where the mass is as concentrated as allowed and smallest where it is uniform; a concave
power (b < 1) is the other way round. So R lies between

    uniform        rho^b M^(1-b)
    concentrated   n c^b + (rho - n c)^b,   n = floor(rho / c)

which bound it from below and above for b > 1, from above and below for b < 1. The concentrated sum is
reached by a real tail; `rho c^(b-1)`, its usual short form, is looser by the last, partial token. A
sampled token outside the top K whose own log-prob is known leaves the tail: its mass is no longer
unknown and M is one less.

That knowledge narrows the interval only where such a token was sampled. Were positions chosen by the narrowed
width, whether a position is trained on would depend on the sampled token, and the expected gradient would be biased.
So there are two widths: each value's own, and the position's, which follows from the prefix alone.

A log-prob that a server sends is rounded. Each is taken as an interval (`ROUNDING`), and rho, c and Z
are bounded over all of them, so the certificate holds for what the server computed, not only for what
it printed. M may be an over-estimate: both bounds only widen.

Worked example: V = 4, pi = (0.7, 0.2, 0.06, 0.04), K = 2, T = 0.5, so b = 2. rho = 0.1, M = 2, c = 0.2;
R is between 0.005 (uniform) and 0.01 (one token has it all), the truth is 0.0052. Z is between 0.535 and
0.54, and log q_T(first) = log 0.49 - log Z is known to within 0.0047 nats.

Shape legend: S positions, K known top tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.records import Floats, Mask

Doubles: TypeAlias = npt.NDArray[np.float64]

ROUNDING = 4e-6  # nats: a float32 log-softmax over logits of up to 64 is this close to its exact value
RELATIVE_ROUNDING = 2.0**-23  # of the log-prob itself: one float32 unit in the last place
OUTWARD = 1e-12  # nats: this file's own float64 arithmetic


class NotADistributionError(ValueError):
    """The log-probs cannot be the top of a distribution at temperature 1; `position` is the first such."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Midpoints at temperature T. The truth is within `half_width_S` of every entry of its position."""

    temperature: float  # what the log-probs were divided by: T, for those at temperature 1
    top_SK: Floats
    sampled_S: Floats
    half_width_S: Floats
    prefix_width_S: Floats  # of the top entries, without what is known of the sampled token


def rescale(
    top_SK: npt.ArrayLike,
    sampled_S: npt.ArrayLike,
    inside_S: Mask,
    temperature: float,
    vocabulary: int,
    rounding: float = ROUNDING,
) -> Rescaled:
    """Log-probs at `temperature` from those at temperature 1.

    `top_SK` are the K largest, in any order; `sampled_S` the sampled token's, which is one of them where
    `inside_S`. `vocabulary` is the number of tokens, or more.

    Raises `NotADistributionError` where a position's log-probs sum to more than 1, leave a tail that cannot be
    placed below the smallest of them, or are not finite and at most 0.
    """
    top_SK, sampled_S = np.asarray(top_SK, np.float64), np.asarray(sampled_S, np.float64)
    if not temperature > 0 or not np.isfinite(temperature):
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    if not 1 <= top_SK.shape[1] <= vocabulary:
        raise ValueError(f"K must be from 1 to the vocabulary of {vocabulary}, got {top_SK.shape[1]}")
    b = 1.0 / temperature
    outside_S = ~np.asarray(inside_S, bool)
    _check_values(top_SK, sampled_S, outside_S, rounding)
    low_S, high_S = _log_normaliser(top_SK, sampled_S, outside_S, b, vocabulary, rounding)
    middle_S, slack_S = (low_S + high_S) / 2, (high_S - low_S) / 2
    exact_top_SK, exact_sampled_S = b * top_SK - middle_S[:, None], b * sampled_S - middle_S
    rounded_top_SK, rounded_sampled_S = exact_top_SK.astype(np.float32), exact_sampled_S.astype(np.float32)
    error_top_SK = b * _rounding(top_SK, rounding) + np.abs(exact_top_SK - rounded_top_SK)
    error_sampled_S = b * _rounding(sampled_S, rounding) + np.abs(exact_sampled_S - rounded_sampled_S)
    half_width_S = slack_S + np.maximum(error_top_SK.max(axis=1), error_sampled_S) + OUTWARD
    prefix_width_S = _prefix_width(top_SK, b, vocabulary, rounding)
    return Rescaled(temperature, rounded_top_SK, rounded_sampled_S, _upwards(half_width_S), _upwards(prefix_width_S))


def _prefix_width(top_SK: Doubles, b: float, vocabulary: int, rounding: float) -> Doubles:
    """[S] half the interval of log Z, and the rounding of the top entries: no word of the sampled token."""
    none_S = np.zeros(len(top_SK), dtype=bool)
    low_S, high_S = _log_normaliser(top_SK, top_SK[:, 0], none_S, b, vocabulary, rounding)
    half_width_S: Doubles = (high_S - low_S) / 2 + b * _rounding(top_SK, rounding).max(axis=1) + OUTWARD
    return half_width_S


def _upwards(width_S: Doubles) -> Floats:
    """Not below the float64 width."""
    return np.nextafter(width_S.astype(np.float32), np.float32(np.inf))


def _rounding(logprobs: Doubles, rounding: float) -> Doubles:
    return rounding + RELATIVE_ROUNDING * np.abs(logprobs)


def _check_values(top_SK: Doubles, sampled_S: Doubles, outside_S: Mask, rounding: float) -> None:
    worst_S = np.maximum(np.nan_to_num(top_SK, nan=np.inf).max(axis=1), np.nan_to_num(sampled_S, nan=np.inf))
    lowest_S = np.minimum(top_SK.min(axis=1), sampled_S)
    for position in np.flatnonzero((worst_S > rounding) | ~np.isfinite(lowest_S))[:1]:
        raise NotADistributionError(
            int(position),
            f"position {position} has a log-prob of {worst_S[position]} or {lowest_S[position]}; all must be finite "
            "and at most 0",
        )
    least_S = top_SK.min(axis=1)
    above_S = outside_S & (sampled_S > least_S + 2 * _rounding(least_S, rounding))
    for position in np.flatnonzero(above_S)[:1]:
        raise NotADistributionError(
            int(position),
            f"position {position}: the sampled token has {sampled_S[position]:.6f} and is not among the top, whose "
            f"least is {least_S[position]:.6f}: the server's top tokens are not the most likely ones",
        )


def _log_normaliser(
    top_SK: Doubles, sampled_S: Doubles, outside_S: Mask, b: float, vocabulary: int, rounding: float
) -> tuple[Doubles, Doubles]:
    """Certified lower and upper bound of log Z at each position."""
    known_SK1 = np.concatenate([top_SK, np.where(outside_S, sampled_S, -np.inf)[:, None]], axis=1)
    error_SK1 = np.where(np.isfinite(known_SK1), _rounding(np.nan_to_num(known_SK1, neginf=0.0), rounding), 0.0)
    count_S = vocabulary - top_SK.shape[1] - outside_S.astype(np.int64)
    log_cap_S = (top_SK + _rounding(top_SK, rounding)).min(axis=1)
    rho_low_S = np.maximum(0.0, 1.0 - np.exp(known_SK1 + error_SK1).sum(axis=1))
    rho_high_S = 1.0 - np.exp(known_SK1 - error_SK1).sum(axis=1)
    largest_S = count_S * np.exp(log_cap_S)
    _check_mass(rho_low_S, rho_high_S, largest_S, top_SK.shape[1])
    rho_high_S = np.minimum(np.maximum(rho_high_S, 0.0), largest_S)

    uniform = _uniform if b != 1 else _linear
    concentrated = _concentrated if b != 1 else _linear
    below, above = (uniform, concentrated) if b > 1 else (concentrated, uniform)
    tail_low_S = below(rho_low_S, count_S, log_cap_S, b)
    tail_high_S = above(rho_high_S, count_S, log_cap_S, b)
    known_low_S = _logsumexp(b * (known_SK1 - error_SK1))
    known_high_S = _logsumexp(b * (known_SK1 + error_SK1))
    return np.logaddexp(known_low_S, tail_low_S), np.logaddexp(known_high_S, tail_high_S)


def _check_mass(rho_low_S: Doubles, rho_high_S: Doubles, largest_S: Doubles, k: int) -> None:
    for position in np.flatnonzero(rho_high_S < 0)[:1]:
        raise NotADistributionError(
            int(position), f"position {position}: its probabilities sum to {1 - rho_high_S[position]:.6f}, above 1"
        )
    for position in np.flatnonzero(rho_low_S > largest_S)[:1]:
        raise NotADistributionError(
            int(position),
            f"position {position}: {rho_low_S[position]:.6f} of the probability is outside the top {k}, more than the "
            f"{largest_S[position]:.6f} that the rest of the vocabulary can hold below them",
        )


def _uniform(rho_S: Doubles, count_S: npt.NDArray[np.int64], log_cap_S: Doubles, b: float) -> Doubles:
    """log of rho^b M^(1-b): the tail spread evenly."""
    return b * _log(rho_S) + (1 - b) * np.log(np.maximum(count_S, 1))


def _concentrated(rho_S: Doubles, count_S: npt.NDArray[np.int64], log_cap_S: Doubles, b: float) -> Doubles:
    """log of n c^b + (rho - n c)^b: the tail in as few tokens as the cap allows."""
    cap_S = np.exp(log_cap_S)
    full_S = np.floor(np.divide(rho_S, cap_S, out=np.zeros_like(rho_S), where=cap_S > 0))
    rest_S = np.clip(rho_S - full_S * cap_S, 0.0, cap_S)
    return np.logaddexp(_log(full_S) + b * log_cap_S, b * _log(rest_S))


def _linear(rho_S: Doubles, count_S: npt.NDArray[np.int64], log_cap_S: Doubles, b: float) -> Doubles:
    """At T = 1 the tail's sum is its mass."""
    return _log(rho_S)


def _log(values: Doubles) -> Doubles:
    return np.log(values, out=np.full_like(values, -np.inf), where=values > 0)


def _logsumexp(values_SK: Doubles) -> Doubles:
    peak_S1 = values_SK.max(axis=1, keepdims=True)
    total_S: Doubles = np.log(np.exp(values_SK - peak_S1).sum(axis=1)) + peak_S1[:, 0]
    return total_S
