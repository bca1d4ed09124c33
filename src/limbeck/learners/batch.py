"""From scored samples to micro-batches: what is compared with what."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ContractError, EngineError
from limbeck.learners.groups import check_groups, grouped_target
from limbeck.learners.valid_mask import apply_valid_mask
from limbeck.models.head import Head
from limbeck.models.layout import Layout, TokenBatch, lay_out, split
from limbeck.objectives import Dense, Sampled, Target, Tokens, TopK
from limbeck.records import (
    Groups,
    HiddenScores,
    Ints,
    Rollout,
    Scored,
    ScoreRequest,
    Scores,
    TokenScores,
    TopKScores,
)

Heads: TypeAlias = Mapping[str, Head]  # by fingerprint


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """A part of a step that goes through the student at once."""

    layout: TokenBatch
    tokens: Tokens
    teacher: Target
    reference: Dense | None
    members: tuple[int, ...]  # which of the step's samples these are


@dataclass(frozen=True, eq=False)
class MicroBatches(Sequence[MicroBatch]):
    """The parts of a step, each collated when it is asked for: only then are its states fetched."""

    members: Sequence[Sequence[int]]  # of each part, places in the step
    collate: Callable[[Sequence[int]], MicroBatch]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        return self.collate(self.members[index])


@dataclass(frozen=True, eq=False)
class Batch:
    """A whole step. `global_tokens` is the denominator, fixed before anything is split.

    Of several ranks, rank r has `micro[r::ranks]`. The parts are in the order in which teachers score: those that
    compute ahead keep little for long.
    """

    micro: Sequence[MicroBatch]
    global_tokens: int
    temperature: float


def make_batch(
    samples: Sequence[Scored],
    layout: Layout,
    budget: int,
    device: torch.device,
    heads: Heads | None = None,
    vocabulary: int | None = None,
    ranks: int = 1,
) -> Batch:
    """Split a step into micro-batches that share one kind of target, and collate each when it is asked for.

    `heads` are those that hidden states may belong to, and ids at or above `vocabulary` cannot be trained on.
    Raises `ContractError` for scores that do not belong to their rollout (`_check_scores`), `EngineError` for a
    sampled id outside the vocabulary, and `ValueError` where a rollout is greedy or temperatures differ within
    the step.
    """
    heads = heads or {}
    for sample in samples:
        _check_rollout(sample.rollout, vocabulary)
        for scores in (sample.scores, sample.reference):
            if scores is not None:
                _check_scores(
                    sample.rollout, scores, heads, vocabulary, sample.groups if scores is sample.scores else None
                )
    samples = [apply_valid_mask(sample) for sample in samples]
    temperatures = {sample.rollout.sampling.temperature for sample in samples}
    if len(temperatures) != 1:
        raise ValueError(f"one step holds rollouts of one temperature, got {sorted(temperatures)}")
    kinds: dict[object, list[int]] = {}
    for index, sample in enumerate(samples):
        if sample.rollout.trained.any():  # a response of no tokens has nothing to train on
            kinds.setdefault(_kind(sample), []).append(index)
    requests = [request_for(sample.rollout) for sample in samples]
    parts = _parts(list(kinds.values()), requests, budget, layout, ranks)
    micro = MicroBatches(parts, lambda members: _collate(members, samples, requests, layout, device, heads, vocabulary))
    trained = sum(int(sample.rollout.trained.sum()) for sample in samples)
    return Batch(micro, trained, temperatures.pop())


def _parts(
    kinds: Sequence[list[int]], requests: Sequence[ScoreRequest], budget: int, layout: Layout, ranks: int
) -> list[list[int]]:
    """Members of each micro-batch, of at most `budget` tokens.

    For several ranks, which make their passes side by side: as few rounds as the budget allows, and within them as
    many and as small micro-batches as there is room for.
    """

    def parts_of(tokens: int) -> list[list[int]]:
        return [
            [kind[i] for i in part] for kind in kinds for part in split([requests[i] for i in kind], tokens, layout)
        ]

    parts = parts_of(budget)
    if ranks == 1:
        return parts
    room = ranks * math.ceil(len(parts) / ranks)
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        if len(parts_of(middle)) <= room:
            high = middle
        else:
            low = middle + 1
    return min((parts_of(high), parts), key=lambda some: len(some) > room)


def check_given_ids(samples: Sequence[Scored]) -> None:
    """Raises `ContractError` for scores of other tokens than the student's own top: such a support may be biased."""
    for sample in samples:
        rollout, scores = sample.rollout, sample.scores
        if isinstance(scores, TopKScores) and (
            rollout.top_ids is None or not np.array_equal(scores.ids, rollout.top_ids)
        ):
            raise ContractError(
                f"scores of {scores.scorer!r} for prompt {rollout.prompt.id!r} are of other tokens than the student's "
                "own most likely ones, which objective.support = 'student_top' takes. The teacher must answer about "
                "the ids that it is given."
            )


