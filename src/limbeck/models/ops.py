"""What a Llama-like layer does around its matrix products, in few passes over memory.

On a CPU a third of a small model's pass is not arithmetic: a norm, a rotation or an activation written as
a chain of torch operations reads and writes its tensor five times forward and ten times backward. Here
each is an autograd Function of few passes that keeps few tensors: what can be made again in one pass
(a normed input, an activated gate) is made again. Matrices may be narrower than the states (see `llama`): what goes
into a product is then narrowed, and what comes out is added to wide states.

Shape legend: N tokens, B rows of L tokens, H query heads, J key-value heads, G = H / J, D head width,
Q queries and K keys of a row, d model width, n any layer's width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from limbeck.models.attention import FEW_KEYS, is_exact_on_cpu
from limbeck.models.head import at_least_float32

STRIDE = 8  # rows of so few keys are padded to a multiple: odd strides double the time of small products


def norm(x_Nd: Tensor, layer: Any) -> Tensor:
    """Root mean square norm over the last dimension, with the weight and epsilon of transformers' `layer`."""
    normed_Nd: Tensor = _Norm.apply(x_Nd, layer.weight, layer.variance_epsilon)  # type: ignore[no-untyped-call]
    return normed_Nd


def normed_linears(x_Nd: Tensor, layer: Any, *linears: Any) -> tuple[Tensor, ...]:
    """[N, n] of each of `linears` on the norm of `x_Nd`."""
    matrices = [part for module in linears for part in (module.weight, module.bias)]
    outputs: tuple[Tensor, ...] = _NormedLinears.apply(  # type: ignore[no-untyped-call]
        x_Nd, layer.weight, layer.variance_epsilon, *matrices
    )
    return outputs


def add_linear(x_Nd: Tensor, y_Nn: Tensor, module: Any) -> Tensor:
    """`x + module(y)`"""
    if module.weight.dtype != x_Nd.dtype:
        return x_Nd + linear(y_Nn.to(module.weight.dtype), module.weight, module.bias)
    output_Nd = torch.addmm(x_Nd, y_Nn, module.weight.t())
    return output_Nd if module.bias is None else output_Nd + module.bias


def add_gated(x_Nd: Tensor, gate_Nn: Tensor, up_Nn: Tensor, down: Any) -> Tensor:
    """`x + down(silu(gate) * up)`"""
    gated_Nd: Tensor = _Gated.apply(gate_Nn, up_Nn, down.weight, x_Nd)  # type: ignore[no-untyped-call]
    return gated_Nd if down.bias is None else gated_Nd + down.bias


def heads(
    x_BLHD: Tensor, cos_BLD: Tensor | None = None, sin_BLD: Tensor | None = None, padded: int | None = None
) -> Tensor:
    """[B, H, L, D] rotated by cos and sin of each token's position ([1, L, D] where rows have the same), halves
    against each other.

    With `padded` each head is by itself in memory, zeros after L up to so many tokens; without, each token is.
    """
    rotation = (None, None) if cos_BLD is None or sin_BLD is None else (cos_BLD[:, None], sin_BLD[:, None])
    if padded is None and rotation[0] is None:
        return x_BLHD.transpose(1, 2)
    heads_BHLD: Tensor = _Heads.apply(x_BLHD, *rotation, padded)  # type: ignore[no-untyped-call]
    return heads_BHLD


