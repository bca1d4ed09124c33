"""The samples of one prompt as a tree: the prompt is computed once, its samples are suffixes of it.

All tokens of a pass are in one flat row, each prefix (what the samples of a prompt share) before its suffixes. A
prefix attends to itself, a suffix to its prefix and itself; everything but attention does not know where one token
ends and the next begins, so nothing is computed twice and there is no padding. Hidden states and gradients are those
of each sequence alone.

Worked example, suffixes "cd" and "e" of a prefix "ab", and "xy", which shares its prefix with no other and so
is a prefix without suffixes:

    tokens     a b c d e x y
    positions  0 1 2 3 2 0 1
    prefixes   [[a, b], [x, y]]
    suffixes   [[c, d], [e, .]]      keys  [[a, b, c, d], [a, b, e, .]]

It replaces the model's attention function. A model for which it cannot (sliding windows, soft caps, other kernels)
is found by `equivalence.share_prompts`.

Shape legend: N tokens of a pass, T prefixes of at most L tokens, B suffixes of at most R, K = L + R keys,
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
    """Who attends to whom, as places in the flat row. Padding is place 0, and is read by nobody."""

    prefix_TL: Tensor
    suffix_BR: Tensor
    keys_BK: Tensor
    bias_B1RK: Tensor  # float: 0 where a suffix attends, -inf where it does not
    read_N: Tensor  # where each token is in [prefixes, suffixes] laid end to end

    def to(self, device: torch.device) -> Tree:
        return Tree(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def build(families: Sequence[tuple[int, Sequence[int]]]) -> Tree:
    """The tree of (tokens of the prefix, tokens of each suffix) in the order of the flat row.

    >>> build([(2, [2, 1]), (2, [])]).keys_BK.tolist()
    [[0, 1, 2, 3], [0, 1, 4, 0]]
    """
    prefixes = [prefix for prefix, _ in families]
    suffixes = [length for _, lengths in families for length in lengths]
    longest, widest = max(prefixes, default=0), max(suffixes, default=0)
    prefix_TL = np.zeros((len(prefixes), longest), dtype=np.int64)
    suffix_BR = np.zeros((len(suffixes), widest), dtype=np.int64)
    keys_BK = np.zeros((len(suffixes), longest + widest), dtype=np.int64)
    bias_BRK = np.full((len(suffixes), widest, longest + widest), -np.inf, dtype=np.float32)
    bias_BRK[:, :, longest:] = np.where(np.tri(widest, dtype=bool), 0, -np.inf)
    read, start, row = [], 0, 0
    for number, (prefix, lengths) in enumerate(families):
        places = np.arange(start, start + prefix)
        prefix_TL[number, :prefix] = places
        read.append(number * longest + np.arange(prefix))
        start += prefix
        for length in lengths:
            suffix_BR[row, :length] = np.arange(start, start + length)
            keys_BK[row, :prefix] = places
            keys_BK[row, longest : longest + length] = suffix_BR[row, :length]
            bias_BRK[row, :, :prefix] = 0
            read.append(prefix_TL.size + row * widest + np.arange(length))
            start, row = start + length, row + 1
    arrays = (prefix_TL, suffix_BR, keys_BK, bias_BRK[:, None], np.concatenate(read))
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

    output_NHD = of(tree.prefix_TL, tree.prefix_TL, None)
    if len(tree.suffix_BR):
        output_NHD = torch.cat([output_NHD, of(tree.suffix_BR, tree.keys_BK, tree.bias_B1RK)])
    return output_NHD.index_select(0, tree.read_N)


def _rows(x_NHD: Tensor, places: Tensor) -> Tensor:
    """[rows, H, places of each, D]"""
    return x_NHD.index_select(0, places.flatten()).view(*places.shape, *x_NHD.shape[1:]).transpose(1, 2)
