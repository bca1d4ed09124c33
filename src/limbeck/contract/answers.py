"""Answers of a teacher as the probes need them: checked, and as log-probs of the tokens that were asked about.

Shape legend: S scored tokens, K most likely tokens of a position, sorted, the most likely first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.errors import ContractError
from limbeck.protocols import Teacher
from limbeck.records import Failure, HiddenScores, Ints, Mask, ProbeResult, ScoreRequest, Scores, TopKScores

if TYPE_CHECKING:
    from limbeck.models.head import Head

Doubles: TypeAlias = npt.NDArray[np.float64]
Heads: TypeAlias = "Mapping[str, Head]"  # by fingerprint: what turns hidden states into log-probs

TOP = 20  # tokens that are looked at in a position, where a teacher lists any: what stock servers give
PROBES = {  # whose business an answer of this kind is, whichever probe asked
    "unnormalised": "normalisation", "clamped": "normalisation", "not_finite": "normalisation",
    "inconsistent": "alignment", "short": "alignment", "wrong_ids": "tokenizer",
}  # fmt: skip
AT_T = "Use a teacher that scores at the rollout temperature, or rollout.temperature = 1."


@dataclass(frozen=True, slots=True)
class Answer:
    """Log-probs of a text's scored tokens, and of the most likely ones where the teacher lists them."""

    request: ScoreRequest
    sampled_S: Doubles
    top_ids_SK: Ints | None = None
    top_SK: Doubles | None = None
    whole: bool = False  # the list is of hidden states, which have every token

    def row(self, token: int) -> int:
        """Where the score of the text's `token`-th token is."""
        return token - self.request.start

    def since(self, token: int) -> Answer:
        """The same without what comes before the text's `token`-th token."""
        row = self.row(token)
        scored = self.request.scored & (np.arange(len(self.request.scored)) >= token)
        ids_SK = None if self.top_ids_SK is None else self.top_ids_SK[row:]
        top_SK = None if self.top_SK is None else self.top_SK[row:]
        return Answer(replace(self.request, scored=scored), self.sampled_S[row:], ids_SK, top_SK, self.whole)

    def inside(self) -> Mask:
        """Whether each scored token is among the most likely."""
        assert self.top_ids_SK is not None
        inside: Mask = (self.top_ids_SK == self.request.scored_ids[:, None]).any(axis=1)
        return inside


class Asker:
    """Asks one teacher, and has answers alike of every kind of scores."""

    def __init__(self, teacher: Teacher, heads: Heads | None = None) -> None:
        self.teacher, self.name, self.heads = teacher, teacher.name, heads

    async def __call__(self, unit: Sequence[ScoreRequest]) -> list[Answer]:
        """Raises `ContractError` for what is no answer, see `ask`."""
        answers = await ask(self.teacher, unit, self.heads)
        return [_answer(scores, request, self.heads) for scores, request in zip(answers, unit, strict=True)]


def _answer(scores: Scores, request: ScoreRequest, heads: Heads | None) -> Answer:
    if isinstance(scores, HiddenScores):
        import torch

        from limbeck.models.scoring import score_hidden

        head = (heads or {})[scores.head]  # looked for by `ask`
        hidden_Sd = scores.states.fetch().to(head.weight_Vd.device)
        ids_S = torch.from_numpy(request.scored_ids).to(hidden_Sd.device)
        found = score_hidden(head, hidden_Sd, ids_S, request.temperature, min(TOP, head.vocabulary))
        assert found.top_ids_SK is not None
        assert found.top_logprobs_SK is not None
        values = (found.logprobs_S, found.top_logprobs_SK)
        sampled_S, top_SK = (tensor.double().cpu().numpy() for tensor in values)
        return Answer(request, sampled_S, found.top_ids_SK.cpu().numpy(), top_SK, whole=True)
    sampled_S = logprobs_of_sampled(scores, request, heads)
    if not isinstance(scores, TopKScores):
        return Answer(request, sampled_S)
    order_SK = np.argsort(-scores.logprobs, axis=1, kind="stable")
    ids_SK = np.take_along_axis(scores.ids, order_SK, axis=1)
    top_SK = np.take_along_axis(scores.logprobs, order_SK, axis=1).astype(np.float64)
    return Answer(request, sampled_S, ids_SK, top_SK)


def top_difference(a: Answer, b: Answer, rows_a: slice, rows_b: slice) -> float:
    """Nats by which the most likely tokens of some positions differ; 0 where there are none to compare.

    Their values in order, so that tokens of equal score may change places, and those of the tokens in both lists.
    """
    if a.top_SK is None or b.top_SK is None or a.top_ids_SK is None or b.top_ids_SK is None:
        return 0.0
    values_a, values_b = a.top_SK[rows_a], b.top_SK[rows_b]
    k = min(values_a.shape[1], values_b.shape[1])
    in_order = np.abs(values_a[:, :k] - values_b[:, :k]).max(initial=0.0)
    same_SKK = a.top_ids_SK[rows_a][:, :, None] == b.top_ids_SK[rows_b][:, None, :]
    apart_SKK = np.abs(values_a[:, :, None] - values_b[:, None, :])
    return float(max(in_order, apart_SKK[same_SKK].max(initial=0.0)))


