"""Softmax attention to a part of the keys, so that parts can be merged: memory is linear in queries and keys.

    out, lse = attend_part(query, key, value, scaling, causal=False)           # one part of the keys
    out, lse = merged((out, lse), attend_part(query, own_key, own_value, scaling, causal=True))
    of_query, of_key, of_value = part_backward(grad, query, key, value, out, lse, scaling, causal=False)

`lse` is the log of the sum of the exponentials of a query's scores. With those of two disjoint parts the attention to
both follows, `out = out_1 exp(lse_1 - lse) + out_2 exp(lse_2 - lse)`, and a part's gradients are those of flash
attention's backward pass (Dao et al. 2022, section 3.1) when it is given the merged `out` and `lse`: it makes each
weight again as exp(score - lse), and that is the weight among all keys.

On a CPU torch's flash attention does it. For few keys, and on other devices, a few plain operations do, so many
queries at a time that their scores stay within `SCORES_BYTES`.

Shape legend: B rows, H query heads, J key-value heads, G = H / J, Q queries and K keys of a row, q queries of one
block, D head width, M = G q.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from limbeck.models.head import at_least_float32

FEW_KEYS = 64  # up to which plain operations are faster than the CPU's fused attention
SCORES_BYTES = {"cpu": 16 * 2**20}  # of one block's scores
SCORES_ELSEWHERE = 256 * 2**20
NEVER = 1e30  # the log-sum-exp of a query that is padding: its weights are 0

Part: TypeAlias = tuple[Tensor, Tensor]  # [B, H, Q, D] attended, [B, H, Q] log-sum-exp in float32 or wider


def attend_part(
    query_BHQD: Tensor,
    key_BJKD: Tensor,
    value_BJKD: Tensor,
    scaling: float,
    causal: bool,
    bias_B11K: Tensor | None = None,
) -> Part:
    """Attention to these keys alone. `causal`: query i to keys 0 to i. `bias_B11K` is -inf where a key is padding."""
    if _is_plain(query_BHQD, key_BJKD):
        return _plain(query_BHQD, key_BJKD, value_BJKD, scaling, causal, bias_B11K)
    width, (query_BHQD, key_BJKD, value_BJKD) = value_BJKD.shape[-1], one_width(query_BHQD, key_BJKD, value_BJKD)
    out_BHQD, lse_BHQ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BHQD, key_BJKD, value_BJKD, 0.0, causal, attn_mask=_typed(bias_B11K, query_BHQD), scale=scaling
    )
    return out_BHQD[..., :width], lse_BHQ


def merged(one: Part, other: Part) -> Part:
    """Attention to the keys of both parts. Overwrites what was attended of the first."""
    (out_BHQD, lse_BHQ), (other_BHQD, other_BHQ) = one, other
    both_BHQ = torch.logaddexp(lse_BHQ, other_BHQ)
    wide_BHQD = at_least_float32(out_BHQD).mul_((lse_BHQ - both_BHQ).exp_()[..., None])
    wide_BHQD.addcmul_(at_least_float32(other_BHQD), (other_BHQ - both_BHQ).exp_()[..., None])
    return wide_BHQD.to(out_BHQD.dtype), both_BHQ


def part_backward(
    grad_BHQD: Tensor,
    query_BHQD: Tensor,
    key_BJKD: Tensor,
    value_BJKD: Tensor,
    out_BHQD: Tensor,
    lse_BHQ: Tensor,
    scaling: float,
    causal: bool,
    bias_B11K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values by way of these keys. `out` and `lse` are those of all parts merged."""
    if _is_plain(query_BHQD, key_BJKD):
        return _plain_backward(
            grad_BHQD, query_BHQD, key_BJKD, value_BJKD, out_BHQD, lse_BHQ, scaling, causal, bias_B11K
        )
    widths = (query_BHQD.shape[-1], key_BJKD.shape[-1], value_BJKD.shape[-1])
    query_BHQD, key_BJKD, value_BJKD, grad_BHQD, out_BHQD = one_width(
        query_BHQD, key_BJKD, value_BJKD, grad_BHQD, out_BHQD
    )
    found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_BHQD, query_BHQD, key_BJKD, value_BJKD, out_BHQD, lse_BHQ, 0.0, causal,
        attn_mask=_typed(bias_B11K, query_BHQD), scale=scaling,
    )  # fmt: skip
    of_query, of_key, of_value = (grad[..., :width] for grad, width in zip(found, widths, strict=True))
    return of_query, of_key, of_value


def is_exact_on_cpu(tensor: Tensor) -> bool:
    """Where few keys are for plain operations. In narrower dtypes the fused kernel rounds less."""
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _is_plain(query_BHQD: Tensor, key_BJKD: Tensor) -> bool:
    """On other devices always: their fused kernels differ from card to card, and none takes float64."""
    few = is_exact_on_cpu(query_BHQD) and key_BJKD.shape[2] <= FEW_KEYS
    return few or query_BHQD.device.type != "cpu"


