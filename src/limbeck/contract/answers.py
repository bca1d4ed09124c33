"""Answers of a teacher as the probes need them: checked, and as log-probs of the tokens that were asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from limbeck.errors import ContractError
from limbeck.protocols import Teacher
from limbeck.records import Failure, HiddenScores, ProbeResult, ScoreRequest, Scores, TopKScores

if TYPE_CHECKING:
    from limbeck.models.head import Head

Doubles: TypeAlias = npt.NDArray[np.float64]
Heads: TypeAlias = "Mapping[str, Head]"  # by fingerprint: what turns hidden states into log-probs

AT_T = "Use a teacher that scores at the rollout temperature, or rollout.temperature = 1."


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
            raise ContractError(f"teacher {teacher.name} could not score a probe: {reason}")
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
