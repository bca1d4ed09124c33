"""Responses under way: the prompts computed once, then a token a row at a time, through transformers.

Shape legend: P prompts, B rows (responses being decoded), L prompt length, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from limbeck.engines.kv_cache import RowCache, keep_rows
from limbeck.errors import EngineError
from limbeck.models import CausalLM


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
    """Prompts computed once each, filled up to the left so that all end together."""

    hidden_Pd: Tensor  # after the last token
    cache: RowCache
    attend_PL: Tensor | None  # bool; None where nothing is padded
    length_P: Tensor


def prefill(lm: CausalLM, prompts: Sequence[Sequence[int]], reserve: int) -> Prefilled:
    """Compute `prompts`, with room for `reserve` tokens more. Raises `EngineError` without a cache."""
    lengths = [len(prompt) for prompt in prompts]
    width = max(lengths)
    tokens_PL = torch.zeros(len(lengths), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens_PL[row, width - lengths[row] :] = torch.tensor(prompt)
    length_P = torch.tensor(lengths, device=lm.device)
    positions_PL = torch.arange(width, device=lm.device)[None] - (width - length_P)[:, None]
    attend_PL = (positions_PL >= 0) if min(lengths) < width else None
    cache = RowCache(lm.model.config.get_text_config().num_hidden_layers, reserve)
    hidden_PLd = lm.hidden(
        tokens_PL.to(lm.device),
        positions_PL.clamp(min=0),
        attention_mask=attend_PL,
        past_key_values=cache,
        use_cache=True,
    )
    if cache.get_seq_length() != width:
        raise EngineError(
            f"{lm.name}: {type(lm.model).__name__} kept {cache.get_seq_length()} of {width} tokens "
            "in its key-value cache, so each token would be sampled without what precedes it. Supported: "
            "attention-only causal language models that use transformers' cache."
        )
    return Prefilled(hidden_PLd[:, -1], cache, attend_PL, length_P)


class PlainRows:
    """Rows of any model, through transformers' own forward pass. Row b answers prompt `prompt_B[b]`."""

    def __init__(self, lm: CausalLM, start: Prefilled, prompt_B: Tensor, reserve: int = 0) -> None:
        self.lm, self.cache, self.attend_BL, self.length_B = lm, start.cache, start.attend_PL, start.length_P
        self.keep(prompt_B)

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

    def keep(self, rows: Tensor) -> None:
        keep_rows(self.cache, rows)
        self.length_B = self.length_B[rows]
        if self.attend_BL is not None:
            self.attend_BL = self.attend_BL[rows]