def one_width(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The kernel takes one width for queries, keys and values; zeros change neither scores nor what is attended."""
    width = max(tensor.shape[-1] for tensor in tensors)
    return tuple(x if x.shape[-1] == width else pad(x, (0, width - x.shape[-1])) for x in tensors)


def _typed(bias_B11K: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias_B11K is None else bias_B11K.to(like.dtype)


def _plain(
    query_BHQD: Tensor, key_BJKD: Tensor, value_BJKD: Tensor, scaling: float, causal: bool, bias_B11K: Tensor | None
) -> Part:
    keys = key_BJKD.shape[2]
    outs, lses = [], []
    for c in _blocks(query_BHQD, keys):
        seen = c.stop if causal else keys
        scores_BJMK = _scores(query_BHQD[:, :, c], key_BJKD[:, :, :seen], scaling, c if causal else None, bias_B11K)
        lse_BJM1 = torch.logsumexp(scores_BJMK, dim=-1, keepdim=True)
        weights_BJMK = scores_BJMK.sub_(lse_BJM1).exp_()
        outs.append(_ungrouped(weights_BJMK @ at_least_float32(value_BJKD[:, :, :seen]), c).to(value_BJKD.dtype))
        lses.append(_ungrouped(lse_BJM1, c)[..., 0])
    return (outs[0], lses[0]) if len(outs) == 1 else (torch.cat(outs, dim=2), torch.cat(lses, dim=2))


def _plain_backward(
    grad_BHQD: Tensor,
    query_BHQD: Tensor,
    key_BJKD: Tensor,
    value_BJKD: Tensor,
    out_BHQD: Tensor,
    lse_BHQ: Tensor,
    scaling: float,
    causal: bool,
    bias_B11K: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    groups, keys = key_BJKD.shape[1:3]
    key_BJKD, value_BJKD = at_least_float32(key_BJKD), at_least_float32(value_BJKD)
    of_key_BJKD, of_value_BJKD = torch.zeros_like(key_BJKD), torch.zeros_like(value_BJKD)
    of_queries = []
    for c in _blocks(query_BHQD, keys):
        seen = c.stop if causal else keys
        scores_BJMK = _scores(query_BHQD[:, :, c], key_BJKD[:, :, :seen], scaling, c if causal else None, bias_B11K)
        weights_BJMK = scores_BJMK.sub_(_grouped(lse_BHQ[:, :, c, None], groups)).exp_()
        grad_BJMD = _grouped(at_least_float32(grad_BHQD[:, :, c]), groups)
        along_BJM1 = (grad_BJMD * _grouped(at_least_float32(out_BHQD[:, :, c]), groups)).sum(-1, keepdim=True)
        of_value_BJKD[:, :, :seen] += weights_BJMK.transpose(2, 3) @ grad_BJMD
        of_scores_BJMK = (grad_BJMD @ value_BJKD[:, :, :seen].transpose(2, 3)).sub_(along_BJM1)
        of_scores_BJMK.mul_(weights_BJMK).mul_(scaling)
        query_BJMD = _grouped(at_least_float32(query_BHQD[:, :, c]), groups)
        of_key_BJKD[:, :, :seen] += of_scores_BJMK.transpose(2, 3) @ query_BJMD
        of_queries.append(_ungrouped(of_scores_BJMK @ key_BJKD[:, :, :seen], c))
    of_query_BHQD = of_queries[0] if len(of_queries) == 1 else torch.cat(of_queries, dim=2)
    return of_query_BHQD, of_key_BJKD, of_value_BJKD


def _blocks(query_BHQD: Tensor, keys: int) -> Iterator[slice]:
    """Queries, so many at a time that their scores are few."""
    rows, heads, queries, _ = query_BHQD.shape
    item = 8 if query_BHQD.dtype == torch.float64 else 4
    step = max(1, SCORES_BYTES.get(query_BHQD.device.type, SCORES_ELSEWHERE) // (rows * heads * keys * item))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


def _scores(
    query_BHqD: Tensor, key_BJKD: Tensor, scaling: float, causal: slice | None, bias_B11K: Tensor | None
) -> Tensor:
    """[B, J, M, K]; `causal`: which queries of the row these are."""
    groups, keys = key_BJKD.shape[1:3]
    query_BJMD = _grouped(at_least_float32(query_BHqD), groups)
    scores_BJMK = (query_BJMD * scaling) @ at_least_float32(key_BJKD).transpose(2, 3)
    if causal is not None:
        hidden_qK = scores_BJMK.new_full((causal.stop - causal.start, keys), -math.inf).triu_(causal.start + 1)
        scores_BJMK.view(*scores_BJMK.shape[:2], -1, *hidden_qK.shape).add_(hidden_qK)
    return scores_BJMK if bias_B11K is None else scores_BJMK.add_(bias_B11K)


def _grouped(x_BHqn: Tensor, groups: int) -> Tensor:
    """[B, J, M, n]: the queries that share keys stand below each other."""
    rows, _, queries, width = x_BHqn.shape
    return x_BHqn.reshape(rows, groups, -1, queries, width).flatten(2, 3)


def _ungrouped(x_BJMn: Tensor, c: slice) -> Tensor:
    """[B, H, q, n], the way back."""
    rows, groups, _, width = x_BJMn.shape
    return x_BJMn.reshape(rows, groups, -1, c.stop - c.start, width).flatten(1, 2)
