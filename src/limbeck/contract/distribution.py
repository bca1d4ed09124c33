"""Normalisation: the log-probs of a position are natural ones, of a whole distribution, and none is made up.

Three things bound what a list of the K most likely tokens may be: its sum is at most 1; what is left fits below the
last of them; and at positions whose token was drawn alike from all V tokens

    sum of the list + V * exp(score of the token, where it is not in the list)

is 1 on average, whatever the teacher. The same three are tried on the log-probs to another base. They must *not* fit:
else nothing was proven.

Shape legend: S scored tokens, K most likely tokens of a position.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from limbeck.contract.answers import Answer, Doubles, refusal
from limbeck.errors import ContractError
from limbeck.records import Mask, ProbeResult
from limbeck.teachers.rescale import NotADistributionError, rescale

ROUNDING = 1e-3  # nats, and probability: of lists as servers print them
SCALES: Mapping[str, float] = {
    "to base 2": 1 / math.log(2), "to base 10": 1 / math.log(10), "halved": 0.5, "doubled": 2.0,
}  # fmt: skip
SURE = 15.0  # minus the log of the probability to refuse by chance, as Bernstein bounds it
LEAST_MASS = 0.95  # of the tokens that student and teacher share: rows of padding have next to none
NEAR, SEEN, SIGMAS = 8, 12, 5.0  # a tail is seen by so many drawn tokens, of this part of the largest there can be
CUT = "Switch off logprob processing on the server (top-p, top-k, min-p, penalties, grammars)."
FLOOR_WINDOW, FLOOR_COUNT = 1e-3, 3  # nats, and tokens of one lowest log-prob
STEPS = (1.0, 0.5, 0.25, 0.2, 0.125, 0.1, 0.05)  # nats: rounded to these is too coarse to train on


def check_distribution(
    name: str,
    answers: Sequence[Answer],
    uniform: Sequence[Mask],
    vocabulary: int,
    tokens: int | None,
) -> ProbeResult:
    """`uniform` [S] says of each scored token whether it was drawn alike from `tokens`; `vocabulary` is V, or more.

    Raises `ContractError`.
    """
    lists = _Lists(answers, uniform, vocabulary, tokens)
    if (problem := _problem(answers, vocabulary) or lists.problem(1.0)) is not None:
        if "as estimated" in problem and (fewer := lists.fewer()):
            raise refusal(
                "normalisation",
                f"teacher {name}: {problem}, of {fewer} tokens that were asked about. Either the teacher's head has "
                "more rows than these tokens (padding that has a probability), or the server cuts or changes its "
                "log-probs.",
                "If the head has more rows, give their number (--vocabulary, or teacher.vocabulary); a student "
                f"without them is trained towards less than the whole. Else: {CUT[0].lower()}{CUT[1:]}",
                problem.partition(":")[2].strip(),
                "at most 1, a tail that fits",
            )
        alike = [f" They fit log-probs {what}." for what, scale in SCALES.items() if not lists.problem(scale)]
        raise refusal(
            "normalisation",
            f"teacher {name}: {problem}. It sends log-probs that were cut or changed.{''.join(alike[:1])}",
            CUT,
            problem.partition(":")[2].strip() or problem,
            "at most 1, a tail that fits",
        )
    for what, scale in SCALES.items():
        if lists.problem(scale) is None:
            raise refusal(
                "normalisation",
                f"teacher {name}: its log-probs would be a distribution as well if they were {what}, so that they are "
                "natural ones is not proven.",
                "Give the rows of the teacher's output head (--vocabulary, or teacher.vocabulary) or its tokenizer; "
                "if they are known, serve the model with `limbeck serve`.",
                f"as well {what}",
                "natural log-probs alone",
            )
    return ProbeResult(
        "normalisation",
        f"the top {lists.top_SK.shape[1]} hold {lists.held.min():.3f} to {lists.held.max():.3f}{lists.estimate()}",
        "at most 1, a tail that fits",
    )


def check_list(name: str, answer: Answer, k: object) -> float:
    """The most that K tokens of a position hold. Raises `ContractError` where they are not K, or of no distribution."""
    top_SK, ids_SK = answer.top_SK, answer.top_ids_SK
    if top_SK is None or ids_SK is None or top_SK.shape[1] != k:
        kind = "TokenScores" if top_SK is None else f"TopKScores of {top_SK.shape[1]}"
        raise refusal(
            "normalisation",
            f"teacher {name} was asked for {k} tokens a position and gave {kind}.",
            "Return TopKScores with ids and logprobs of shape [S, K].",
            kind,
            f"{k} tokens a position",
        )
    mass = float(np.exp(top_SK).sum(axis=1).max())
    found = ids_SK == answer.request.scored_ids[:, None]
    apart = float(np.abs(np.where(found, top_SK - answer.sampled_S[:, None], 0.0)).max(initial=0.0))
    twice = bool((np.diff(np.sort(ids_SK, axis=1), axis=1) == 0).any())
    if twice or not (mass <= 1 + ROUNDING and apart <= ROUNDING):
        raise refusal(
            "normalisation",
            f"teacher {name}: its top {k} tokens sum to {mass:.4f}, or hold a token twice or with two log-probs "
            f"({apart:.3g} nats apart).",
            "Normalise over the whole vocabulary, and keep each token once.",
            f"sum {mass:.4f}",
            "at most 1",
        )
    return mass


def _problem(answers: Sequence[Answer], vocabulary: int) -> str | None:
    """Why a list is not the top of a distribution, position by position."""
    for answer in answers:
        assert answer.top_SK is not None
        try:
            rescale(answer.top_SK, answer.sampled_S, answer.inside(), 1.0, vocabulary, rounding=ROUNDING)
        except NotADistributionError as error:
            return str(error)
    return None


class _Lists:
    """The lists of all positions, and what they would be if each log-prob were scaled."""

    def __init__(self, answers: Sequence[Answer], uniform: Sequence[Mask], vocabulary: int, tokens: int | None) -> None:
        self.top_SK = np.concatenate([answer.top_SK for answer in answers if answer.top_SK is not None])
        self.sampled_S = np.concatenate([answer.sampled_S for answer in answers])
        self.outside_S = ~np.concatenate([answer.inside() for answer in answers])
        self.uniform_S = np.concatenate(list(uniform))
        self.rest, self.tokens = max(0, vocabulary - self.top_SK.shape[1]), tokens
        self.held = np.exp(self.top_SK).sum(axis=1)

    def problem(self, scale: float) -> str | None:
        """Why the log-probs divided by `scale` are those of no distribution; None where they may be."""
        held_S = np.exp(self.top_SK / scale).sum(axis=1)
        cap_S = np.exp(self.top_SK.min(axis=1) / scale)
        if held_S.max() > 1 + ROUNDING:
            return f"the top tokens of a position: probabilities that sum to {held_S.max():.4f}"
        left_S = 1 - held_S - self.rest * cap_S
        if left_S.max() > ROUNDING:
            return f"the top tokens of a position: {left_S.max():.4f} of the probability has no place below them"
        if self.tokens is None or not self.uniform_S.any():
            return None
        mean, error = self._mass(scale, held_S, cap_S, self.tokens)
        if LEAST_MASS - error <= mean <= 1 + ROUNDING + error:
            return None
        return f"all tokens of a position, as estimated: {mean:.3f} of the probability (+-{error:.2g})"

    def fewer(self) -> int:
        """Tokens that were drawn, where all of them together have less than the whole probability."""
        mean, _ = self._mass(1.0, self.held, np.exp(self.top_SK.min(axis=1)), self.tokens or 0)
        return (self.tokens or 0) if mean < 1 else 0

    def estimate(self) -> str:
        if self.tokens is None or not self.uniform_S.any():
            return ""
        mean, error = self._mass(1.0, self.held, np.exp(self.top_SK.min(axis=1)), self.tokens)
        return f"; all {self.tokens} {mean:.2f} +-{error:.2g}"

    def _mass(self, scale: float, held_S: Doubles, cap_S: Doubles, tokens: int) -> tuple[float, float]:
        """Estimate of the whole sum, and how far off it may be; positions that say more count for more.

        The weights follow from the lists alone, which do not depend on the token that was drawn.
        """
        use = self.uniform_S
        tail = np.where(self.outside_S, np.exp(self.sampled_S / scale), 0.0)[use]
        found = held_S[use] + tokens * tail
        variance = tokens * cap_S[use] * np.clip(1 - held_S[use], 0.0, 1.0) + 1e-9
        weight = 1 / np.maximum(variance, np.median(variance) / 100)
        weight /= weight.sum()
        mean, largest = float((weight * found).sum()), tokens * cap_S[use]
        if int((tokens * tail >= largest / NEAR).sum()) >= SEEN:  # the spread that was seen is the spread there is
            return mean, SIGMAS * math.sqrt(float((weight**2 * (found - mean) ** 2).sum()))
        spread = math.sqrt(2 * SURE * float((weight**2 * variance).sum()))
        return mean, spread + SURE / 3 * float((weight * largest).max())


def check_values(name: str, values: Doubles) -> None:
    """No floor, and no coarse rounding. `values` are of different texts or tokens. Raises `ContractError`."""
    if len(values) < 4 * FLOOR_COUNT:
        return
    ordered = np.sort(values)
    at_each = np.searchsorted(ordered, ordered + FLOOR_WINDOW, side="right") - np.arange(len(ordered))
    lowest = int(at_each[0])
    others = int(at_each[lowest:].max(initial=1))
    if lowest >= FLOOR_COUNT and lowest >= FLOOR_COUNT * others:
        raise refusal(
            "normalisation",
            f"teacher {name}: {lowest} of {len(values)} tokens have one and the same lowest log-prob, "
            f"{ordered[0]:.4g}: it puts a floor in place of what it cut off.",
            CUT,
            f"{lowest} tokens at {ordered[0]:.4g}",
            "no floor",
        )
    for step in STEPS:
        multiples = values / step
        if np.abs(multiples - np.round(multiples)).max() * step < 1e-6 and np.ptp(values) > 0:
            raise refusal(
                "normalisation",
                f"teacher {name}: every log-prob is a multiple of {step:g} nats: it rounds them by up to half.",
                "Have the server send them in full.",
                f"multiples of {step:g}",
                "float32 log-probs",
            )


def check_at_temperature(
    name: str, pairs: Sequence[tuple[Answer, Answer]], temperature: float, vocabulary: int, tolerance: float
) -> ProbeResult:
    """Answers at T lie where answers at temperature 1 certify that they must (`teachers/rescale.py`).

    `pairs` are answers at 1 and at T to the same text. The ratio test cannot see a normaliser that is missing: this
    does. Raises `ContractError`.
    """
    worst, widest = 0.0, 0.0
    for at_one, at_t in pairs:
        assert at_one.top_SK is not None
        certified = rescale(
            at_one.top_SK, at_one.sampled_S, at_one.inside(), temperature, vocabulary, rounding=ROUNDING
        )
        beyond = np.abs(at_t.sampled_S - certified.sampled_S) - certified.half_width_S
        worst, widest = max(worst, float(beyond.max(initial=0.0))), max(widest, float(certified.half_width_S.max()))
        if at_t.top_SK is not None:
            k = min(at_t.top_SK.shape[1], certified.top_SK.shape[1])
            tops = np.abs(at_t.top_SK[:, :k] - certified.top_SK[:, :k]) - certified.half_width_S[:, None]
            worst = max(worst, float(tops.max(initial=0.0)))
    if not worst <= tolerance:
        raise _not_normalised(name, temperature, worst, tolerance)
    return ProbeResult("normalisation at T", f"within certificates of up to {widest:.2g} nats", f"+{tolerance:.2g}")


def _not_normalised(name: str, temperature: float, worst: float, tolerance: float) -> ContractError:
    return refusal(
        "normalisation at T",
        f"teacher {name}: its log-probs at temperature {temperature:g} are {worst:.3g} nats outside of what its "
        f"answers at temperature 1 allow (at most {tolerance:.2g}): it divides by T and does not normalise again.",
        "Update the server, or serve the model with `limbeck serve`.",
        f"{worst:.3g} nats outside",
        f"at most {tolerance:.2g}",
    )
