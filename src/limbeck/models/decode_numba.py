"""Fast decode on a CPU with numba: everything between the matmuls in two compiled functions.

With models of a few million weights a token costs less arithmetic than it costs to start operations on it, so norm
and attention are one call each where torch takes thirty. Nothing is copied while decoding: a prompt's keys and
values stay where the prefill left them, whoever answers it, and a row that leaves leaves its place empty. The first
call compiles (seconds), later processes find the result in numba's cache.

Importing this module imports numba, which is an extra and takes half a second: `equivalence` does so where it is there.

Shape legend: P prompts, B rows, J key-value heads, G query heads of each, D head width, L prompt tokens, C capacity
of a row's own keys, d model width, n any layer's width.
"""

from __future__ import annotations

import math
import os
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from limbeck.models.decode import Columns, norm_heads
from limbeck.models.llama import Block, LlamaParts, run_block
from limbeck.models.prefill import Prefilled

WAIT_POLICY = "OMP_WAIT_POLICY"  # OpenMP reads it when its library is loaded
# Sums may be reordered, which lets them be vectorised; NaN and infinity mean what they always do.
REORDER = {"reassoc", "contract", "arcp", "nsz"}


class NumbaColumns(Columns):
    """`decode.Columns` with compiled norms, written to memory that is kept from block to block."""

    def __init__(self, model: LlamaParts, rows: int) -> None:
        weight = model.embedding.weight
        norms: list[Any] = [norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)]
        kind = weight.detach().numpy().dtype.type  # scalars of another type would widen every sum
        self.constants = {n: (n.weight.detach().numpy(), kind(n.variance_epsilon)) for n in [*norms, model.norm]}
        self.normed_dB = torch.empty(weight.shape[1], rows, dtype=weight.dtype)
        self.out_dB = self.normed_dB.numpy()

    def norm(self, x_dB: Tensor, norm: Any) -> Tensor:
        rms_norm(x_dB.numpy(), *self.constants[norm], self.out_dB)
        return self.normed_dB


