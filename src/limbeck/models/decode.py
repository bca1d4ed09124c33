"""One token for many rows, without transformers in between: for Llama and the models built like it.

The model's own parameters are used where they lie, so an update is seen at once and nothing is kept
twice. Two things make it fast. Activations stand as [width, rows]: `weight @ x` is up to 1.6 times as
fast as `x @ weight.T` for the few rows of decoding on a CPU. And what a prompt left in the cache is
stored once and attended to by all of its samples together.

What a model does besides is not guessed from its name: `read` looks for the parts it knows, and
proves them on a probe against the model itself.

Shape legend: P prompts, B rows, S samples of a prompt, H query heads, J key-value heads, G = H / J,
D head width, L prompt tokens, t tokens of a response so far, d model width, n any layer's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import tolerance
from limbeck.models.head import at_least_float32
from limbeck.models.kv_cache import RowLayer
from limbeck.models.llama import Block, LlamaParts, parts_of
from limbeck.models.rows import Prefilled, Rows, prefill

PROBE_PROMPTS = (5, 2)  # tokens; of different lengths, so that one is padded
PROBE_SAMPLES = (2, 3)
PROBE_STEPS = 3
FEW = 8  # rows


class WeightAndBias(Protocol):
    """What `linear` needs of a layer."""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...


def read(lm: CausalLM) -> LlamaParts | str:
    """The model's parts, proven; or why they cannot be run this way."""
    model, family = parts_of(lm), type(lm.model).__name__
    if isinstance(model, str):
        return model
    try:
        worst = distance(lm, model, LeanRows)
    except Exception as error:  # parts of those names that want something else, such as half-rotated heads
        return f"{family} is not computed like Llama: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if not worst <= tolerance(lm):
        return f"{family} is not computed like Llama: log-probs differ by {worst:.3g} nats on a probe"
    return model


def distance(lm: CausalLM, model: LlamaParts, rows_of: Callable[[LlamaParts, Prefilled, Tensor, int], Rows]) -> float:
    """Largest difference in nats between a few tokens decoded as `rows_of` does and the same sequences at once."""
    was_training, worst = lm.model.training, 0.0
    lm.model.eval()
    with torch.inference_mode():
        tokens = (torch.arange(1, 64, device=lm.device) * 7919 % lm.vocabulary).tolist()
        prompts = [tokens[:length] for length in PROBE_PROMPTS]
        for samples in ((1, 1), PROBE_SAMPLES):
            owner = [p for p, count in enumerate(samples) for _ in range(count)]
            tails = [tokens[10 + 5 * row : 10 + 5 * row + PROBE_STEPS] for row in range(len(owner))]
            prompt_B = torch.tensor(owner, device=lm.device)
            rows = rows_of(model, prefill(lm, prompts, model), prompt_B, PROBE_STEPS)
            stepped = [rows.forward(torch.tensor(column, device=lm.device)) for column in zip(*tails, strict=True)]
            for row, (p, tail) in enumerate(zip(owner, tails, strict=True)):
                whole_Ld = lm.hidden(torch.tensor([prompts[p] + tail], device=lm.device))[0, -PROBE_STEPS:]
                ours_LV, theirs_LV = (
                    lm.head().logits(hidden).log_softmax(-1)
                    for hidden in (torch.stack([step[row] for step in stepped]), whole_Ld)
                )
                worst = max(worst, (ours_LV - theirs_LV).abs().max().nan_to_num(nan=torch.inf).item())
    lm.model.train(was_training)
    return worst