def padded_length(length: int) -> int:
    """Tokens of a row, padded where many small products are multiplied: causal, no token sees the padding."""
    return length if length > FEW_KEYS else -(-length // STRIDE) * STRIDE


def attend(
    query_BHQD: Tensor,
    key_BJKD: Tensor,
    value_BJKD: Tensor,
    bias_B1QK: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """[B, H, Q, D] softmax attention under a bias, or causal where there is none."""
    group = query_BHQD.shape[1] // key_BJKD.shape[1]
    on_cpu = query_BHQD.device.type == "cpu"
    bias_B1QK = None if bias_B1QK is None else bias_B1QK.to(query_BHQD.dtype)
    if is_exact_on_cpu(query_BHQD) and key_BJKD.shape[2] <= FEW_KEYS and not dropout:
        return _attend_plainly(query_BHQD, key_BJKD, value_BJKD, bias_B1QK, scaling)
    if group > 1 and not on_cpu:  # only the CPU's kernel takes groups and a mask
        key_BJKD, value_BJKD = (x.repeat_interleave(group, dim=1) for x in (key_BJKD, value_BJKD))
    return scaled_dot_product_attention(
        query_BHQD,
        key_BJKD,
        value_BJKD,
        attn_mask=bias_B1QK,
        dropout_p=dropout,
        is_causal=bias_B1QK is None,
        scale=scaling,
        enable_gqa=group > 1 and on_cpu,
    )


def _attend_plainly(
    query_BHQD: Tensor, key_BJKD: Tensor, value_BJKD: Tensor, bias_B1QK: Tensor | None, scaling: float | None
) -> Tensor:
    rows, all_heads, queries, width = query_BHQD.shape
    groups, keys = key_BJKD.shape[1:3]
    if bias_B1QK is None:
        bias_B1QK = query_BHQD.new_full((1, 1, queries, keys), -math.inf).triu_(1)
    bias_B1MK = bias_B1QK.repeat(1, 1, all_heads // groups, 1)  # the queries of a group are below each other
    scores_CMK = torch.baddbmm(
        bias_B1MK.expand(rows, groups, -1, -1).reshape(rows * groups, -1, keys),
        query_BHQD.reshape(rows * groups, -1, width),
        key_BJKD.reshape(rows * groups, keys, width).transpose(1, 2),
        alpha=width**-0.5 if scaling is None else scaling,
    )
    value_CKD = value_BJKD.reshape(rows * groups, keys, -1)
    attended_CMD = torch.bmm(torch.softmax(scores_CMK, dim=-1), value_CKD)
    return attended_CMD.view(rows, all_heads, queries, -1)  # values may be of another width


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x_Nd: Tensor, weight_d: Tensor, epsilon: float) -> Tensor:
        unit_Nd, scale_N1 = _unit(x_Nd, epsilon)
        ctx.save_for_backward(unit_Nd, scale_N1, weight_d)
        return unit_Nd * weight_d

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Nd: Tensor) -> tuple[Tensor | None, ...]:
        return *_back_through_norm(grad_Nd, *ctx.saved_tensors), None


class _NormedLinears(Function):
    """Keeps the input over its length, which with the norm's weight is the norm."""

    @staticmethod
    def forward(
        ctx: Any, x_Nd: Tensor, weight_d: Tensor, epsilon: float, *matrices: Tensor | None
    ) -> tuple[Tensor, ...]:
        unit_Nd, scale_N1 = _unit(x_Nd, epsilon)
        weights, biases = [part for part in matrices[::2] if part is not None], matrices[1::2]
        ctx.save_for_backward(unit_Nd, scale_N1, weight_d, *weights)
        ctx.biased = [bias is not None for bias in biases]
        normed_Nd = unit_Nd * weight_d if any(ctx.needs_input_grad) else unit_Nd.mul_(weight_d)
        normed_Nd = normed_Nd.to(weights[0].dtype)
        return tuple(linear(normed_Nd, weight_nd, bias_n) for weight_nd, bias_n in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit_Nd, scale_N1, weight_d, *weights = ctx.saved_tensors
        normed_Nd = (unit_Nd * weight_d).to(weights[0].dtype)
        of_matrices: list[Tensor | None] = []
        for grad_Nn, biased in zip(grads, ctx.biased, strict=True):
            of_matrices += [grad_Nn.t() @ normed_Nd, grad_Nn.sum(0) if biased else None]
        of_normed_Nd = torch.mm(grads[0], weights[0], out=normed_Nd)  # new memory has its price
        wide_Nd = of_normed_Nd.to(unit_Nd.dtype)
        for grad_Nn, weight_nd in zip(grads[1:], weights[1:], strict=True):
            if wide_Nd is of_normed_Nd:
                wide_Nd.addmm_(grad_Nn, weight_nd)
            else:
                wide_Nd.add_(grad_Nn @ weight_nd)
        return *_back_through_norm(wide_Nd, unit_Nd, scale_N1, weight_d), None, *of_matrices


class _Gated(Function):
    """Keeps gate and up, or writes over the gate where no gradient is wanted."""

    @staticmethod
    def forward(ctx: Any, gate_Nn: Tensor, up_Nn: Tensor, weight_dn: Tensor, x_Nd: Tensor) -> Tensor:
        ctx.save_for_backward(gate_Nn, up_Nn, weight_dn)
        gated_Nn = silu(gate_Nn, inplace=not any(ctx.needs_input_grad)).mul_(up_Nn)
        if x_Nd.dtype != weight_dn.dtype:
            return x_Nd + linear(gated_Nn, weight_dn)
        return torch.addmm(x_Nd, gated_Nn, weight_dn.t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Nd: Tensor) -> tuple[Tensor, ...]:
        gate_Nn, up_Nn, weight_dn = ctx.saved_tensors
        open_Nn, narrow_Nd = silu(gate_Nn), grad_Nd.to(weight_dn.dtype)
        of_weight_dn = narrow_Nd.t() @ (open_Nn * up_Nn)
        of_gated_Nn = narrow_Nd @ weight_dn
        of_up_Nn = open_Nn.mul_(of_gated_Nn)
        of_gate_Nn = torch.ops.aten.silu_backward(of_gated_Nn.mul_(up_Nn), gate_Nn)
        return of_gate_Nn, of_up_Nn, of_weight_dn, grad_Nd


class _Heads(Function):
    @staticmethod
    def forward(
        ctx: Any, x_BLHD: Tensor, cos_B1LD: Tensor | None, sin_B1LD: Tensor | None, padded: int | None
    ) -> Tensor:
        ctx.save_for_backward(cos_B1LD, sin_B1LD)
        rows, ctx.length, number, width = x_BLHD.shape
        if padded is None:
            heads_BHLD = x_BLHD.new_empty(x_BLHD.shape).transpose(1, 2)
        else:
            heads_BHLD = x_BLHD.new_empty(rows, number, padded, width)
            heads_BHLD[:, :, ctx.length :].zero_()
        _rotate(x_BLHD.transpose(1, 2), cos_B1LD, sin_B1LD, 1, heads_BHLD[:, :, : ctx.length])
        return heads_BHLD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHLD: Tensor) -> tuple[Tensor | None, ...]:
        rows, number, _, width = grad_BHLD.shape
        of_x_BLHD = grad_BHLD.new_empty(rows, ctx.length, number, width)
        cos_B1LD, sin_B1LD = ctx.saved_tensors
        _rotate(grad_BHLD[:, :, : ctx.length], cos_B1LD, sin_B1LD, -1, of_x_BLHD.transpose(1, 2))
        return of_x_BLHD, None, None, None


def _rotate(x_BHLD: Tensor, cos_B1LD: Tensor | None, sin_B1LD: Tensor | None, sign: int, out_BHLD: Tensor) -> None:
    """Write `x` to `out`, halves rotated against each other; back again with `sign` -1."""
    if cos_B1LD is None or sin_B1LD is None:
        out_BHLD.copy_(x_BHLD)
        return
    if x_BHLD.dtype != cos_B1LD.dtype:  # rotated in float32, and rounded once
        wide_BHLD = x_BHLD.to(cos_B1LD.dtype)
        _rotate(wide_BHLD, cos_B1LD, sin_B1LD, sign, rotated_BHLD := torch.empty_like(wide_BHLD))
        out_BHLD.copy_(rotated_BHLD)
        return
    half = x_BHLD.shape[-1] // 2
    torch.mul(x_BHLD, cos_B1LD, out=out_BHLD)
    out_BHLD[..., :half].addcmul_(x_BHLD[..., half:], sin_B1LD[..., :half], value=-sign)
    out_BHLD[..., half:].addcmul_(x_BHLD[..., :half], sin_B1LD[..., half:], value=sign)


def _unit(x_Nd: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Rows over the root of their mean square, and what they were multiplied with."""
    wide_Nd = at_least_float32(x_Nd)
    length_N1 = torch.linalg.vector_norm(wide_Nd, dim=-1, keepdim=True)
    scale_N1 = length_N1.square_().div_(x_Nd.shape[-1]).add_(epsilon).rsqrt_()
    return (wide_Nd * scale_N1).to(x_Nd.dtype), scale_N1


def _back_through_norm(grad_Nd: Tensor, unit_Nd: Tensor, scale_N1: Tensor, weight_d: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the norm's input and weight."""
    of_unit_Nd = at_least_float32(grad_Nd * weight_d)
    along_N1 = (of_unit_Nd * unit_Nd).sum(-1, keepdim=True)
    of_unit_Nd.addcmul_(unit_Nd, along_N1, value=-1 / weight_d.shape[0]).mul_(scale_N1)
    return of_unit_Nd.to(grad_Nd.dtype), (grad_Nd * unit_Nd).flatten(0, -2).sum(0)
