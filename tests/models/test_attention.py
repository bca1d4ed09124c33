"""Attention in parts and along random trees: outputs and gradients of plain masked attention."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from limbeck.models import attention, prefix_tree
from limbeck.models.attention import attend_part, merged, part_backward
from limbeck.models.prefix_tree import attend_along, build

Families = Sequence[tuple[int, Sequence[int]]]
SCALING = 0.3


def masked(families: Families, query_NHD: Tensor, key_NJD: Tensor, value_NJD: Tensor) -> Tensor:
    """[N, H, D] by a mask of all tokens, written without looking at `prefix_tree`."""
    sees_NN = torch.zeros(len(query_NHD), len(query_NHD), dtype=torch.bool)
    start = 0
    for prefix, suffixes in families:
        end = start + prefix
        sees_NN[start:end, start:end] = True
        place = end
        for length in suffixes:
            sees_NN[place : place + length, start:end] = True
            sees_NN[place : place + length, place : place + length] = True
            place += length
        start = place
    group = query_NHD.shape[1] // key_NJD.shape[1]
    key_NHD, value_NHD = (x.repeat_interleave(group, 1) for x in (key_NJD, value_NJD))
    scores_HNN = SCALING * torch.einsum("nhd,mhd->hnm", query_NHD, key_NHD)
    weights_HNN = scores_HNN.masked_fill(~sees_NN.tril(), -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights_HNN, value_NHD)


def inputs(tokens: int, heads: int, groups: int, width: int, value_width: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values, and what their output is multiplied with."""
    generator = torch.Generator().manual_seed(tokens)
    shapes = [(heads, width), (groups, width), (groups, value_width), (heads, value_width)]
    return [torch.randn(tokens, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def with_gradients(attend: object, *given: Tensor) -> list[Tensor]:
    """Output and gradients of queries, keys and values."""
    *of, weight = given
    of = [x.detach().requires_grad_() for x in of]
    out = attend(*of)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, of, weight)]


LENGTHS = st.sampled_from([1, 2, 5, 17, 40, 70])
FAMILIES = st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, max_size=4)), min_size=1, max_size=3)


@settings(max_examples=15, deadline=None)
@given(FAMILIES, st.sampled_from([(4, 4), (6, 2), (3, 1)]), st.sampled_from([(8, 8), (7, 7), (8, 5), (4, 12)]))
@pytest.mark.parametrize("few", [0, 64, 10**6], ids=["torch's kernel", "as it is", "plain operations"])
def test_along_a_tree_it_is_plain_masked_attention(
    few: int, families: Families, heads: tuple[int, int], widths: tuple[int, int]
) -> None:
    """float64, 1e-12: grouped heads, ragged families, prefixes without suffixes, widths of any kind."""
    tokens = sum(prefix + sum(suffixes) for prefix, suffixes in families)
    given_ = inputs(tokens, *heads, *widths, torch.float64)
    expected = with_gradients(lambda *x: masked(families, *x), *given_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "FEW_KEYS", few)
        patch.setattr(prefix_tree, "FEW_KEYS", min(few, 64))
        patch.setattr(attention, "SCORES_BYTES", {"cpu": 2**24 if few == 64 else 20_000})
        tree = build(families)
        found = with_gradients(lambda *x: attend_along(tree, *x, SCALING), *given_)
    for name, ours, theirs in zip(("out", "query", "key", "value"), found, expected, strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("few", [0, 10**6])
def test_narrow_dtypes_keep_theirs_and_round_no_more(
    few: int, dtype: torch.dtype, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "FEW_KEYS", few)
    monkeypatch.setattr(attention, "is_exact_on_cpu", lambda x: few > 0)
    families = [(90, [40, 3, 80]), (70, [1]), (5, [])]
    given_ = inputs(289, 4, 2, 8, 8, dtype)
    tree = build(families)
    found = with_gradients(lambda *x: attend_along(tree, *x, SCALING), *given_)
    expected = with_gradients(lambda *x: masked(families, *x), *(x.double() for x in given_))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        assert_close(ours.double(), theirs, atol=error, rtol=0)


def test_parts_of_long_rows_far_apart_in_size_merge() -> None:
    """One part holds nearly all of the weight, in either order."""
    query, key, value = (torch.randn(1, 2, 100, 8, dtype=torch.float64) for _ in range(3))
    key[:, :, :50] *= 60
    parts = [attend_part(query, key[:, :, c], value[:, :, c], 1.0, False) for c in (slice(0, 50), slice(50, 100))]
    expected = torch.softmax(query @ key.transpose(2, 3), dim=-1) @ value
    for one, other in (parts, parts[::-1]):
        out, lse = merged((one[0].clone(), one[1]), other)
        assert_close(out, expected, atol=1e-12, rtol=1e-12)
        assert_close(lse, torch.logsumexp(query @ key.transpose(2, 3), dim=-1), atol=1e-12, rtol=1e-12)


def test_a_query_that_is_padding_sends_no_gradient() -> None:
    for keys in (10, 90):
        query, key, value, grad = (torch.randn(1, 1, keys, 8, dtype=torch.float64) for _ in range(4))
        lse = torch.full((1, 1, keys), attention.NEVER, dtype=torch.float64)
        for found in part_backward(grad, query, key, value, value, lse, 1.0, causal=True):
            assert found.abs().max() == 0
