"""The key-value cache: written in place, and rows that leave or are repeated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from limbeck.models.kv_cache import RowCache, RowLayer, keep_rows
from tests import tiny


def states(seed: int, rows: int, tokens: int) -> Tensor:
    """[B, H, tokens, D] of two heads of three."""
    return torch.randn(rows, 2, tokens, 3, generator=torch.Generator().manual_seed(seed))


def test_what_was_written_is_handed_back_end_to_end() -> None:
    layer = RowLayer(reserve=3)
    keys, values = [states(1, 4, 5)], [states(2, 4, 5)]
    for step, tokens in enumerate((5, 1, 1, 1)):
        if step:
            keys.append(states(10 + step, 4, tokens))
            values.append(states(20 + step, 4, tokens))
        got_keys, got_values = layer.update(keys[-1], values[-1])
        assert_close(got_keys, torch.cat(keys, dim=2), atol=0, rtol=0)
        assert_close(got_values, torch.cat(values, dim=2), atol=0, rtol=0)
        assert layer.get_seq_length() == 5 + step
        assert layer.get_mask_sizes(1) == (5 + step + 1, 0)


def test_memory_is_taken_once() -> None:
    layer = RowLayer(reserve=8)
    first, _ = layer.update(states(1, 2, 4), states(2, 2, 4))
    for step in range(8):
        keys, values = layer.update(states(step, 2, 1), states(step, 2, 1))
        assert keys.data_ptr() == first.data_ptr()
        assert values.data_ptr() != keys.data_ptr()


def test_more_tokens_than_reserved_are_a_bug() -> None:
    layer = RowLayer(reserve=1)
    layer.update(states(1, 2, 4), states(2, 2, 4))
    layer.update(states(1, 2, 1), states(2, 2, 1))
    with pytest.raises(AssertionError, match="full"):
        layer.update(states(1, 2, 1), states(2, 2, 1))


def test_rows_leave_move_and_repeat() -> None:
    layer = RowLayer(reserve=4)
    keys, values = states(1, 4, 5), states(2, 4, 5)
    layer.update(keys, values)
    for rows in ([3, 0, 2], [0, 0, 1, 1, 2], [4, 1]):
        index = torch.tensor(rows)
        layer.keep(index)
        keys, values = keys[index], values[index]
        more_keys, more_values = states(sum(rows), len(rows), 1), states(9 + sum(rows), len(rows), 1)
        keys, values = torch.cat([keys, more_keys], dim=2), torch.cat([values, more_values], dim=2)
        got_keys, got_values = layer.update(more_keys, more_values)
        assert_close(got_keys, keys, atol=0, rtol=0)
        assert_close(got_values, values, atol=0, rtol=0)


def test_repeated_rows_go_their_own_ways() -> None:
    layer = RowLayer(reserve=2)
    layer.update(states(1, 1, 3), states(2, 1, 3))
    layer.keep(torch.tensor([0, 0]))
    keys, _ = layer.update(states(3, 2, 1), states(4, 2, 1))
    assert_close(keys[:, :, 3:], states(3, 2, 1))
    assert not torch.equal(keys[0], keys[1])


def test_layers_that_were_never_written_have_no_rows_to_keep() -> None:
    """Some models' later layers use the keys and values of an earlier one."""
    cache = RowCache(2)
    cache.update(states(1, 3, 4), states(2, 3, 4), 0)
    keep_rows(cache, torch.tensor([1]), reserve=2)
    keys, _ = cache.update(states(5, 1, 1), states(6, 1, 1), 0)
    assert_close(keys, torch.cat([states(1, 3, 4)[1:2], states(5, 1, 1)], dim=2))
    assert not cache.layers[1].is_initialized
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_model_says_the_same_with_it_as_without(family: str) -> None:
    lm = tiny.lm_of(family)
    tokens_BL = torch.tensor([prompt.token_ids for prompt in tiny.prompts(14, 14, 14)])
    cache = RowCache(lm.model.config.num_hidden_layers)
    with torch.no_grad():
        plain = lm.hidden(tokens_BL)
        parts = [lm.hidden(tokens_BL[:, :9], past_key_values=cache, use_cache=True)]
        keep_rows(cache, torch.arange(3), reserve=5)
        for t in range(9, 14):
            position = torch.full((3, 1), t)
            parts.append(lm.hidden(tokens_BL[:, t : t + 1], position, past_key_values=cache, use_cache=True))
    assert_close(torch.cat(parts, dim=1), plain, atol=1e-4, rtol=1e-4)