def request_for(rollout: Rollout) -> ScoreRequest:
    """What has to be scored to train on a rollout: its trained tokens, at its temperature."""
    return ScoreRequest(rollout.prompt.id, rollout.token_ids, rollout.trained, rollout.sampling.temperature)


def _kind(sample: Scored) -> object:
    """Samples of one micro-batch share a kind of score, and the heads that it takes."""
    scores, reference = sample.scores, None if sample.reference is None else sample.reference.head
    if sample.groups is not None:
        return "grouped", None, reference
    if isinstance(scores, HiddenScores):
        return "hidden", scores.head, reference
    if isinstance(scores, TopKScores):
        return "top-k", scores.ids.shape[1], reference
    return "sampled", None, reference


def _check_rollout(rollout: Rollout, vocabulary: int | None) -> None:
    if rollout.sampling.greedy:
        raise ValueError(f"rollout of prompt {rollout.prompt.id!r} is greedy: only samples can be trained on")
    if outside := _outside(rollout.response_ids, vocabulary):
        raise EngineError(
            f"the rollout of prompt {rollout.prompt.id!r} has sampled token {outside[0]}, but student and teacher "
            f"share ids 0 to {_last(vocabulary)} only. The engine must not sample the padded rows of the output head."
        )


def _check_scores(
    rollout: Rollout, scores: Scores, heads: Heads, vocabulary: int | None, groups: Groups | None
) -> None:
    """Raises `ContractError` where a temperature, a head or a number of scores is not what the rollout takes.

    Of groups the scores are of the teacher's tokens, and so is their vocabulary.
    """
    where = f"scores of {scores.scorer!r} for prompt {rollout.prompt.id!r}"
    if isinstance(scores, HiddenScores):
        _check_hidden(where, scores, heads, None if groups else vocabulary)
    elif scores.temperature != rollout.sampling.temperature:
        raise ContractError(
            f"{where} were computed at temperature {scores.temperature}, but the student sampled at "
            f"{rollout.sampling.temperature}. The two sides of the KL must be at one temperature."
        )
    given, trained = _count(scores), int(rollout.trained.sum())
    asked, what = (trained, "sampled tokens") if groups is None else (len(groups.teacher), "of the teacher's tokens")
    if given != asked:
        raise ContractError(f"{where}: {given} scores for {asked} {what}")
    mask_S = scores.valid_mask
    if mask_S is not None and mask_S.shape != (asked,):
        raise ContractError(f"{where}: a valid_mask of shape {mask_S.shape} for {asked} {what}")
    if groups is not None:
        check_groups(where, groups, trained)
        return
    if isinstance(scores, TopKScores) and (outside := _outside(scores.ids, vocabulary)):
        raise ContractError(
            f"{where} name token {outside[0]} among the most likely, but student and teacher share ids 0 to "
            f"{_last(vocabulary)} only"
        )


