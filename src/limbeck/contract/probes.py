"""The contract with a teacher, proven before the first step from nothing but its answers.

    alignment      the score of a token follows from it and from all that precedes it (`causality.py`)
    normalisation  K log-probs of a position are those of K tokens of a distribution (`distribution.py`)
    temperature    log q_T(a) - log q_T(b) = (log q_1(a) - log q_1(b)) / T (`ratios.py`); and what the answers at 1
                   certify of those at T
    given ids      where training asks about ids of its own: each is answered, in its own place (`given_ids.py`)
    length         each part of a text moves the scores at its end (`length.py`); of teachers that may be servers
    same weights   where the teacher is the student's own model, their KL is 0: catches everything else

Probes ask for what training will ask for (`support`), and change nothing. One that fails raises `ContractError` with
what was measured, what was expected and the remedy. A server goes through more of them, see `remote.py`; for the
comparison of two tokenizers see `tokenizers.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np

from limbeck.contract.answers import Answer, Asker, Doubles, Heads, logprobs_of_sampled, refusal
from limbeck.contract.causality import check_alike, check_causality, check_listed
from limbeck.contract.distribution import check_at_temperature, check_list
from limbeck.contract.given_ids import given_ids
from limbeck.contract.length import ask_long, check_long
from limbeck.contract.ratios import check_ratios, gaps, gaps_of
from limbeck.contract.texts import LENGTH, ProbeTexts
from limbeck.errors import ContractError
from limbeck.protocols import Policy, Teacher
from limbeck.records import (
    Failure,
    Ints,
    ProbeResult,
    ScoreRequest,
    Scores,
    Support,
    request_of,
)

Text: TypeAlias = Sequence[int]  # as tokens

AT_T_TOLERANCE = 0.01  # nats beyond a certificate, of a teacher without noise
IDENTICAL = 0.01  # nats a token between a model and itself


async def prove(
    teacher: Teacher,
    texts: Sequence[Text],
    temperature: float,
    vocabulary: int,
    heads: Heads | None = None,
    support: Support = "sampled",
    *,
    served: bool = False,
) -> list[ProbeResult]:
    """Run the probes that need only scores, on `texts` and ids below `vocabulary`.

    `served`: the teacher may be a server's client, which has to read whole texts; a model of this process does.
    Raises `ContractError`, with the results so far, for the first that fails.
    """
    asker = Asker(teacher, heads)
    prefix = max(texts[:16], key=len)
    ids = continuations(prefix, vocabulary)
    probe = ProbeTexts([prefix], ids, vocabulary, teacher.info.context or LENGTH)
    own = _Own(asker, probe, temperature, vocabulary, "sampled" if isinstance(support, np.ndarray) else support, ids)
    steps: dict[str, Callable[[], Awaitable[ProbeResult]]] = {
        "alignment": own.alignment,
        "normalisation": own.normalisation,
        "temperature": own.temperature,
    }
    if not isinstance(support, int):
        del steps["normalisation"]
    if served and teacher.info.window is None:
        steps["length"] = own.length
    if isinstance(support, np.ndarray):
        steps["given ids"] = partial(given_ids, teacher, prefix, ids, temperature, heads, support)
    results: list[ProbeResult] = []
    for step in steps.values():
        try:
            results.append(await step())
        except ContractError as error:
            error.results = (*results, *error.results)
            raise
    return results


@dataclass
class _Own:
    """The probes of one teacher, which use each other's answers. All but the last are asked at T."""

    ask: Asker
    texts: ProbeTexts
    t: float
    vocabulary: int
    support: Support
    ids: Sequence[int]
    at_t: list[Answer] = field(default_factory=list)  # to the text, then to its changed forms
    changed: list[tuple[int, Answer]] = field(default_factory=list)  # and where they are changed

    async def alignment(self) -> ProbeResult:
        (base,) = await self._ask([self.texts.base])
        changed = self.texts.changed(base)
        others = await self._ask([one.ids for one in changed])
        self.at_t = [base, *others]
        self.changed = list(zip((one.place for one in changed), others, strict=True))
        result = check_causality(self.ask.name, base, self.changed)
        as_training = request_of(self.texts.base, self.texts.start, self.t, self.support, "probe")
        (part,) = await self.ask([as_training])
        check_alike(self.ask.name, base, part)
        return result

    async def normalisation(self) -> ProbeResult:
        """The top K are K different tokens whose probabilities sum to at most 1, and agree with the sampled token's."""
        if all(answer.whole for answer in self.at_t):
            return ProbeResult("normalisation", "hidden states: the whole distribution", "at most 1")
        held = [check_list(self.ask.name, answer, self.support) for answer in self.at_t]
        return ProbeResult("normalisation", f"the top {self.support} hold up to {max(held):.3f}", "at most 1")

    async def temperature(self) -> ProbeResult:
        if self.at_t[0].top_SK is None:
            return await self._ratio_of_endings()
        at_one = await self._ask([answer.request.token_ids for answer in self.at_t], 1.0)
        pairs = list(zip(at_one, self.at_t, strict=True))
        check_listed(self.ask.name, self.at_t[0], self.changed)
        result = check_ratios(self.ask.name, gaps_of(pairs), self.t)
        if self.t != 1:
            check_at_temperature(self.ask.name, pairs, self.t, self.vocabulary, AT_T_TOLERANCE)
        return result

    async def length(self) -> ProbeResult:
        long = await ask_long(self.ask, self.texts, self.texts.length, 1.0, self.support)
        return check_long(self.ask.name, long, 0.0)

    async def _ask(self, texts: Sequence[Ints], temperature: float | None = None) -> list[Answer]:
        at = self.t if temperature is None else temperature
        return await self.ask([request_of(ids, 1, at, self.support, f"probe-{n}") for n, ids in enumerate(texts)])

    async def _ratio_of_endings(self) -> ProbeResult:
        """Of a teacher that lists no tokens: many of them after one text."""
        prefix, rows = self.texts.base[: self.texts.start], []
        for t in (1.0, self.t):
            unit = [request_of([*prefix, i], len(prefix), t, self.support, f"probe-{i}") for i in self.ids]
            rows.append(np.concatenate([answer.sampled_S for answer in await self.ask(unit)]))
        return check_ratios(self.ask.name, [gaps(*rows)], self.t)


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


class Scorer(Protocol):
    """What a probe asks: a teacher, or a policy."""

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]: ...


async def _all_logprobs(scorer: Scorer, name: str, unit: Sequence[ScoreRequest], heads: Heads | None) -> Doubles:
    """Of all the requests' tokens, one after the other."""
    found = [np.zeros(0)]
    for request, scores in zip(unit, await scorer.score(unit), strict=True):
        if isinstance(scores, Failure):
            raise ContractError(f"{name} could not score a probe: {scores.message}")
        found.append(logprobs_of_sampled(scores, request, heads))
    return np.concatenate(found)