class NumbaRows:
    """See `decode.Rows`. Row b answers prompt `prompt_B[b]`, which is padded to the right if at all."""

    def __init__(self, model: LlamaParts, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        _share_threads()
        self.model, self.position_B = model, start.position_P[prompt_B]
        self.length_P, self.written = start.length_P.numpy(), 0
        self.prompts = [(layer.keys.numpy(), layer.values.numpy()) for layer in start.cache.layers]
        self.prompt_B, self.slot_B = prompt_B.numpy(), np.arange(len(prompt_B))
        self.own = [
            tuple(np.empty((len(prompt_B), keys.shape[1], reserve, keys.shape[3]), keys.dtype) for _ in range(2))
            for keys, _ in self.prompts
        ]
        self.kind = self.prompts[0][0].dtype.type
        self.columns = NumbaColumns(model, len(prompt_B))

    def forward(self, token_B: Tensor) -> Tensor:
        x_dB = self.model.embedding(token_B).t().contiguous()
        rotation = tuple(part[0].numpy() for part in self.model.rotary(x_dB[None], position_ids=self.position_B[None]))
        for number, block in enumerate(self.model.blocks):
            x_dB = run_block(block, self.columns, partial(self._attention, number, rotation), x_dB)
        self.position_B, self.written = self.position_B + 1, self.written + 1
        return self.columns.norm(x_dB, self.model.norm).t().clone()

    def keep(self, rows: Tensor) -> None:
        self.position_B = self.position_B[rows]
        self.prompt_B, self.slot_B = self.prompt_B[rows.numpy()], self.slot_B[rows.numpy()]
        self.columns = NumbaColumns(self.model, len(rows))

    def _attention(
        self, number: int, rotation: tuple[Any, ...], block: Block, query_nB: Tensor, key_nB: Tensor, value_nB: Tensor
    ) -> Tensor:
        """[J G D, B] of one token of each row, whose keys and values are written on the way."""
        if block.query_norm is not None:
            rows, width = query_nB.shape[1], self.model.head_width
            normed = norm_heads(block, query_nB.view(-1, width, rows), key_nB.view(-1, width, rows))
            query_nB, key_nB = (part_HDB.reshape(-1, rows) for part_HDB in normed)
        out_nB = torch.empty_like(query_nB)
        attend(
            query_nB.numpy(), key_nB.numpy(), value_nB.numpy(), *rotation, self.prompt_B, self.length_P,
            *self.prompts[number], self.slot_B, *self.own[number], self.written, self.kind(block.scaling),
            out_nB.numpy(),
        )  # fmt: skip
        return out_nB


def _share_threads() -> None:
    """numba with as many threads as torch, whose number its first call would change where they share an OpenMP.

    Where they do not, numba's threads must sleep between calls: those of both that spin take each other's place.
    """
    threads, before = torch.get_num_threads(), os.environ.get(WAIT_POLICY)
    os.environ[WAIT_POLICY] = "passive"
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    finally:
        os.environ.pop(WAIT_POLICY)
        if before is not None:
            os.environ[WAIT_POLICY] = before
    torch.set_num_threads(threads)


@numba.njit(fastmath=REORDER, cache=True)
def rms_norm(x_dB: Any, weight_d: Any, eps: float, out_dB: Any) -> None:
    """Root mean square norm of each column."""
    width, rows = x_dB.shape
    scale_B = np.zeros(rows, x_dB.dtype)
    for i in range(width):
        for b in range(rows):
            scale_B[b] += x_dB[i, b] * x_dB[i, b]
    for b in range(rows):
        scale_B[b] = 1.0 / math.sqrt(scale_B[b] / width + eps)
    for i in range(width):
        for b in range(rows):
            out_dB[i, b] = x_dB[i, b] * scale_B[b] * weight_d[i]


@numba.njit(fastmath=REORDER, cache=True, parallel=True)
def attend(
    query_nB: Any,  # of one token of each row, not rotated yet
    key_nB: Any,
    value_nB: Any,
    cos_BD: Any,
    sin_BD: Any,
    prompt_B: Any,  # which prompt a row answers
    length_P: Any,  # tokens of each prompt
    prompt_keys_PJLD: Any,
    prompt_values_PJLD: Any,
    slot_B: Any,  # where a row's own keys and values lie
    keys_BJCD: Any,
    values_BJCD: Any,
    written: int,  # tokens that each row has of its own
    scaling: float,
    out_nB: Any,  # [J G D, B]
) -> None:
    """Rotate queries and keys to their positions, append keys and values, and attend to prompt and row."""
    rows, kv_heads, width = len(slot_B), keys_BJCD.shape[1], keys_BJCD.shape[3]
    half, group = width // 2, out_nB.shape[0] // (kv_heads * width)
    for b in numba.prange(rows):
        kind = query_nB.dtype
        query_D, sum_D = np.empty(width, kind), np.empty(width, kind)
        prompt, slot = prompt_B[b], slot_B[b]
        prompt_tokens = length_P[prompt]
        scores = np.empty(prompt_tokens + written + 1, kind)
        for j in range(kv_heads):
            prompt_keys, prompt_values = prompt_keys_PJLD[prompt, j], prompt_values_PJLD[prompt, j]
            keys, values = keys_BJCD[slot, j], values_BJCD[slot, j]
            for i in range(half):
                one, other = key_nB[j * width + i, b], key_nB[j * width + half + i, b]
                keys[written, i] = one * cos_BD[b, i] - other * sin_BD[b, i]
                keys[written, half + i] = other * cos_BD[b, half + i] + one * sin_BD[b, half + i]
            for i in range(width):
                values[written, i] = value_nB[j * width + i, b]
            for g in range(group):
                head = (j * group + g) * width
                for i in range(half):
                    one, other = query_nB[head + i, b] * scaling, query_nB[head + half + i, b] * scaling
                    query_D[i] = one * cos_BD[b, i] - other * sin_BD[b, i]
                    query_D[half + i] = other * cos_BD[b, half + i] + one * sin_BD[b, half + i]
                largest = kind.type(-np.inf)
                for t in range(prompt_tokens):
                    score = kind.type(0)
                    for i in range(width):
                        score += query_D[i] * prompt_keys[t, i]
                    scores[t] = score
                    largest = max(largest, score)
                for t in range(written + 1):
                    score = kind.type(0)
                    for i in range(width):
                        score += query_D[i] * keys[t, i]
                    scores[prompt_tokens + t] = score
                    largest = max(largest, score)
                total = kind.type(0)
                for i in range(width):
                    sum_D[i] = 0
                for t in range(prompt_tokens):
                    weight = np.exp(scores[t] - largest)
                    total += weight
                    for i in range(width):
                        sum_D[i] += weight * prompt_values[t, i]
                for t in range(written + 1):
                    weight = np.exp(scores[prompt_tokens + t] - largest)
                    total += weight
                    for i in range(width):
                        sum_D[i] += weight * values[t, i]
                for i in range(width):
                    out_nB[head + i, b] = sum_D[i] / total
