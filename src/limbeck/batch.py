"""From rollouts of many lengths to tensors a model runs on. The only file that shifts by one.

A token at position t is predicted by the hidden state at t - 1, so the trained tokens of a sequence
are read off at `predict_N`, flat indices into [B * L], and its last token is left out: it predicts
nothing. Rows are filled to the right: under causal attention what comes after a token cannot reach it,
so no attention mask is needed, and the loss never sees a filler because only trained tokens are gathered.

Worked example, two rollouts "ab|cd" and "a|c" (trained tokens after the bar):

    padded   tokens [[a, b, c],         predict [1, 2, 3]    sampled [c, d, c]
                     [a, 0, 0]]                              sequence [0, 0, 1]
    packed   tokens [[a, b, c, a]]         positions [[0, 1, 2, 0]]         predict [1, 2, 3]

In the layout "tree" the samples of a prompt share it (see `tree.py`): "ab|cd" and "ab|e" become

    tree     tokens [[a, b, c]]            positions [[0, 1, 2]]            predict [1, 2, 1]

Shape legend: B rows, L row length, N trained tokens, d hidden width, K support size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from limbeck.errors import ContractError
from limbeck.left_out import trained_part
from limbeck.objectives import Dense, Sampled, Target, Tokens, TopK
from limbeck.records import HiddenScores, Rollout, Scored, TeacherScores, TokenScores, TopKScores
from limbeck.tree import Tree, grow

Layout: TypeAlias = Literal["tree", "padded", "packed"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """What a forward pass needs, and where to read off the predictions."""

    tokens_BL: Tensor
    positions_BL: Tensor
    predict_N: Tensor  # flat index of the hidden state that predicts each trained token
    tree: Tree | None = None

    def to(self, device: torch.device) -> TokenBatch:
        tensors = (self.tokens_BL.to(device), self.positions_BL.to(device), self.predict_N.to(device))
        return TokenBatch(*tensors, None if self.tree is None else self.tree.to(device))


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


def lay_out(rollouts: Sequence[Rollout], layout: Layout) -> TokenBatch:
    """Rows of tokens for `rollouts`, in their order."""
    lengths = [_fed(rollout) for rollout in rollouts]
    if layout == "tree" and (len(set(lengths)) > 1 or len(_families(rollouts)) < len(rollouts)):
        return _lay_out_tree(rollouts)  # else rows hold nothing twice and no filler
    width = sum(lengths) if layout == "packed" else max(lengths)
    rows = 1 if layout == "packed" else len(rollouts)
    tokens = np.zeros(rows * width, dtype=np.int64)
    positions = np.tile(np.arange(width), rows)
    starts = np.cumsum([0, *lengths[:-1]]) if layout == "packed" else np.arange(rows) * width
    predict = []
    for start, length, rollout in zip(starts, lengths, rollouts, strict=True):
        tokens[start : start + length] = rollout.token_ids[:length]
        positions[start : start + length] = np.arange(length)
        predict.append(start + np.flatnonzero(rollout.trained) - 1)
    return TokenBatch(
        torch.from_numpy(tokens).view(rows, width),
        torch.from_numpy(positions).view(rows, width),
        torch.from_numpy(np.concatenate(predict)),
    )


def _lay_out_tree(rollouts: Sequence[Rollout]) -> TokenBatch:
    """One row: each family's stem, then its branches; `predict` in the order of `rollouts`."""
    tokens, positions, shapes, start = [], [], [], 0
    predict: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(rollouts)
    for members in _families(rollouts):
        stem = _stem(rollouts[members[0]]) if len(members) > 1 else _fed(rollouts[members[0]])
        tokens.append(rollouts[members[0]].token_ids[:stem])
        positions.append(np.arange(stem))
        branch = start + stem
        for i in members:
            own = rollouts[i].token_ids[stem : _fed(rollouts[i])]
            tokens.append(own)
            positions.append(np.arange(stem, stem + len(own)))
            before = np.flatnonzero(rollouts[i].trained) - 1  # the first own token is predicted by the stem's last
            predict[i] = np.where(before < stem, start + before, branch + before - stem)
            branch += len(own)
        lengths = [_fed(rollouts[i]) - stem for i in members]
        shapes.append((stem, [length for length in lengths if length > 0]))
        start = branch
    return TokenBatch(
        torch.from_numpy(np.concatenate(tokens))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        torch.from_numpy(np.concatenate(predict)),
        grow(shapes),
    )


def _fed(rollout: Rollout) -> int:
    """Tokens that go through a model: all but the last, and one at least."""
    return max(1, len(rollout.token_ids) - 1)


def _stem(rollout: Rollout) -> int:
    """Tokens that samples of one prompt share."""
    return len(rollout.prompt.token_ids)


def _families(rollouts: Sequence[Rollout]) -> list[list[int]]:
    """Indices of the rollouts that share a stem, token for token."""
    families: dict[bytes, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        families.setdefault(rollout.token_ids[: _stem(rollout)].tobytes(), []).append(index)
    return list(families.values())


def split(rollouts: Sequence[Rollout], budget: int, layout: Layout) -> list[list[int]]:
    """Indices of `rollouts` in groups of at most `budget` tokens, last tokens included; see `plan`.

    As a tree, what shares a stem is kept together, and the stem counts once for a group.
    """
    if layout != "tree":
        return plan([len(rollout.token_ids) for rollout in rollouts], budget, layout)
    groups: list[list[int]] = []
    used = 0
    for members in sorted(_families(rollouts), key=lambda members: -_stem(rollouts[members[0]])):
        stem = _stem(rollouts[members[0]])
        here = False  # whether the last group has this stem
        for i in members:
            own = len(rollouts[i].token_ids) - stem
            if not groups or used + own + (0 if here else stem) > budget:
                groups.append([])
                used, here = 0, False
            groups[-1].append(i)
            used, here = used + own + (0 if here else stem), True
    return groups


def plan(lengths: Sequence[int], budget: int, layout: Literal["padded", "packed"]) -> list[list[int]]:
    """Indices of `lengths` in groups of at most `budget` tokens, fillers included.

    Longest first, so that rows of like length share a batch; a sequence longer than the budget is
    a batch of its own. Every index occurs once.
    """
    groups: list[list[int]] = []
    used = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups:
            longest = lengths[groups[-1][0]]
            used = used + lengths[index] if layout == "packed" else longest * (len(groups[-1]) + 1)
        if not groups or used > budget:
            groups.append([])
            used = lengths[index]
        groups[-1].append(index)
    return groups


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
