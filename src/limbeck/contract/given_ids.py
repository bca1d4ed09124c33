"""The probe of a teacher that is asked about ids of the student's choosing: is each answered, in its own place?

After one prefix, the log-prob of a token depends on neither the order of the list, nor what else is on it, nor the
sampled token, nor the lists of other positions; and it is the one that it has as the sampled token, where no list is
given too: that one is proven to be at T.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from limbeck.contract.answers import Heads, ask, refusal
from limbeck.errors import ContractError
from limbeck.protocols import Teacher
from limbeck.records import HiddenScores, Ints, ProbeResult, ScoreRequest, Scores, TokenScores, TopKScores, request_of

TOLERANCE = 1e-3  # nats, of rounding; beside it, twice the noise that the teacher has
SAMPLED = 8  # tokens that are asked about as the sampled one, and on the lists of the others
POSITIONS = 4  # of one request, each with a list of its own


async def given_ids(
    teacher: Teacher,
    prefix: Sequence[int],
    others: Sequence[int],
    temperature: float,
    heads: Heads | None,
    given_K: Ints,
    noise: float = 0.0,
) -> ProbeResult:
    """Ask about K tokens of `given_K` and `others` at a time, in other orders, after `prefix`.

    A teacher that answers with hidden states passes: the learner chooses the tokens then. Raises `ContractError`.
    """
    count, pool = len(given_K), np.array(list(dict.fromkeys([*given_K.tolist(), *others])), dtype=np.int64)
    sampled = pool[np.linspace(0, len(pool) - 1, min(SAMPLED, len(pool))).astype(int)]
    lists = [np.roll(pool, -(i * count) // 2)[:count] for i in range(len(sampled))]
    unit = [_after(prefix, [y], temperature, [row]) for y, row in zip(sampled, lists, strict=True)]
    cut = max(1, len(prefix) - POSITIONS)
    several = [np.roll(pool, -place)[:count] for place in range(len(prefix) - cut + 1)]
    unit += [request_of([*prefix, y], len(prefix), temperature, "sampled", "probe") for y in sampled[[0, -1]]]
    unit.append(_after(prefix[:cut], [*prefix[cut:], int(sampled[0])], temperature, several))
    answers = await ask(teacher, unit, heads)
    if all(isinstance(answer, HiddenScores) for answer in answers):
        return ProbeResult("given ids", "hidden states: those of any ids", "log-probs of ids that are given")
    found: dict[int, list[float]] = {}
    for request, answer in zip(unit, answers, strict=True):
        for token, logprob in _after_prefix(teacher, request, answer):
            found.setdefault(token, []).append(logprob)
    apart = max(float(np.ptp(values)) for values in found.values())
    limit = TOLERANCE + 2 * noise
    if not apart <= limit:
        raise _refusal(
            teacher,
            f"gives one token after one text log-probs that are {apart:.3g} nats apart: they depend on the list, the "
            f"place in it or the sampled token (expected at most {limit:.1g})",
            f"{apart:.3g} nats apart",
            f"at most {limit:.1g}",
        )
    return ProbeResult("given ids", f"{count} at a time, {apart:.1e} nats apart", f"at most {limit:.1g}")


def _after(prefix: Sequence[int], ending: Sequence[int], temperature: float, lists: Sequence[Ints]) -> ScoreRequest:
    """About a list of ids at each token of `ending`."""
    token_ids = np.array([*prefix, *ending], dtype=np.int64)
    scored = np.arange(len(token_ids)) >= len(prefix)
    return ScoreRequest("probe", token_ids, scored, temperature, np.stack(lists))


def _after_prefix(teacher: Teacher, request: ScoreRequest, scores: Scores) -> Iterator[tuple[int, float]]:
    """(id, log-prob) at the last position, listed or sampled. Raises `ContractError` for other ids."""
    if isinstance(request.support, str) and isinstance(scores, TokenScores):
        yield int(request.scored_ids[-1]), float(scores.logprobs[-1])
        return
    if not isinstance(scores, TopKScores):
        kind = type(scores).__name__
        raise _refusal(teacher, f"answers with {kind} where ids are given", kind, "TopKScores of the ids")
    if not np.array_equal(scores.ids, request.support):
        raise _refusal(
            teacher,
            "answers about other ids than those that it is given, or in another order",
            "other ids",
            "the ids, in their order",
        )
    mass = float(np.exp(scores.logprobs.astype(np.float64)).sum(axis=1).max())
    if not mass <= 1 + TOLERANCE:
        raise _refusal(
            teacher, f"gives different tokens probabilities that sum to {mass:.4g}", f"a sum of {mass:.4g}", "at most 1"
        )
    yield from zip(scores.ids[-1].tolist(), scores.logprobs[-1].tolist(), strict=True)
    yield int(request.scored_ids[-1]), float(scores.logprobs_of_sampled[-1])


def _refusal(teacher: Teacher, problem: str, measured: str, expected: str) -> ContractError:
    return refusal(
        "given ids",
        f"teacher {teacher.name} {problem}. objective.support = 'student_top' asks about the student's own top tokens.",
        "Serve the teacher with `limbeck serve` (teacher.kind = 'limbeck'), or set objective.support to 'sampled' or "
        "to a number of the teacher's top tokens.",
        measured,
        expected,
    )


def probe_ids(k: int, vocabulary: int) -> Ints:
    """[K] different ids spread over the vocabulary, in no order of theirs."""
    spread = np.linspace(0, vocabulary - 1, k).astype(np.int64)
    shuffled: Ints = np.random.default_rng(0).permutation(spread)
    return shuffled
