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

from limbeck.models.prefix_tree import Tree, build
from limbeck.records import Rollout

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
        build(shapes),
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
