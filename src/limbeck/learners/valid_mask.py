"""What a teacher does not know well enough is masked out of the loss.

A teacher may know a position only to within an interval (`teachers/rescale.py`, or states that were rounded for the
wire). Where that is too wide,
`scores.valid_mask` is False and the position leaves the trained set: it stays in the sequence, as the prefix of
what follows, but has no loss and does not count in the denominator.

Worked example: a rollout "a b | c d e" whose teacher is unsure of d:

    trained  F F T T T      valid_mask  T F T       ->   trained  F F T F T,  scores of c and e

Where a teacher's scores are of groups of tokens, its mask is over its own tokens: a group with one of which it is
unsure leaves as a whole, like the tokens that are in no group.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limbeck.protocols import States
from limbeck.records import Groups, HiddenScores, Mask, Rollout, Scored, Scores, TokenScores


def apply_valid_mask(sample: Scored) -> Scored:
    """The sample with only its valid positions trained; itself where all are valid.

    Scores, sampler's log-probs and reference are cut to match, so nothing after this needs to know. Groups that are
    left are numbered anew, in order.
    """
    if sample.groups is not None:
        return _whole_groups(sample, sample.groups)
    mask_S = sample.scores.valid_mask
    if mask_S is None or mask_S.all():
        return sample
    return _masked(sample, mask_S, mask_S)


def _masked(sample: Scored, mask_S: Mask, of_scores: Mask) -> Scored:
    """With the trained tokens of `mask_S`, and the teacher's scores of its own mask."""
    reference = sample.reference
    return replace(
        sample,
        rollout=_mask_rollout(sample.rollout, mask_S),
        scores=_mask_scores(sample.scores, of_scores),
        advantage=sample.advantage[mask_S] if isinstance(sample.advantage, np.ndarray) else sample.advantage,
        reference=None if reference is None else replace(reference, states=_mask_states(reference, mask_S)),
    )


def _whole_groups(sample: Scored, groups: Groups) -> Scored:
    valid, student, teacher = sample.scores.valid_mask, groups.student, groups.teacher
    kept_G = np.ones(len(groups.sizes), dtype=bool)
    if valid is not None:
        kept_G[teacher[~valid & (teacher >= 0)]] = False
    mask_S, of_scores = (np.isin(side, np.flatnonzero(kept_G)) for side in (student, teacher))
    if mask_S.all() and of_scores.all():
        return sample
    number_G = np.cumsum(kept_G) - 1
    left = replace(
        groups,
        student=number_G[student[mask_S]],
        teacher=number_G[teacher[of_scores]],
        teacher_ids=groups.teacher_ids[of_scores],
        sizes=groups.sizes[kept_G],
    )
    return replace(_masked(sample, mask_S, of_scores), groups=left)


def _mask_rollout(rollout: Rollout, mask_S: Mask) -> Rollout:
    trained = rollout.trained.copy()
    trained[trained] = mask_S
    return replace(
        rollout,
        trained=trained,
        logprobs=rollout.logprobs[mask_S],
        versions=rollout.versions[mask_S],
        top_ids=None if rollout.top_ids is None else rollout.top_ids[mask_S],
    )


def _mask_scores(scores: Scores, mask_S: Mask) -> Scores:
    errors = None if scores.errors is None else scores.errors[mask_S]
    if isinstance(scores, HiddenScores):
        return replace(scores, states=_mask_states(scores, mask_S), errors=errors, valid_mask=None)
    if isinstance(scores, TokenScores):
        return replace(scores, logprobs=scores.logprobs[mask_S], errors=errors, valid_mask=None)
    return replace(
        scores,
        ids=scores.ids[mask_S],
        logprobs=scores.logprobs[mask_S],
        logprobs_of_sampled=scores.logprobs_of_sampled[mask_S],
        errors=errors,
        valid_mask=None,
    )


def _mask_states(scores: HiddenScores, mask_S: Mask) -> MaskedStates:
    return MaskedStates(scores.states, mask_S)


@dataclass(frozen=True, eq=False)
class MaskedStates:
    """`protocols.States` of some rows of others, which are fetched when these are."""

    states: States
    mask_S: Mask

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.mask_S.sum()), self.states.shape[1]

    def fetch(self) -> Tensor:
        tensor_Sd: Tensor = self.states.fetch()
        return tensor_Sd[torch.from_numpy(self.mask_S).to(tensor_Sd.device)]
