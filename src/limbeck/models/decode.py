"""Responses under way: the prompts computed once, then one token of every row at a time.

    decoder = fast_decode(lm)                          # `equivalence`: the fastest way that is proven, and why
    hidden_Bd, rows = decoder.start(prompts, prompt_B, reserve)
    hidden_Bd = rows.forward(token_B)                  # again and again; rows.keep(which) as responses end

`TransformersRows` decodes any model. `FastRows` decodes what is built like Llama, through `llama.run_block`. Two
things make it fast. Activations stand as [width, rows]: with dozens of rows `weight @ x` is up to 1.3 times as fast
as `x @ weight.T` on two threads of a CPU. And what a prompt left in the cache is stored once and
attended to by all of its samples together. `decode_numba` is a third way.

Shape legend: P prompts, B rows, S samples of a prompt, H query heads, J key-value heads, G = H / J,
D head width, L prompt tokens, t tokens of a response so far, d model width, n any layer's width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import at_least_float32
from limbeck.models.kv_cache import RowLayer, keep_rows
from limbeck.models.llama import Block, LlamaParts, Matrix, cast, rotation_of, run_block
from limbeck.models.prefill import Prefilled, prefill

FEW = 8  # rows


class Rows(Protocol):
    """The model's memory of B responses."""

    def forward(self, token_B: Tensor) -> Tensor:
        """[B, d] the states after one more token of each."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in their order."""
        ...


FastRowsOf: TypeAlias = Callable[[LlamaParts, Prefilled, Tensor, int], Rows]


@dataclass(frozen=True, eq=False)
class Decoder:
    """How `lm` is decoded: fast with `parts`, whose rows are `rows_of`, or by transformers, and then `why`.

    The fast way computes in `narrow`, where it is given, by itself: it needs no autocast.
    """

    lm: CausalLM
    parts: LlamaParts | None = None
    rows_of: FastRowsOf | None = None
    why: str | None = None
    narrow: torch.dtype | None = None

    def start(self, prompts: Sequence[Sequence[int]], prompt_B: Tensor, reserve: int) -> tuple[Tensor, Rows]:
        """[B, d] states after the prompt of each row, and the rows, with room for `reserve` tokens of each.

        Row b answers prompt `prompt_B[b]`; the rows of a prompt stand together. Raises `EngineError` for a model
        that keeps no cache.
        """
        start = self.prefill(prompts)
        return start.hidden_Pd[prompt_B], self.rows(start, prompt_B, reserve)

    def prefill(self, prompts: Sequence[Sequence[int]], first: Sequence[int] | None = None) -> Prefilled:
        """Compute `prompts`, each from position 0, or from its own in `first`."""
        return prefill(self.lm, prompts, self.parts, first, self.narrow)

    def rows(self, start: Prefilled, prompt_B: Tensor, reserve: int) -> Rows:
        if self.parts is None or self.rows_of is None:
            return TransformersRows(self.lm, start, prompt_B, reserve)
        blocks = tuple(cast(block, self.narrow) for block in self.parts.blocks)  # once for all of their tokens
        return self.rows_of(replace(self.parts, blocks=blocks), start, prompt_B, reserve)