def _check_hidden(where: str, scores: HiddenScores, heads: Heads, vocabulary: int | None) -> None:
    if scores.natural_temperature != 1:
        raise ContractError(
            f"{where} are hidden states of a model with the natural temperature {scores.natural_temperature} (written "
            "by `limbeck bake`), expected 1: the learner divides by the rollout's temperature itself, so it would be "
            "divided twice. Give the model that was baked, or take log-probs with teacher.temperature_method = 'baked'."
        )
    if scores.head not in heads:
        raise ContractError(
            f"{where} belong to an output head with fingerprint {scores.head}, which the learner does not have. It "
            f"has {', '.join(heads) or 'none'}. Set teacher.head to the model that the scorer holds."
        )
    if vocabulary is not None and heads[scores.head].vocabulary < vocabulary:
        raise ContractError(
            f"{where} belong to the output head {scores.head}, which has {heads[scores.head].vocabulary} tokens, but "
            f"the student is compared over {vocabulary}. Student and teacher must share their vocabulary."
        )
    width = heads[scores.head].weight_Vd.shape[1]
    if scores.states.shape[1] != width:
        raise ContractError(f"{where} are {scores.states.shape[1]} wide, but their output head takes {width}")


def _outside(ids: Ints, vocabulary: int | None) -> list[int]:
    """The ids that are not in the vocabulary."""
    outside: list[int] = [] if vocabulary is None else ids[(ids < 0) | (ids >= vocabulary)].tolist()
    return outside


def _last(vocabulary: int | None) -> int:
    assert vocabulary is not None
    return vocabulary - 1


def _count(scores: Scores) -> int:
    if isinstance(scores, HiddenScores):
        return int(scores.states.shape[0])
    return len(scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs)


def _collate(
    members: Sequence[int],
    samples: Sequence[Scored],
    requests: Sequence[ScoreRequest],
    layout: Layout,
    device: torch.device,
    heads: Heads,
    vocabulary: int | None,
) -> MicroBatch:
    chosen = [samples[i] for i in members]
    rollouts = [sample.rollout for sample in chosen]
    counts = [int(rollout.trained.sum()) for rollout in rollouts]
    advantages = [
        np.broadcast_to(np.asarray(sample.advantage, dtype=np.float32), (count,))
        for sample, count in zip(chosen, counts, strict=True)
    ]
    references = [sample.reference for sample in chosen if sample.reference is not None]
    tokens = Tokens(
        sampled_N=_stack([rollout.response_ids for rollout in rollouts], device),
        sequence_N=_stack([np.repeat(np.arange(len(counts)), counts)], device),
        behaviour_N=_stack([rollout.logprobs for rollout in rollouts], device),
        advantage_N=_stack(advantages, device) if any(advantage_S.any() for advantage_S in advantages) else None,
    )
    return MicroBatch(
        layout=lay_out([requests[i] for i in members], layout).to(device),
        tokens=tokens,
        teacher=_target(chosen, heads, device, vocabulary),
        reference=_dense(references, heads, device, vocabulary) if references else None,
        members=tuple(members),
    )


def _target(samples: Sequence[Scored], heads: Heads, device: torch.device, vocabulary: int | None) -> Target:
    """Scores of one kind (see `_kind`) end to end."""
    if any(sample.groups is not None for sample in samples):
        return grouped_target(samples, heads, device)
    scores = [sample.scores for sample in samples]
    hidden = [item for item in scores if isinstance(item, HiddenScores)]
    if hidden:
        return _dense(hidden, heads, device, vocabulary)
    top = [item for item in scores if isinstance(item, TopKScores)]
    if top:
        return TopK(
            _stack([item.ids for item in top], device),
            _stack([item.logprobs for item in top], device),
            _stack([item.logprobs_of_sampled for item in top], device),
        )
    return Sampled(_stack([item.logprobs for item in scores if isinstance(item, TokenScores)], device))


def _dense(scores: Sequence[HiddenScores], heads: Heads, device: torch.device, vocabulary: int | None) -> Dense:
    head = heads[scores[0].head]
    if vocabulary is not None:
        head = head.narrow(vocabulary)
    return Dense(torch.cat([item.states.fetch().to(device) for item in scores]), head)


def _stack(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(np.concatenate(arrays)).to(device)


def heads_on(heads: Heads, device: torch.device) -> Heads:
    """All of their tokens: what is compared is chosen where they are used."""
    return {fingerprint: head.to(device) for fingerprint, head in heads.items()}
