"""The contract with a teacher, proven before the first step from nothing but its answers.

    alignment      the score of a token does not see what follows it, and does see the token and the one before it
    normalisation  K log-probs of a position are those of K tokens of a distribution
    temperature    log q_T(a) - log q_T(b) = (log q_1(a) - log q_1(b)) / T; the normaliser cancels, so no weights are
                   needed to catch a teacher that ignores T
    same weights   where the teacher is the student's own model, their KL is 0: catches everything else

Probes ask for what training will ask for (`support`), and change nothing. One that fails raises `ContractError` with
what was measured, what was expected and the remedy. See `contract/tokenizers.py` for the comparison of two tokenizers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from limbeck.contract.answers import AT_T, Doubles, Heads, ask, logprobs_of_sampled, refusal, rows_of
from limbeck.contract.given_ids import given_ids
from limbeck.errors import ContractError
from limbeck.protocols import Policy, Teacher
from limbeck.records import (
    Failure,
    HiddenScores,
    ProbeResult,
    ScoreRequest,
    Scores,
    Support,
    TopKScores,
    request_of,
)

Text: TypeAlias = Sequence[int]  # as tokens

RATIO_TOLERANCE = 1e-3  # nats, beside 1% of the ratio itself
IDENTICAL = 0.01  # nats a token between a model and itself
SMALLEST_RATIO = 0.05  # nats; below it two tokens say nothing about a temperature
MASS_TOLERANCE = 1e-3  # of probabilities that sum to 1, and nats of one token's log-prob in two places


async def prove(
    teacher: Teacher,
    texts: Sequence[Text],
    temperature: float,
    vocabulary: int,
    heads: Heads | None = None,
    support: Support = "sampled",
) -> list[ProbeResult]:
    """Run the probes that need only scores, on `texts` and ids below `vocabulary`.

    Raises `ContractError`, with the results so far, for the first that fails.
    """
    prefix = max(texts[:16], key=len)
    ids = continuations(prefix, vocabulary)
    results: list[ProbeResult] = []
    steps: list[Callable[[], Awaitable[ProbeResult]]] = [
        lambda: alignment(teacher, prefix, ids, temperature, heads, support),
        lambda: ratio(teacher, prefix, ids, temperature, heads, support),
    ]
    if isinstance(support, int):
        steps.insert(1, lambda: normalisation(teacher, prefix, ids, temperature, heads, support))
    if isinstance(support, np.ndarray):
        steps.append(lambda: given_ids(teacher, prefix, ids, temperature, heads, support))
    for step in steps:
        try:
            results.append(await step())
        except ContractError as error:
            error.results = (*results, *error.results)
            raise
    return results


async def alignment(
    teacher: Teacher,
    prefix: Text,
    ids: Sequence[int],
    temperature: float,
    heads: Heads | None = None,
    support: Support = "sampled",
) -> ProbeResult:
    """The score of a token depends on it and on what precedes it, and on nothing else."""
    a, b, c = ids[:3]
    unit = _requests(prefix, [[a, b], [a, c], [b, c], *([i, a] for i in ids)], temperature, support)
    answers = await ask(teacher, unit, heads)
    rows = rows_of(answers, unit, heads)
    moved = abs(rows[0, 0] - rows[1, 0])
    if isinstance(answers[2], HiddenScores):  # a state before `b` in place of `a` scores `a` the same
        moved = max(moved, abs(rows[0, 0] - logprobs_of_sampled(answers[2], unit[0], heads)[0]))
    if not moved <= RATIO_TOLERANCE:
        raise refusal(
            "alignment",
            f"teacher {teacher.name}: the score of a token moved by {moved:.3g} nats though nothing before it changed "
            f"(expected at most {RATIO_TOLERANCE}). Its answer is shifted by one.",
            "Check which positions the server returns.",
            f"moved {moved:.3g} nats",
            f"at most {RATIO_TOLERANCE}",
        )
    by_itself, by_the_one_before = np.ptp(rows[3:], axis=0)
    for change, what, why in (
        (by_itself, "the token itself", "or it scores something else than what was sent"),
        (by_the_one_before, "the token before it", "or it does not see the text it was sent"),
    ):
        if not change > RATIO_TOLERANCE:
            raise refusal(
                "alignment",
                f"teacher {teacher.name}: the score of a token did not change with {what} ({change:.3g} nats). Its "
                f"answer is shifted by one, {why}.",
                "Check which positions the server returns, and of which text.",
                f"{change:.3g} nats with {what}",
                f"more than {RATIO_TOLERANCE}",
            )
    return ProbeResult("alignment", f"moved {moved:.1e} nats", f"at most {RATIO_TOLERANCE}")


async def normalisation(
    teacher: Teacher, prefix: Text, ids: Sequence[int], temperature: float, heads: Heads | None, k: int
) -> ProbeResult:
    """The top K are K different tokens whose probabilities sum to at most 1, and agree with the sampled token's."""
    unit = _requests(prefix, [[i] for i in ids], temperature, k)
    most, expected = 0.0, "at most 1"
    for request, scores in zip(unit, await ask(teacher, unit, heads), strict=True):
        if isinstance(scores, HiddenScores):
            return ProbeResult("normalisation", "hidden states: the whole distribution", expected)
        if not isinstance(scores, TopKScores) or scores.ids.shape != (1, k) or scores.logprobs.shape != (1, k):
            raise refusal(
                "normalisation",
                f"teacher {teacher.name} was asked for {k} tokens a position and gave {_kind(scores)}.",
                "Return TopKScores with ids and logprobs of shape [S, K].",
                _kind(scores),
                f"{k} tokens a position",
            )
        mass = float(np.exp(scores.logprobs.astype(np.float64)).sum())
        found = scores.ids[0] == request.scored_ids[0]
        difference = float(np.abs(scores.logprobs[0][found] - scores.logprobs_of_sampled[0]).max(initial=0.0))
        if len(set(scores.ids[0].tolist())) < k or not (mass <= 1 + MASS_TOLERANCE and difference <= MASS_TOLERANCE):
            raise refusal(
                "normalisation",
                f"teacher {teacher.name}: its top {k} tokens sum to {mass:.4f}, or hold a token twice or with two "
                f"log-probs ({difference:.3g} nats apart).",
                "Normalise over the whole vocabulary, and keep each token once.",
                f"sum {mass:.4f}",
                expected,
            )
        most = max(most, mass)
    return ProbeResult("normalisation", f"the top {k} hold up to {most:.3f}", expected)


