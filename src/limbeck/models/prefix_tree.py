"""The samples of one prompt as a tree: the prompt is computed once, its samples are branches.

All tokens of a pass stand in one flat row, each stem (what the samples of a prompt share) before its
branches. A stem attends to itself, a branch to its stem and itself; everything but attention does not
know where one token ends and the next begins, so nothing is computed twice and there is no padding.
Hidden states and gradients are those of each sequence alone.

Worked example, branches "cd" and "e" of a stem "ab", and "xy", which shares its stem with no other and so
is a stem without branches:

    tokens     a b c d e x y
    positions  0 1 2 3 2 0 1
    stems      [[a, b], [x, y]]
    branches   [[c, d], [e, .]]      keys  [[a, b, c, d], [a, b, e, .]]

It takes the place of the model's attention function, and a model for which it cannot (sliding
windows, soft caps, other kernels) is told apart by `models.share_prompts`.

Shape legend: N tokens of a pass, T stems of at most L tokens, B branches of at most R, K = L + R keys,
H query heads, J key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.models.ops import attend

ATTENTION = "limbeck_tree"  # the name under which transformers knows `attention`
NOT_UNDERSTOOD = ("sliding_window", "softcap", "s_aux", "position_bias")  # what attention may be asked for besides


@dataclass(frozen=True, eq=False)
class Tree:
    """Who attends to whom, as places in the flat row. Fillers are place 0, and are read by nobody."""

    stem_TL: Tensor
    branch_BR: Tensor
    keys_BK: Tensor
    bias_B1RK: Tensor  # float: 0 where a branch attends, -inf where it does not
    read_N: Tensor  # where each token stands in [stems, branches] laid end to end

    def to(self, device: torch.device) -> Tree:
        return Tree(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def grow(families: Sequence[tuple[int, Sequence[int]]]) -> Tree:
    """The tree of (tokens of the stem, tokens of each branch) in the order of the flat row.

    >>> grow([(2, [2, 1]), (2, [])]).keys_BK.tolist()
    [[0, 1, 2, 3], [0, 1, 4, 0]]
    """
    stems = [stem for stem, _ in families]
    branches = [length for _, lengths in families for length in lengths]
    longest, widest = max(stems, default=0), max(branches, default=0)
    stem_TL = np.zeros((len(stems), longest), dtype=np.int64)
    branch_BR = np.zeros((len(branches), widest), dtype=np.int64)
    keys_BK = np.zeros((len(branches), longest + widest), dtype=np.int64)
    bias_BRK = np.full((len(branches), widest, longest + widest), -np.inf, dtype=np.float32)
    bias_BRK[:, :, longest:] = np.where(np.tri(widest, dtype=bool), 0, -np.inf)
    read, start, branch = [], 0, 0
    for number, (stem, lengths) in enumerate(families):
        places = np.arange(start, start + stem)
        stem_TL[number, :stem] = places
        read.append(number * longest + np.arange(stem))
        start += stem
        for length in lengths:
            branch_BR[branch, :length] = np.arange(start, start + length)
            keys_BK[branch, :stem] = places
            keys_BK[branch, longest : longest + length] = branch_BR[branch, :length]
            bias_BRK[branch, :, :stem] = 0
            read.append(stem_TL.size + branch * widest + np.arange(length))
            start, branch = start + length, branch + 1
    arrays = (stem_TL, branch_BR, keys_BK, bias_BRK[:, None], np.concatenate(read))
    return Tree(*(torch.from_numpy(array) for array in arrays))


def attention(
    module: Any,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree: Tree | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: along `tree` where there is one, otherwise its own `sdpa`.

    Raises `NotImplementedError` for attention that is more than a softmax of scaled products.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if tree is None:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query_1HND, key_1HND, value_1HND, mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output
    if extra := [name for name in NOT_UNDERSTOOD if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {extra[0]} = {kwargs[extra[0]]}")
    query_NHD, key_NHD, value_NHD = (x[0].transpose(0, 1) for x in (query_1HND, key_1HND, value_1HND))
    return attend_along(tree, query_NHD, key_NHD, value_NHD, scaling, dropout)[None], None


def attend_along(
    tree: Tree,
    query_NHD: Tensor,
    key_NJD: Tensor,
    value_NJD: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """[N, H, D]"""

    def of(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """[rows * queries of each, H, D]"""
        query_BHRD, key_BJKD, value_BJKD = _rows(query_NHD, queries), _rows(key_NJD, keys), _rows(value_NJD, keys)
        output_BHRD = attend(query_BHRD, key_BJKD, value_BJKD, bias, scaling, dropout)
        return output_BHRD.transpose(1, 2).flatten(0, 1)

    output_NHD = of(tree.stem_TL, tree.stem_TL, None)
    if len(tree.branch_BR):
        output_NHD = torch.cat([output_NHD, of(tree.branch_BR, tree.keys_BK, tree.bias_B1RK)])
    return output_NHD.index_select(0, tree.read_N)


def _rows(x_NHD: Tensor, places: Tensor) -> Tensor:
    """[rows, H, places of each, D]"""
    return x_NHD.index_select(0, places.flatten()).view(*places.shape, *x_NHD.shape[1:]).transpose(1, 2)
