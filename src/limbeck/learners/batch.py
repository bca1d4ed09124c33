"""From scored samples to micro-batches: what is compared with what, and what is left out of the loss.

A teacher may know a position only to within an interval (`teachers/rescale.py`). Where that is too wide,
`scores.known` is False and the position leaves the trained set: it stays in the sequence, as the prefix of
what follows, but has no loss and does not count in the denominator.

Worked example: a rollout "a b | c d e" whose teacher is unsure of d:

    trained  F F T T T      known  T F T       ->   trained  F F T F T,  scores of c and e
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ContractError
from limbeck.models.layout import Layout, TokenBatch, lay_out, split
from limbeck.objectives import Dense, Sampled, Target, Tokens, TopK
from limbeck.records import HiddenScores, Mask, Rollout, Scored, TeacherScores, TokenScores, TopKScores


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A part of a step that goes through the student at once."""

    layout: TokenBatch
    tokens: Tokens
    teacher: Target
    reference: Dense | None
    members: tuple[int, ...]  # which of the step's samples these are


@dataclass(frozen=True, eq=False)
class Batch:
    """A whole step. `global_tokens` is the denominator, fixed before anything is split."""

    micro: tuple[MicroBatch, ...]
    global_tokens: int
    temperature: float


def make_batch(samples: Sequence[Scored], layout: Layout, budget: int, device: torch.device) -> Batch:
    """Split a step into micro-batches that share one kind of target, and collate each.

    Raises `ContractError` where a score's temperature or length is not its rollout's, and
    `ValueError` where a rollout is greedy or temperatures differ within the step.
    """
    for sample in samples:
        _check(sample)
    samples = [trained_part(sample) for sample in samples]
    temperatures = {sample.rollout.sampling.temperature for sample in samples}
    if len(temperatures) != 1:
        raise ValueError(f"one step holds rollouts of one temperature, got {sorted(temperatures)}")
    kinds: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        if sample.rollout.trained.any():  # a response of no tokens has nothing to train on
            kinds.setdefault(_kind(sample.scores), []).append(index)
    micro = [
        _collate([group[i] for i in part], samples, layout, device)
        for group in kinds.values()
        for part in split([samples[i].rollout for i in group], budget, layout)
    ]
    trained = sum(int(sample.rollout.trained.sum()) for sample in samples)
    return Batch(tuple(micro), trained, temperatures.pop())


def _kind(scores: TeacherScores) -> object:
    """Samples of one micro-batch share a kind of score, and a head where there is one."""
    if isinstance(scores, HiddenScores):
        return ("hidden", id(scores.head))
    if isinstance(scores, TopKScores):
        return ("top-k", scores.ids.shape[1])
    return "sampled"


def _check(sample: Scored) -> None:
    rollout, scores = sample.rollout, sample.scores
    if rollout.sampling.greedy:
        raise ValueError(f"rollout of prompt {rollout.prompt.id!r} is greedy: only samples can be trained on")
    for given in (scores, sample.reference):
        if given is None:
            continue
        if given.temperature != rollout.sampling.temperature:
            raise ContractError(
                f"teacher {given.teacher!r} scored prompt {rollout.prompt.id!r} at temperature "
                f"{given.temperature}, but the student sampled it at {rollout.sampling.temperature}. The two "
                "sides of the KL must be at one temperature."
            )
        count = len(given.hidden) if isinstance(given, HiddenScores) else len(_of_sampled(given))
        if count != int(rollout.trained.sum()):
            raise ContractError(
                f"teacher {given.teacher!r} gave {count} scores for the {int(rollout.trained.sum())} sampled "
                f"tokens of prompt {rollout.prompt.id!r}"
            )


def _of_sampled(scores: TokenScores | TopKScores) -> np.ndarray:
    return scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs


def _collate(members: list[int], samples: Sequence[Scored], layout: Layout, device: torch.device) -> MicroBatch:
    chosen = [samples[i] for i in members]
    rollouts = [sample.rollout for sample in chosen]
    counts = [int(rollout.trained.sum()) for rollout in rollouts]
    advantages = [sample.advantage for sample in chosen]
    references = [sample.reference for sample in chosen if sample.reference is not None]
    tokens = Tokens(
        sampled_N=_stack([rollout.response_ids for rollout in rollouts], device),
        sequence_N=_stack([np.repeat(np.arange(len(counts)), counts)], device),
        behaviour_N=_stack([rollout.behaviour_logprobs for rollout in rollouts], device),
        advantage_N=_stack([np.repeat(np.asarray(advantages, dtype=np.float32), counts)], device)
        if any(advantages)
        else None,
    )
    return MicroBatch(
        layout=lay_out(rollouts, layout).to(device),
        tokens=tokens,
        teacher=_target([sample.scores for sample in chosen], device),
        reference=_dense(references, device) if references else None,
        members=tuple(members),
    )


def _target(scores: Sequence[TeacherScores], device: torch.device) -> Target:
    """Scores of one kind (see `_kind`) end to end."""
    if all(isinstance(item, HiddenScores) for item in scores):
        return _dense([item for item in scores if isinstance(item, HiddenScores)], device)
    top = [item for item in scores if isinstance(item, TopKScores)]
    if top:
        return TopK(
            _stack([item.ids for item in top], device),
            _stack([item.logprobs for item in top], device),
            _stack([item.logprobs_of_sampled for item in top], device),
        )
    return Sampled(_stack([item.logprobs for item in scores if isinstance(item, TokenScores)], device))


def _dense(scores: Sequence[HiddenScores], device: torch.device) -> Dense:
    return Dense(torch.cat([item.hidden.to(device) for item in scores]), scores[0].head)


def _stack(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


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
    hidden: torch.Tensor = reference.hidden
    return hidden[torch.from_numpy(known_S).to(hidden.device)]
