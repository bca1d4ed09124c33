"""Responses under way: the prompts computed once, then a token a row at a time, through transformers.

Shape legend: P prompts, B rows (responses being decoded), L prompt length, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.errors import EngineError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.kv_cache import RowCache, keep_rows
from limbeck.models.llama import LlamaParts, states


class Rows(Protocol):
    """The model's memory of B responses."""

    def forward(self, token_B: Tensor) -> Tensor:
        """[B, d] the states after one more token of each."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, in their order."""
        ...


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Prompts computed once each, filled up to one length."""

    hidden_Pd: Tensor  # after the last token
    cache: RowCache
    attend_PL: Tensor | None  # bool; None where nothing is padded
    length_P: Tensor


def prefill(lm: CausalLM, prompts: Sequence[Sequence[int]], parts: LlamaParts | None = None) -> Prefilled:
    """Compute `prompts`: by the short passes, filled up to the right, where `parts` are proven; else by transformers.

    There fillers stand to the left: sliding windows are counted in places, not in positions. Raises `EngineError`
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
    cache = RowCache(lm.model.config.get_text_config().num_hidden_layers)
    if parts is not None:
        kept: list[tuple[Tensor, Tensor]] = []
        last_P = torch.arange(len(lengths), device=lm.device) * width + length_P - 1
        hidden_Pd = states(parts, tokens_PL, places_PL, last_P, kept=kept)
        for layer, (keys, values) in zip(cache.layers, kept, strict=True):
            layer.update(keys[:, :, :width], values[:, :, :width])
        attend_PL = places_PL < length_P[:, None]
    else:
        positions_PL = places_PL - (width - length_P)[:, None]
        attend_PL = positions_PL >= 0
        hidden_Pd = lm.hidden(
            tokens_PL,
            positions_PL.clamp(min=0),
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
    return Prefilled(hidden_Pd, cache, attend_PL if min(lengths) < width else None, length_P)


class PlainRows:
    """Rows of any model, through transformers' own forward pass. Row b answers prompt `prompt_B[b]`."""

    def __init__(self, lm: CausalLM, start: Prefilled, prompt_B: Tensor, reserve: int) -> None:
        self.lm, self.cache, self.attend_BL, self.length_B = lm, start.cache, start.attend_PL, start.length_P
        self.keep(prompt_B, reserve)

    def forward(self, token_B: Tensor) -> Tensor:
        if self.attend_BL is not None:
            self.attend_BL = torch.cat([self.attend_BL, self.attend_BL.new_ones(len(token_B), 1)], dim=1)
        hidden_B1d = self.lm.hidden(
            token_B[:, None],
            self.length_B[:, None],
            attention_mask=self.attend_BL,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.length_B = self.length_B + 1
        return hidden_B1d[:, 0]

    def keep(self, rows: Tensor, reserve: int = 0) -> None:
        keep_rows(self.cache, rows, reserve)
        self.length_B = self.length_B[rows]
        if self.attend_BL is not None:
            self.attend_BL = self.attend_BL[rows]