async def ratio(
    teacher: Teacher,
    prefix: Text,
    ids: Sequence[int],
    temperature: float,
    heads: Heads | None = None,
    support: Support = "sampled",
) -> ProbeResult:
    """The ratio test: how far every token is from the most likely one, at T against T = 1.

    All of them and not two alone: of a mixture of models the likely tokens may be one model's, and only those
    between show that it was mixed after dividing by T.
    """
    rows = []
    for t in (1.0, temperature):
        unit = _requests(prefix, [[i] for i in ids], t, support)
        rows.append(rows_of(await ask(teacher, unit, heads), unit, heads)[:, 0])
    at_one, at_t = rows
    high = int(at_one.argmax())
    gaps_one, gaps_t = at_one[high] - at_one, at_t[high] - at_t
    tolerance = RATIO_TOLERANCE + 0.01 * gaps_one.max() / temperature
    worst = int(np.abs(gaps_t - gaps_one / temperature).argmax())
    if abs(gaps_t[worst] - gaps_one[worst] / temperature) <= tolerance:
        worst = int(gaps_one.argmax())  # the gap that says most is the one to report
    ratio_one, ratio_t = gaps_one[worst], gaps_t[worst]
    if not gaps_one.max() > SMALLEST_RATIO:
        raise refusal(
            "temperature",
            f"teacher {teacher.name}: {len(ids)} tokens have the same score to {gaps_one.max():.3g} nats, so nothing "
            "can be said about its temperature.",
            "Is it an untrained model?",
            f"{gaps_one.max():.3g} nats between tokens",
            f"more than {SMALLEST_RATIO}",
        )
    expected = ratio_one / temperature
    if not abs(ratio_t - expected) <= tolerance:
        raise refusal(
            "temperature",
            f"teacher {teacher.name} does not score at temperature {temperature}: two tokens are {ratio_t:.4f} nats "
            f"apart, expected {ratio_one:.4f} / {temperature} = {expected:.4f}. Training would aim at logits that are "
            "wrong by this factor.",
            AT_T,
            f"ratio {ratio_t:.4f} nats at T = {temperature}",
            f"{expected:.4f}",
        )
    return ProbeResult("temperature", f"ratio {ratio_t:.4f} nats at T = {temperature}", f"{expected:.4f}")


