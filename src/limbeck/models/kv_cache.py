"""A key-value cache that is written in place and from which finished rows can leave.

transformers' own dynamic cache concatenates every layer at every token; this one is allocated once
for the longest response and handed out as views.

Shape legend: B rows, H key-value heads, C capacity in tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RowCache(Cache):  # type: ignore[misc]
    """One `RowLayer` a layer, with room for what is written first; `keep_rows` makes more."""

    def __init__(self, layers: int) -> None:
        super().__init__(layers=[RowLayer() for _ in range(layers)])


class RowLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, [B, H, C, D], of which the first `length` tokens are written."""

    is_sliding = False  # sliding windows come from the attention mask; nothing is evicted

    def __init__(self, reserve: int = 0) -> None:
        super().__init__()
        self.reserve, self.length = reserve, 0  # `reserve` tokens of room beside those that are written first

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        capacity = key_states.shape[2] + self.reserve
        self.keys, self.values = (
            states.new_empty(*states.shape[:2], capacity, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        assert self.length <= self.keys.shape[2], "the cache is full: more tokens were decoded than reserved"
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def keep(self, rows: Tensor, reserve: int = 0) -> None:
        """Rows of the batch to keep, in this order, with more room; a row may be named more than once."""
        if self.is_initialized:  # some layers share another's keys and values
            self.keys, self.values = (_rows(states, rows, self.length, reserve) for states in (self.keys, self.values))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


def keep_rows(cache: RowCache, rows: Tensor, reserve: int = 0) -> None:
    """Keep these rows of every layer, with room for `reserve` tokens more than there was."""
    for layer in cache.layers:
        layer.keep(rows, reserve)


def _rows(states: Tensor, rows: Tensor, length: int, reserve: int) -> Tensor:
    kept = states.new_empty(len(rows), states.shape[1], states.shape[2] + reserve, states.shape[3])
    torch.index_select(states[:, :, :length], 0, rows, out=kept[:, :, :length])
    return kept