def refusal(probe: str, problem: str, remedy: str, measured: str, expected: str) -> ContractError:
    """An error that reads as a sentence and as a row of the contract's table."""
    return ContractError(f"{problem} {remedy}", [ProbeResult(probe, measured, expected, ok=False, remedy=remedy)])


async def ask(teacher: Teacher, unit: Sequence[ScoreRequest], heads: Heads | None) -> list[Scores]:
    """A checked answer to each request. Raises `ContractError` for one that is none."""
    answers = await teacher.score(unit)
    if len(answers) != len(unit):
        raise refusal(
            "answers",
            f"teacher {teacher.name} gave {len(answers)} answers to {len(unit)} requests.",
            "Answer each request, in order.",
            f"{len(answers)} answers",
            f"{len(unit)}",
        )
    checked: list[Scores] = []
    for request, scores in zip(unit, answers, strict=True):
        if isinstance(scores, Failure):
            reason = scores.message.removeprefix(f"teacher {teacher.name}: ")
            found = [ProbeResult(PROBES[scores.kind], reason, "", ok=False)] if scores.kind in PROBES else []
            raise ContractError(f"teacher {teacher.name} could not score a probe: {reason}", found)
        _check_answer(teacher, request, scores, heads)
        checked.append(scores)
    return checked


def _check_answer(teacher: Teacher, request: ScoreRequest, scores: Scores, heads: Heads | None) -> None:
    """One finite number a scored token, stamped with the temperature that was asked for."""
    asked, count = len(request.scored_ids), _count(scores)
    if count != asked:
        raise refusal(
            "answers",
            f"teacher {teacher.name} gave {count} scores for {asked} tokens.",
            "It must score the tokens that are asked about, all of them and nothing else.",
            f"{count} scores",
            f"{asked}",
        )
    if isinstance(scores, HiddenScores):
        stamp, expected, what = scores.natural_temperature, 1.0, "gave hidden states of a model baked for"
    else:
        stamp, expected, what = scores.temperature, request.temperature, "scored at"
    if stamp != expected:
        remedy = AT_T if teacher.info.natural_temperature == 1 else "Give the model that it was baked from."
        raise refusal(
            "temperature",
            f"teacher {teacher.name} {what} temperature {stamp}, expected {expected}.",
            remedy,
            f"stamped {stamp}",
            f"{expected}",
        )
    values = logprobs_of_sampled(scores, request, heads)
    if not np.isfinite(values).all():
        wrong = next(value for value in values if not np.isfinite(value))
        raise refusal(
            "answers",
            f"teacher {teacher.name} gave a token of the vocabulary a log-prob of {wrong}, expected a finite one. Its "
            "weights or its log-probs are incomplete.",
            "Check the checkpoint, and that the server does not truncate what it returns.",
            f"a log-prob of {wrong}",
            "a finite one",
        )


def _count(scores: Scores) -> int:
    """For how many tokens there is a score."""
    if isinstance(scores, HiddenScores):
        return scores.states.shape[0]  # type: ignore[no-any-return]  # `States`, see protocols
    return len(scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs)


def rows_of(answers: Sequence[Scores], unit: Sequence[ScoreRequest], heads: Heads | None) -> Doubles:
    """[requests, S] log-probs of the tokens that were asked about."""
    return np.array([logprobs_of_sampled(s, r, heads) for s, r in zip(answers, unit, strict=True)])


def logprobs_of_sampled(scores: Scores, request: ScoreRequest, heads: Heads | None = None) -> Doubles:
    """[S] log q of the scored tokens, whatever the kind of scores; hidden states are divided by T here.

    Raises `ContractError` for states whose head is not among `heads`.
    """
    if isinstance(scores, HiddenScores):
        import torch  # a server is proven without it

        from limbeck.models.scoring import score_hidden

        head = (heads or {}).get(scores.head)
        if head is None:
            raise ContractError(
                f"teacher {scores.scorer} gave hidden states of a head that is not here ({scores.head!r}). "
                "Give the head with the teacher."
            )
        hidden_Sd = scores.states.fetch().to(head.weight_Vd.device)
        ids_S = torch.from_numpy(request.scored_ids).to(hidden_Sd.device)
        values: Doubles = score_hidden(head, hidden_Sd, ids_S, request.temperature).logprobs_S.double().cpu().numpy()
        return values
    of_sampled = scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs
    return of_sampled.astype(np.float64)