async def same_weights(
    teacher: Teacher,
    student: Policy,
    texts: Sequence[Text],
    temperature: float,
    heads: Heads | None = None,
    support: Support = "sampled",
) -> ProbeResult:
    """Compare a teacher with the student that it is, on every token of `texts`. Raises `ContractError`.

    Half the mean square of the log-ratio is their KL to second order, and does not average away what is wrong.
    """
    units = [
        [
            request_of(text, 1, temperature, wanted, f"probe-{number}")
            for number, text in enumerate(texts)
            if len(text) > 1
        ]
        for wanted in (support, "sampled")
    ]
    theirs = await _all_logprobs(teacher, f"teacher {teacher.name}", units[0], heads)
    ours = await _all_logprobs(student, "the student", units[1], heads)
    log_ratios = (ours - theirs)[np.isfinite(theirs)]  # `rescale` has no value for uncertain positions
    kl = float((log_ratios**2).mean() / 2) if len(log_ratios) else 0.0
    if not kl <= IDENTICAL:
        raise refusal(
            "same weights",
            f"teacher {teacher.name} is the student's own model, but the two are {kl:.3g} nats a token apart on the "
            f"task's prompts at temperature {temperature} (expected below {IDENTICAL}): they are not scored alike.",
            "Compare dtype and adapters on both sides. If only the names are the same, give student.model by another "
            "path.",
            f"{kl:.3g} nats a token",
            f"below {IDENTICAL}",
        )
    return ProbeResult("same weights", f"{kl:.1e} nats a token over {len(log_ratios)}", f"below {IDENTICAL}")


def continuations(prefix: Text, vocabulary: int) -> list[int]:
    """Some different tokens: those of the prefix, then others spread over the vocabulary."""
    spread = [int(i) for i in np.linspace(0, vocabulary - 1, 8)]
    return list(dict.fromkeys([*prefix[-8:], *spread]))


def _requests(
    prefix: Text, endings: Sequence[Sequence[int]], temperature: float, support: Support
) -> list[ScoreRequest]:
    """Each of `endings` after `prefix`."""
    return [
        request_of([*prefix, *ending], len(prefix), temperature, support, f"probe-{number}")
        for number, ending in enumerate(endings)
    ]


class Scorer(Protocol):
    """What a probe asks: a teacher, or a policy."""

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]: ...


def _kind(scores: Scores) -> str:
    return (
        f"{type(scores).__name__} of {scores.ids.shape[1]}" if isinstance(scores, TopKScores) else type(scores).__name__
    )


async def _all_logprobs(scorer: Scorer, name: str, unit: Sequence[ScoreRequest], heads: Heads | None) -> Doubles:
    """Of all the requests' tokens, one after the other."""
    found = [np.zeros(0)]
    for request, scores in zip(unit, await scorer.score(unit), strict=True):
        if isinstance(scores, Failure):
            raise ContractError(f"{name} could not score a probe: {scores.message}")
        found.append(logprobs_of_sampled(scores, request, heads))
    return np.concatenate(found)
