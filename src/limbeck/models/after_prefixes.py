"""Rows of tokens after prefixes whose keys and values are known: nothing of a prefix is computed again.

    states_Sd = states_after(parts, tokens_N, positions_N, rows, predict_S, kept)

All tokens of a pass lie in one flat row, without padding; attention goes row by row, to the keys of its prefix and to
its own, merged (`attention`). So what a row gives does not depend on the lengths of the others. Keys are rotated, and
neither they nor values nor states know a temperature: they serve every request.

Worked example, "abcd" and "abe" of which "ab" is known, and "xy":

    tokens     c d e x y          rows   [0, 2) after "ab", [2, 3) after "ab", [3, 5) after nothing
    positions  2 3 2 0 1

Shape legend: N tokens of a pass, G layers, C tokens of a prefix, n tokens of a row, H query heads, J key-value heads,
D head width, d model width, S states that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.models import ops
from limbeck.models.attention import attend_part, merged
from limbeck.models.llama import Block, LlamaParts, heads_of, rotation_of, run_block


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens [start, end) of the flat row, and what they follow."""

    start: int
    end: int
    prefix: Tensor | None = None  # [G, 2, J, C, D] rotated keys, and values; None: the row begins at position 0


@dataclass(frozen=True, eq=False)
class Kept:
    """Where the keys and values of some tokens of the flat row are to be written."""

    start: int
    out: Tensor  # [G, 2, J, n, D]


def states_after(
    model: LlamaParts,
    tokens_N: Tensor,
    positions_N: Tensor,
    rows: Sequence[Row],
    predict_S: Tensor,
    kept: Sequence[Kept] = (),
) -> Tensor:
    """[S, d] final states at the places `predict_S` of the flat row. `kept` is written on the way."""
    x_Nd = model.embedding(tokens_N)
    rotation = rotation_of(model, x_Nd, positions_N[None])
    last = len(model.blocks) - 1
    for layer, block in enumerate(model.blocks):
        attention = _AfterPrefixes(model.head_width, rows, rotation, layer, kept)
        x_Nd = run_block(block, ops, attention, x_Nd, read_S=predict_S if layer == last else None)
    return ops.norm(x_Nd, model.norm)


def empty_keys(model: LlamaParts, tokens: int) -> Tensor:
    """[G, 2, J, tokens, D] of nothing yet."""
    key = model.blocks[0].key
    heads = key.weight.shape[0] // model.head_width
    return key.weight.new_empty(len(model.blocks), 2, heads, tokens, model.head_width)


@dataclass(frozen=True, eq=False)
class _AfterPrefixes:
    """Attention of one layer."""

    width: int
    rows: Sequence[Row]
    rotation: tuple[Tensor, Tensor]
    layer: int
    kept: Sequence[Kept]

    def __call__(self, block: Block, query_Nn: Tensor, key_Nn: Tensor, value_Nn: Tensor) -> Tensor:
        """[N, H * D]"""
        query, key, value = heads_of(block, self.width, len(query_Nn), self.rotation, query_Nn, key_Nn, value_Nn)
        for one in self.kept:
            end = one.start + one.out.shape[3]
            one.out[self.layer, 0].copy_(key[0, :, one.start : end])
            one.out[self.layer, 1].copy_(value[0, :, one.start : end])
        attended = []
        for row in self.rows:
            own = slice(row.start, row.end)
            part = attend_part(query[:, :, own], key[:, :, own], value[:, :, own], 1.0, causal=True)
            if row.prefix is not None:
                keys, values = row.prefix[self.layer][:, None]
                part = merged(part, attend_part(query[:, :, own], keys, values, 1.0, causal=False))
            attended.append(part[0][0])  # [H, n, D]
        return torch.cat(attended, dim=1).transpose(0, 1).reshape(query_Nn.shape)
