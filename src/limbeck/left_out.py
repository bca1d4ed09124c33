"""Positions and samples that a teacher could not mark well enough: taken out, counted, never filled in.

A teacher may know a position only to within an interval (`temperature/rescale.py`). Where that is too
wide, `scores.known` is False and the position leaves the trained set: it stays in the sequence, as the
prefix of what follows, but has no loss and does not count in the denominator.

Worked example: a rollout "a b | c d e" whose teacher is unsure of d:

    trained  F F T T T      known  T F T       ->   trained  F F T F T,  scores of c and e
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from limbeck.errors import TeacherError
from limbeck.records import Failure, HiddenScores, Mask, Rollout, Scored, TeacherScores, TokenScores

T = TypeVar("T")


def trained_part(sample: Scored) -> Scored:
    """The sample with only its known positions trained; itself where all are known.

    Scores, sampler's log-probs and reference are cut to match, so nothing after this needs to know.
    """
    scores = sample.scores
    known_S = None if isinstance(scores, HiddenScores) else scores.known
    if known_S is None or known_S.all():
        return sample
    reference = sample.reference
    return replace(
        sample,
        rollout=_rollout(sample.rollout, known_S),
        scores=_scores(scores, known_S),
        reference=None if reference is None else replace(reference, hidden=_rows(reference, known_S)),
    )


def _rollout(rollout: Rollout, known_S: Mask) -> Rollout:
    trained = rollout.trained.copy()
    trained[trained] = known_S
    return replace(rollout, trained=trained, behaviour_logprobs=rollout.behaviour_logprobs[known_S])


def _scores(scores: TeacherScores, known_S: Mask) -> TeacherScores:
    assert not isinstance(scores, HiddenScores)
    errors = None if scores.errors is None else scores.errors[known_S]
    if isinstance(scores, TokenScores):
        return replace(scores, logprobs=scores.logprobs[known_S], errors=errors, known=None)
    return replace(
        scores,
        ids=scores.ids[known_S],
        logprobs=scores.logprobs[known_S],
        logprobs_of_sampled=scores.logprobs_of_sampled[known_S],
        errors=errors,
        known=None,
    )


def _rows(reference: HiddenScores, known_S: Mask) -> torch.Tensor:
    return reference.hidden[torch.from_numpy(known_S).to(reference.hidden.device)]


def enough(answers: Sequence[T | Failure], least: float) -> list[int]:
    """Places of the answers that are not failures, at least a share `least` of them.

    Raises `TeacherError` for fewer, naming the first failure: the step is not made.
    """
    kept = [index for index, answer in enumerate(answers) if not isinstance(answer, Failure)]
    if len(kept) < least * len(answers) or (answers and not kept):
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        first = failures[0]
        why = f"{first.kind}: {first.message.rstrip('.')}."
        raise TeacherError(
            f"{len(failures)} of {len(answers)} responses could not be scored, but teacher.min_scored_fraction = "
            f"{least}. The first is of prompt {first.prompt_id!r}: {why} Nothing was updated; "
            "start the same command again to go on from the last checkpoint."
        )
    return kept