class LeanRows:
    """See `rows.Rows`. Row b answers prompt `prompt_B[b]`; the rows of a prompt stand together."""

    def __init__(self, model: LlamaParts, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        self.model, self.length_B, self.prompt_B = model, start.length_P[prompt_B], prompt_B
        self.shared = len(prompt_B) > len(start.length_P)
        self.layers: list[Any] = start.cache.layers
        self.bias = None  # [P or B, 1, 1, L and more], -inf where a prompt is filled up
        if start.attend_PL is not None:
            bias_PL = torch.zeros_like(start.attend_PL, dtype=start.hidden_Pd.dtype)
            bias_PL.masked_fill_(~start.attend_PL, -torch.inf)
            if not self.shared:
                bias_PL = torch.nn.functional.pad(bias_PL, (0, reserve))
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
        model, rows = self.model, len(token_B)
        x_dB = model.embedding(token_B).t().contiguous()
        cos_1DB, sin_1DB = (
            part.transpose(1, 2).contiguous() for part in model.rotary(x_dB[None], position_ids=self.length_B[None])
        )
        for number, block in enumerate(model.blocks):
            normed_dB = _rms(x_dB, block.attention_norm)
            widths = block.widths
            heads_nB = x_dB.new_empty(sum(widths), rows)
            for part_nB, layer in zip(
                torch.split(heads_nB, widths), (block.query, block.key, block.value), strict=True
            ):
                linear(layer, normed_dB, part_nB)
            norm_heads(block, heads_nB, model.head_width)
            heads_HDB = heads_nB.view(-1, model.head_width, rows)
            counts = [width // model.head_width for width in widths]
            turned_HDB = _rotate(heads_HDB[: counts[0] + counts[1]], cos_1DB, sin_1DB)
            # Contiguous: scaled_dot_product_attention leaves its fast kernel for a query of strange strides.
            query_BHD = turned_HDB[: counts[0]].permute(2, 0, 1).contiguous()
            query_BJGD = query_BHD.view(rows, counts[1], -1, model.head_width)
            key_BJ1D, value_BJ1D = (
                part.permute(2, 0, 1)[:, :, None] for part in (turned_HDB[counts[0] :], heads_HDB[-counts[2] :])
            )
            keys, values = self.layers[number].update(key_BJ1D, value_BJ1D)
            attended = self._attend(number, query_BJGD, keys, values, block.scaling)
            add_linear(x_dB, block.output, attended.reshape(rows, -1).t())
            normed_dB = _rms(x_dB, block.mlp_norm)
            gate_nB, up_nB = (linear(layer, normed_dB) for layer in (block.gate, block.up))
            add_linear(x_dB, block.down, block.activation(gate_nB).mul_(up_nB))
        self.length_B = self.length_B + 1
        return _rms(x_dB, model.norm).t()

    def keep(self, rows: Tensor) -> None:
        self.length_B, self.prompt_B = self.length_B[rows], self.prompt_B[rows]
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
        """Where each row stands among [prompts, samples], as many samples as the most any prompt has."""
        count_P = torch.bincount(self.prompt_B)
        self.samples = int(count_P.max())
        first_P = count_P.cumsum(0) - count_P
        order_B = torch.arange(len(self.prompt_B), device=self.prompt_B.device)
        self.place_B = self.prompt_B * self.samples + order_B - first_P[self.prompt_B]
        self.dense = self.samples * len(count_P) == len(self.prompt_B)

    def _attend(self, number: int, query_BJGD: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """[B, J, G, D] of one token of each row over the prompt and what its row has so far."""
        if not self.shared:
            bias = None if self.bias is None else self.bias[..., : keys.shape[2]]
            return torch.nn.functional.scaled_dot_product_attention(
                query_BJGD, keys, values, attn_mask=bias, scale=scaling
            )
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


def linear(layer: WeightAndBias, x_dB: Tensor, out_nB: Tensor | None = None) -> Tensor:
    """`weight @ x + bias`, into `out_nB` where it is given."""
    product_nB = torch.mm(layer.weight, _for_product(x_dB), out=out_nB)
    return product_nB if layer.bias is None else product_nB.add_(layer.bias[:, None])


def add_linear(x_dB: Tensor, layer: nn.Linear, y_nB: Tensor) -> None:
    """`x += weight @ y + bias`"""
    x_dB.addmm_(layer.weight, _for_product(y_nB))
    if layer.bias is not None:
        x_dB.add_(layer.bias[:, None])


def _for_product(x_dB: Tensor) -> Tensor:
    """The same numbers as the CPU's matmul likes them: a few columns each in one piece, up to 5 times as fast."""
    return x_dB.t().contiguous().t() if x_dB.shape[1] <= FEW and x_dB.device.type == "cpu" else x_dB


def norm_heads(block: Block, heads_nB: Tensor, head_width: int) -> None:
    """Queries and keys normed head by head, in their place, where the model does so."""
    if block.query_norm is None or block.key_norm is None:
        return
    widths = [width // head_width for width in block.widths]
    query_HDB, key_JDB, _ = torch.split(heads_nB.view(-1, head_width, heads_nB.shape[1]), widths)
    query_HDB.copy_(_rms(query_HDB, block.query_norm, dim=1))
    key_JDB.copy_(_rms(key_JDB, block.key_norm, dim=1))


def _rms(x: Tensor, norm: Any, dim: int = 0) -> Tensor:
    """Root mean square norm over `dim` of [d, B] or [heads, D, B]."""
    wide = at_least_float32(x)
    scale = torch.rsqrt(wide.square().mean(dim, keepdim=True).add_(norm.variance_epsilon))
    return (wide * scale).to(x.dtype).mul_(norm.weight[:, None])


def _rotate(x_HDB: Tensor, cos_1DB: Tensor, sin_1DB: Tensor) -> Tensor:
    """Rotary positions, halves against each other."""
    one, other = x_HDB.chunk(2, dim=1)
    return (x_HDB * cos_1DB).add_(torch.cat([-other, one], dim=1).mul_(sin_1DB))
