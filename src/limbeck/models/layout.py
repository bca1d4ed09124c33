"""From sequences of many lengths to tensors a model runs on. The only file that shifts by one.

A token at position t is predicted by the hidden state at t - 1, so the scored tokens of a sequence
are read off at `predict_N`, flat indices into [B * L], and its last token is left out: it predicts
nothing. Rows are filled to the right: under causal attention what comes after a token cannot reach it,
so no attention mask is needed, and the loss never sees padding because only scored tokens are gathered.

Worked example, two requests "ab|cd" and "a|c" (scored tokens after the bar):

    padded   tokens [[a, b, c],         predict [1, 2, 3]    sampled [c, d, c]
                     [a, 0, 0]]                              sequence [0, 0, 1]
    packed   tokens [[a, b, c, a]]         positions [[0, 1, 2, 0]]         predict [1, 2, 3]

Packed sequences are a tree of prefixes without suffixes, for models whose attention goes along it.

In the layout "tree" the samples of a prompt share it (see `prefix_tree.py`): "ab|cd" and "ab|e" become

    tree     tokens [[a, b, c]]            positions [[0, 1, 2]]            predict [1, 2, 1]

Shape legend: B rows, L row length, N scored tokens, d hidden width, K support size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from limbeck.models.prefix_tree import Tree, build
from limbeck.records import ScoreRequest

Layout: TypeAlias = Literal["tree", "padded", "packed"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """What a forward pass needs, and where to read off the predictions."""

    tokens_BL: Tensor
    positions_BL: Tensor
    predict_N: Tensor  # flat index of the hidden state that predicts each scored token
    tree: Tree | None = None

    def to(self, device: torch.device) -> TokenBatch:
        tensors = (self.tokens_BL.to(device), self.positions_BL.to(device), self.predict_N.to(device))
        return TokenBatch(*tensors, None if self.tree is None else self.tree.to(device))


def lay_out(requests: Sequence[ScoreRequest], layout: Layout) -> TokenBatch:
    """Rows of tokens for `requests`, in their order."""
    lengths = [_fed(request) for request in requests]
    if layout == "tree" and (len(set(lengths)) > 1 or len(_families(requests)) < len(requests)):
        return _lay_out_tree(requests)  # else rows hold nothing twice and no padding
    width = sum(lengths) if layout == "packed" else max(lengths)
    rows = 1 if layout == "packed" else len(requests)
    tokens = np.zeros(rows * width, dtype=np.int64)
    positions = np.tile(np.arange(width), rows)
    starts = np.cumsum([0, *lengths[:-1]]) if layout == "packed" else np.arange(rows) * width
    predict = []
    for start, length, request in zip(starts, lengths, requests, strict=True):
        tokens[start : start + length] = request.token_ids[:length]
        positions[start : start + length] = np.arange(length)
        predict.append(start + np.flatnonzero(request.scored) - 1)
    return TokenBatch(
        torch.from_numpy(tokens).view(rows, width),
        torch.from_numpy(positions).view(rows, width),
        torch.from_numpy(np.concatenate(predict)),
        build([(length, ()) for length in lengths]) if layout == "packed" else None,
    )


def _lay_out_tree(requests: Sequence[ScoreRequest]) -> TokenBatch:
    """One row: each family's prefix, then its suffixes; `predict` in the order of `requests`."""
    tokens, positions, shapes, start = [], [], [], 0
    predict: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(requests)
    for members in _families(requests):
        prefix = _prefix(requests[members[0]]) if len(members) > 1 else _fed(requests[members[0]])
        tokens.append(requests[members[0]].token_ids[:prefix])
        positions.append(np.arange(prefix))
        suffix = start + prefix
        for i in members:
            own = requests[i].token_ids[prefix : _fed(requests[i])]
            tokens.append(own)
            positions.append(np.arange(prefix, prefix + len(own)))
            before = np.flatnonzero(requests[i].scored) - 1  # the first own token is predicted by the prefix's last
            predict[i] = np.where(before < prefix, start + before, suffix + before - prefix)
            suffix += len(own)
        lengths = [_fed(requests[i]) - prefix for i in members]
        shapes.append((prefix, [length for length in lengths if length > 0]))
        start = suffix
    return TokenBatch(
        torch.from_numpy(np.concatenate(tokens))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        torch.from_numpy(np.concatenate(predict)),
        build(shapes),
    )


def _fed(request: ScoreRequest) -> int:
    """Tokens that go through a model: all but the last, and one at least."""
    return max(1, len(request.token_ids) - 1)


def _prefix(request: ScoreRequest) -> int:
    """Tokens that samples of one prompt share: those before the first scored one."""
    return request.start


def _families(requests: Sequence[ScoreRequest]) -> list[list[int]]:
    """Indices of the requests that share a prefix, token for token."""
    families: dict[bytes, list[int]] = {}
    for index, request in enumerate(requests):
        families.setdefault(request.token_ids[: _prefix(request)].tobytes(), []).append(index)
    return list(families.values())


def split(requests: Sequence[ScoreRequest], budget: int, layout: Layout) -> list[list[int]]:
    """Indices of `requests` in groups of at most `budget` tokens, last tokens included; see `plan`.

    As a tree, what shares a prefix is kept together, and the prefix counts once for a group.
    """
    if layout != "tree":
        return plan([len(request.token_ids) for request in requests], budget, layout)
    groups: list[list[int]] = []
    used = 0
    for members in sorted(_families(requests), key=lambda members: -_prefix(requests[members[0]])):
        prefix = _prefix(requests[members[0]])
        here = False  # whether the last group has this prefix
        for i in members:
            own = len(requests[i].token_ids) - prefix
            if not groups or used + own + (0 if here else prefix) > budget:
                groups.append([])
                used, here = 0, False
            groups[-1].append(i)
            used, here = used + own + (0 if here else prefix), True
    return groups


def tokens_of(requests: Sequence[ScoreRequest], layout: Layout) -> int:
    """Tokens that go through a model for one group of requests, padding included, last tokens too; see `split`."""
    lengths = [len(request.token_ids) for request in requests]
    if layout == "padded":
        return max(lengths) * len(lengths)
    twice = [members[1:] for members in _families(requests)] if layout == "tree" else []
    return sum(lengths) - sum(_prefix(requests[i]) for others in twice for i in others)


def plan(lengths: Sequence[int], budget: int, layout: Literal["padded", "packed"]) -> list[list[int]]:
    """Indices of `lengths` in groups of at most `budget` tokens, padding included.

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
