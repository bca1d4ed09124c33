"""The lean loop on a CPU with numba: everything between the matmuls in two compiled functions.

Nothing is copied while decoding: a prompt's keys and values stay where the prefill left them, whoever
answers it, and a row that leaves leaves its place empty.

Shape legend: P prompts, B rows, J key-value heads, D head width, C capacity of a row's own keys, d model
width, m the MLP's width, n = queries, keys and values of all heads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from limbeck.models.causal_lm import CausalLM
from limbeck.models.decode import LeanRows, add_linear, distance, linear, norm_heads
from limbeck.models.equivalence import tolerance
from limbeck.models.llama import Block, LlamaParts
from limbeck.models.rows import Prefilled

WAIT_POLICY = "OMP_WAIT_POLICY"  # OpenMP reads it when its library is loaded
MERGED_WIDTH = 512  # of the model: wider products already run at full speed one by one
DTYPES = (torch.float32, torch.float64)

logger = logging.getLogger("limbeck")


def lean_rows(lm: CausalLM, model: LlamaParts) -> type[LeanRows] | type[KernelRows]:
    """What decodes `model` fastest where it is: proven on a probe, as `lean.read` does."""
    weight, widths = model.embedding.weight, {tuple(block.widths) for block in model.blocks}
    if weight.device.type != "cpu" or weight.dtype not in DTYPES or len(widths) > 1:
        return LeanRows
    if find_spec("numba") is None:
        logger.info("%s would decode faster on this CPU with numba: pip install 'limbeck[cpu]'", lm.name)
        return LeanRows
    worst = distance(lm, model, KernelRows)
    if not worst <= tolerance(lm):
        logger.warning("%s decodes without numba, whose log-probs differ by %.3g nats on a probe", lm.name, worst)
        return LeanRows
    return KernelRows


class Merged(NamedTuple):
    """Several layers' weights one upon the other, as they are now: rows live no longer than a policy."""

    weight: Tensor
    bias: Tensor | None


def _products(block: Block) -> Sequence[nn.Linear | Merged]:
    """What gives queries, keys and values: one product where the width is so small that three cost more to start."""
    layers = (block.query, block.key, block.value)
    if block.query.in_features > MERGED_WIDTH:
        return layers
    biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) < len(layers):
        return layers
    weights: list[Tensor] = [layer.weight for layer in layers]
    return (Merged(torch.cat(weights), torch.cat(biases) if biases else None),)


def _share_threads() -> None:
    """numba with as many threads as torch, whose number its first call would change where they share an OpenMP.

    Where they do not, numba's threads must sleep between calls: those of both that spin take each other's place.
    """
    import numba

    threads, before = torch.get_num_threads(), os.environ.get(WAIT_POLICY)
    os.environ[WAIT_POLICY] = "passive"
    try:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    finally:
        os.environ.pop(WAIT_POLICY)
        if before is not None:
            os.environ[WAIT_POLICY] = before
    torch.set_num_threads(threads)


class KernelRows:
    """See `rows.Rows`. Row b answers prompt `prompt_B[b]`, which is filled up to the right if at all."""

    def __init__(self, model: LlamaParts, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        from limbeck.models import kernels  # numba is an extra, and half a second to import

        _share_threads()
        self.model, self.kernels, self.length_B = model, kernels, start.length_P[prompt_B]
        self.length_P, self.written = start.length_P.numpy(), 0
        self.prompts = [(layer.keys.numpy(), layer.values.numpy()) for layer in start.cache.layers]
        self.prompt_B, self.slot_B = prompt_B.numpy(), np.arange(len(prompt_B))
        self.own = [
            tuple(np.empty((len(prompt_B), keys.shape[1], reserve, keys.shape[3]), keys.dtype) for _ in range(2))
            for keys, _ in self.prompts
        ]
        self.kind = self.prompts[0][0].dtype.type  # scalars of another type would widen every sum
        norms: list[Any] = [norm for block in model.blocks for norm in (block.attention_norm, block.mlp_norm)]
        self.norms = [(n.weight.detach().numpy(), self.kind(n.variance_epsilon)) for n in [*norms, model.norm]]
        self.products = [_products(block) for block in model.blocks]
        self._make_room()

    def forward(self, token_B: Tensor) -> Tensor:
        x_dB = self.model.embedding(token_B).t().contiguous()
        x = x_dB.numpy()
        cos_BD, sin_BD = (part[0].numpy() for part in self.model.rotary(x_dB[None], position_ids=self.length_B[None]))
        for number, block in enumerate(self.model.blocks):
            self._norm(x, 2 * number)
            for layer, room_nB in self.rooms[number]:
                linear(layer, self.normed_dB, room_nB)
            norm_heads(block, self.heads_nB, self.model.head_width)
            self.kernels.attend(
                self.heads, cos_BD, sin_BD, self.prompt_B, self.length_P, *self.prompts[number], self.slot_B,
                *self.own[number], self.written, self.kind(block.scaling), self.attended,
            )  # fmt: skip
            add_linear(x_dB, block.output, self.attended_nB)
            self._norm(x, 2 * number + 1)
            gate_mB, up_mB = (linear(layer, self.normed_dB) for layer in (block.gate, block.up))
            add_linear(x_dB, block.down, silu(gate_mB, inplace=True).mul_(up_mB))
        self.length_B, self.written = self.length_B + 1, self.written + 1
        self._norm(x, -1)
        return self.normed_dB.t().clone()

    def keep(self, rows: Tensor) -> None:
        self.length_B = self.length_B[rows]
        self.prompt_B, self.slot_B = self.prompt_B[rows.numpy()], self.slot_B[rows.numpy()]
        self._make_room()

    def _make_room(self) -> None:
        """What the products of as many rows are written to, as torch and as numba see it."""
        model, widths = self.model, self.model.blocks[0].widths
        heights = (model.embedding.embedding_dim, sum(widths), widths[0])
        rooms = [torch.empty(height, len(self.slot_B), dtype=model.embedding.weight.dtype) for height in heights]
        self.normed_dB, self.heads_nB, self.attended_nB = rooms
        self.normed, self.heads, self.attended = (room.numpy() for room in rooms)
        self.rooms = [
            tuple(zip(layers, torch.split(self.heads_nB, [len(layer.weight) for layer in layers]), strict=True))
            for layers in self.products
        ]

    def _norm(self, x: np.ndarray, number: int) -> None:
        self.kernels.rms_norm(x, *self.norms[number], self.normed)