class TransformersRows:
    """Rows of any model, through transformers' own forward pass. Row b answers prompt `prompt_B[b]`."""

    def __init__(self, lm: CausalLM, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        self.lm, self.cache, self.attend_BL, self.position_B = lm, start.cache, start.attend_PL, start.position_P
        self.keep(prompt_B, reserve)

    def forward(self, token_B: Tensor) -> Tensor:
        if self.attend_BL is not None:
            self.attend_BL = torch.cat([self.attend_BL, self.attend_BL.new_ones(len(token_B), 1)], dim=1)
        hidden_B1d = self.lm.hidden(
            token_B[:, None],
            self.position_B[:, None],
            attention_mask=self.attend_BL,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position_B = self.position_B + 1
        return hidden_B1d[:, 0]

    def keep(self, rows: Tensor, reserve: int = 0) -> None:
        keep_rows(self.cache, rows, reserve)
        self.position_B = self.position_B[rows]
        if self.attend_BL is not None:
            self.attend_BL = self.attend_BL[rows]


class Columns:
    """`llama.Operations` on [d, B], one token of each row; adds in place, for no gradient flows."""

    def norm(self, x_dB: Tensor, norm: Any) -> Tensor:
        return _rms(x_dB, norm)

    def normed_linears(self, x_dB: Tensor, norm: Any, *linears: Matrix) -> tuple[Tensor, ...]:
        normed_dB = self.norm(x_dB, norm).to(linears[0].weight.dtype)
        if _few(normed_dB):
            normed_Bd = normed_dB.t().contiguous()
            return tuple(nn.functional.linear(normed_Bd, n.weight, n.bias).t().contiguous() for n in linears)
        products = [torch.mm(linear.weight, normed_dB) for linear in linears]
        return tuple(
            product_nB if linear.bias is None else product_nB.add_(linear.bias[:, None])
            for product_nB, linear in zip(products, linears, strict=True)
        )

    def add_linear(self, x_dB: Tensor, y_nB: Tensor, linear: Matrix) -> Tensor:
        if _few(y_nB):
            return x_dB.add_(nn.functional.linear(y_nB.t().contiguous(), linear.weight, linear.bias).t())
        if x_dB.dtype == linear.weight.dtype:
            x_dB.addmm_(linear.weight, y_nB)
        else:
            x_dB.add_(linear.weight @ y_nB)
        return x_dB if linear.bias is None else x_dB.add_(linear.bias[:, None])

    def add_gated(self, x_dB: Tensor, gate_nB: Tensor, up_nB: Tensor, down: Matrix) -> Tensor:
        return self.add_linear(x_dB, nn.functional.silu(gate_nB, inplace=True).mul_(up_nB), down)


class FastRows:
    """See `Rows`. Row b answers prompt `prompt_B[b]`; the rows of a prompt stand together."""

    columns = Columns()

    def __init__(self, model: LlamaParts, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        self.model, self.position_B, self.prompt_B = model, start.position_P[prompt_B], prompt_B
        self.shared = len(prompt_B) > len(start.length_P)
        self.layers: list[Any] = start.cache.layers
        self.bias = None  # [P or B, 1, 1, L and more], -inf where a prompt is padded
        if start.attend_PL is not None:
            bias_PL = torch.zeros_like(start.attend_PL, dtype=self.layers[0].keys.dtype)
            bias_PL.masked_fill_(~start.attend_PL, -torch.inf)
            if not self.shared:
                bias_PL = nn.functional.pad(bias_PL, (0, reserve))
            self.bias = bias_PL[:, None, None]
        if self.shared:
            self.prompts = [
                (layer.keys[:, :, : layer.length], layer.values[:, :, : layer.length]) for layer in self.layers
            ]
            self.layers = [RowLayer(reserve) for _ in self.layers]
            self._arrange()
        else:
            self._keep_own(prompt_B, reserve)

    def forward(self, token_B: Tensor) -> Tensor:
        x_dB = self.model.embedding(token_B).t().contiguous()
        rotation = tuple(
            part.transpose(1, 2).contiguous() for part in rotation_of(self.model, x_dB, self.position_B[None])
        )
        for number, block in enumerate(self.model.blocks):
            x_dB = run_block(block, self.columns, partial(self._attention, number, rotation), x_dB)
        self.position_B = self.position_B + 1
        return _rms(x_dB, self.model.norm).t()

    def keep(self, rows: Tensor) -> None:
        self.position_B, self.prompt_B = self.position_B[rows], self.prompt_B[rows]
        if not self.shared:
            self._keep_own(rows)
            return
        for layer in self.layers:
            layer.keep(rows)
        left_P, self.prompt_B = torch.unique_consecutive(self.prompt_B, return_inverse=True)
        if len(left_P) < len(self.prompts[0][0]):
            self.prompts = [(keys[left_P], values[left_P]) for keys, values in self.prompts]
            self.bias = None if self.bias is None else self.bias[left_P]
        self._arrange()

    def _keep_own(self, rows: Tensor, reserve: int = 0) -> None:
        for layer in self.layers:
            layer.keep(rows, reserve)
        self.bias = None if self.bias is None else self.bias[rows]

    def _arrange(self) -> None:
        """The place of each row in [prompts, samples], as many samples as the most any prompt has."""
        count_P = torch.bincount(self.prompt_B)
        self.samples = int(count_P.max())
        first_P = count_P.cumsum(0) - count_P
        order_B = torch.arange(len(self.prompt_B), device=self.prompt_B.device)
        self.place_B = self.prompt_B * self.samples + order_B - first_P[self.prompt_B]
        self.dense = self.samples * len(count_P) == len(self.prompt_B)

    def _attention(
        self,
        number: int,
        rotation: tuple[Tensor, ...],
        block: Block,
        query_nB: Tensor,
        key_nB: Tensor,
        value_nB: Tensor,
    ) -> Tensor:
        """[H * D, B] of one token of each row, whose keys and values are written to the cache on the way."""
        rows, width = query_nB.shape[1], self.model.head_width
        query_HDB, key_JDB, value_JDB = (part_nB.view(-1, width, rows) for part_nB in (query_nB, key_nB, value_nB))
        query_HDB, key_JDB = norm_heads(block, query_HDB, key_JDB)
        narrow = value_nB.dtype  # norms and rotations widen
        query_HDB, key_JDB = (_rotate(part, *rotation).to(narrow) for part in (query_HDB, key_JDB))
        # Contiguous: scaled_dot_product_attention leaves its fast kernel for a query of strange strides.
        query_BJGD = query_HDB.permute(2, 0, 1).contiguous().view(rows, len(key_JDB), -1, width)
        keys, values = self.layers[number].update(
            key_JDB.permute(2, 0, 1)[:, :, None], value_JDB.permute(2, 0, 1)[:, :, None]
        )
        return self._attend(number, query_BJGD, keys, values, block.scaling).reshape(rows, -1).t()

    def _attend(self, number: int, query_BJGD: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[B, J, G, D] of one token of each row over the prompt and what its row has so far."""
        if not self.shared:
            bias = None if self.bias is None else self.bias[..., : keys.shape[2]]
            return nn.functional.scaled_dot_product_attention(query_BJGD, keys, values, attn_mask=bias, scale=scaling)
        keys_PJLD, values_PJLD = self.prompts[number]
        query_BJGD = query_BJGD * scaling
        of_prompt = self._by_prompt(query_BJGD) @ keys_PJLD.transpose(2, 3)
        if self.bias is not None:
            of_prompt = of_prompt + self.bias
        scores = torch.cat([self._by_row(of_prompt, query_BJGD.shape[2]), query_BJGD @ keys.transpose(2, 3)], dim=-1)
        weights = torch.softmax(at_least_float32(scores), dim=-1).to(values.dtype)
        to_prompt, to_own = torch.split(weights, [keys_PJLD.shape[2], keys.shape[2]], dim=-1)
        attended = self._by_row(self._by_prompt(to_prompt) @ values_PJLD, query_BJGD.shape[2])
        return attended + to_own @ values

    def _by_prompt(self, x_BJGn: Tensor) -> Tensor:
        """[P, J, S * G, n] the rows of each prompt together; zeros where it has fewer than S."""
        if not self.dense:
            padded = x_BJGn.new_zeros(len(self.prompts[0][0]) * self.samples, *x_BJGn.shape[1:])
            x_BJGn = padded.index_copy_(0, self.place_B, x_BJGn)
        return x_BJGn.reshape(-1, self.samples, *x_BJGn.shape[1:]).transpose(1, 2).flatten(2, 3)

    def _by_row(self, x_PJMn: Tensor, group: int) -> Tensor:
        """[B, J, G, n], the way back."""
        prompts, heads, _, width = x_PJMn.shape
        x_BJGn = x_PJMn.reshape(prompts, heads, -1, group, width).transpose(1, 2).flatten(0, 1)
        return x_BJGn if self.dense else x_BJGn.index_select(0, self.place_B)


def norm_heads(block: Block, query_HDB: Tensor, key_JDB: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys normed head by head where the model does so."""
    if block.query_norm is None or block.key_norm is None:
        return query_HDB, key_JDB
    return _rms(query_HDB, block.query_norm, dim=1), _rms(key_JDB, block.key_norm, dim=1)


def _few(x_dB: Tensor) -> bool:
    """Whether the CPU's matmul is slower this way round: with up to `FEW` columns twice to four times as slow."""
    return x_dB.shape[1] <= FEW and x_dB.device.type == "cpu"


def _rms(x: Tensor, norm: Any, dim: int = 0) -> Tensor:
    """Root mean square norm over `dim` of [d, B] or [heads, D, B]."""
    wide = at_least_float32(x)
    scale = torch.rsqrt(wide.square().mean(dim, keepdim=True).add_(norm.variance_epsilon))
    return (wide * scale).to(x.dtype).mul_(norm.weight[:, None])


def _rotate(x_HDB: Tensor, cos_1DB: Tensor, sin_1DB: Tensor) -> Tensor:
    """Rotary positions, halves against each other."""
    one, other = x_HDB.chunk(2, dim=1)
    return (x_HDB * cos_1DB).add_(torch.cat([-other, one], dim=1).mul_(sin_1DB))
