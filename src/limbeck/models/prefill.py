"""Prompts computed once each, their keys and values kept for decoding.

Shape legend: P prompts padded to L tokens, B prompts of one length, J key-value heads, d model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import EngineError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.kv_cache import RowCache
from limbeck.models.llama import LlamaParts, hidden_states_at

MASK_PLACES = 2**24  # of transformers' mask of [P, L, L]; prompts that would need more are computed length by length


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Prompts computed once each, padded to one length."""

    hidden_Pd: Tensor  # after the last token
    cache: RowCache
    attend_PL: Tensor | None  # bool; None where nothing is padded
    length_P: Tensor  # tokens
    position_P: Tensor  # of the token that comes next


def prefill(
    lm: CausalLM,
    prompts: Sequence[Sequence[int]],
    parts: LlamaParts | None = None,
    first: Sequence[int] | None = None,
    narrow: torch.dtype | None = None,
    mask_places: int = MASK_PLACES,
) -> Prefilled:
    """Compute `prompts`: by the fused forward, padded to the right, where `parts` are given; else by transformers.

    There the padding is to the left: sliding windows are counted in places, not in positions. Raises `EngineError`
    for a model that keeps no cache.
    """
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    tokens_PL = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        start = 0 if parts is not None else width - lengths[row]
        tokens_PL[row, start : start + lengths[row]] = torch.tensor(prompt)
    tokens_PL, length_P = tokens_PL.to(lm.device), torch.tensor(lengths, device=lm.device)
    places_PL = torch.arange(width, device=lm.device).expand(len(lengths), -1)
    first_P = None if first is None else torch.tensor(first, device=lm.device)
    cache = RowCache(lm.model.config.get_text_config().num_hidden_layers)
    if parts is not None:
        kept: list[tuple[Tensor, Tensor]] = []
        last_P = torch.arange(len(lengths), device=lm.device) * width + length_P - 1
        positions_PL = places_PL[:1] if first_P is None else places_PL + first_P[:, None]
        hidden_Pd = hidden_states_at(parts, tokens_PL, positions_PL, last_P, kept=kept, narrow=narrow)
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            layer.update(keys, values)
        attend_PL = places_PL < length_P[:, None]
    else:
        positions_PL = places_PL - (width - length_P)[:, None]
        attend_PL = positions_PL >= 0
        shifted_PL = positions_PL.clamp(min=0) + (0 if first_P is None else first_P[:, None])
        if min(lengths) < width and len(lengths) * width * width > mask_places:
            hidden_Pd = _one_length_at_a_time(lm, tokens_PL, shifted_PL, length_P, cache)
        else:
            hidden_Pd = lm.hidden(
                tokens_PL,
                shifted_PL,
                attention_mask=attend_PL if min(lengths) < width else None,
                past_key_values=cache,
                use_cache=True,
            )[:, -1]
    if cache.get_seq_length() != width:
        raise EngineError(
            f"{lm.name}: {type(lm.model).__name__} kept {cache.get_seq_length()} of {width} tokens "
            "in its key-value cache, so each token would be sampled without what precedes it. Supported: "
            "attention-only causal language models that use transformers' cache."
        )
    position_P = length_P if first_P is None else length_P + first_P
    return Prefilled(hidden_Pd, cache, attend_PL if min(lengths) < width else None, length_P, position_P)


def _one_length_at_a_time(
    lm: CausalLM, tokens_PL: Tensor, positions_PL: Tensor, length_P: Tensor, cache: RowCache
) -> Tensor:
    """[P, d] the last states of prompts that are padded to the left. Without padding beside them no mask is made."""
    width, states, order = tokens_PL.shape[1], [], []
    for length in torch.unique(length_P).tolist():
        rows = torch.nonzero(length_P == length)[:, 0]
        own = RowCache(len(cache.layers))
        tokens_BL, positions_BL = tokens_PL[rows, width - length :], positions_PL[rows, width - length :]
        states.append(lm.hidden(tokens_BL, positions_BL, past_key_values=own, use_cache=True)[:, -1])
        order.append(rows)
        for layer, part in zip(cache.layers, own.layers, strict=True):
            if not part.is_initialized:  # it shares another's keys and values
                continue
            if not layer.is_initialized:
                layer.update(
                    *(x.new_zeros(len(tokens_PL), x.shape[1], width, x.shape[3]) for x in (part.keys, part.values))
                )
            layer.keys[rows, :, width - length :] = part.keys
            layer.values[rows, :, width - length :] = part.values
    return torch.cat(states)[torch.cat(order).argsort()]
