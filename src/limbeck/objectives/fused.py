"""The loss and its gradient without a `[tokens, vocabulary]` tensor.

Hidden states go through the head a chunk of tokens at a time; a chunk's logits, its divergence and
the gradients it sends to hidden states and head are computed together and the logits are dropped.
So the forward pass already holds the gradient, and the backward pass only hands it on. Within a chunk
the arithmetic between the matmuls (`estimator.py`) goes block by block: a matmul wants many rows, but a
dozen passes over them want to find them in the cache.

Chunks run from the last token to the first: with `discount` a token's coefficient holds the
divergences that come after it in its sequence, and these are then already known.

Shape legend: N tokens, C tokens of one chunk, V vocabulary, d hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from limbeck.models.head import Head, at_least_float32
from limbeck.models.scoring import score_hidden
from limbeck.objectives.estimator import Estimator
from limbeck.objectives.groups import group_terms
from limbeck.objectives.loss import Loss
from limbeck.objectives.targets import Dense, Grouped, Measured, Target, Tokens, check_target, empty_measurements

LARGEST_CHUNK = 4096
LARGEST_DISCOUNTED_CHUNK = 512  # a chunk's discounted sums take a [C, C] matrix
BLOCK_BYTES = 2 * 2**20  # of each of a block's tensors on a CPU: a handful of them share its cache


def distillation_loss(
    loss: Loss,
    temperature: float,
    hidden_Nd: Tensor,
    head: Head,
    tokens: Tokens,
    teacher: Target,
    denominator: float,
    reference: Dense | None = None,
    chunk_bytes: int = 96 * 2**20,
) -> tuple[Tensor, Measured]:
    """The distillation loss of one micro-batch and what was measured on the way.

    `hidden_Nd` are the student's final hidden states at the positions that predict the sampled
    tokens; gradients flow to it and to the head's weight and bias. `denominator` is the step's
    global count of trained tokens. The value is a scalar: the sum of the per-token estimates of the
    divergence (docs: One estimator family) over the denominator. Its gradient is that of the surrogate L_t,
    whose own value means nothing.

    Raises `ValueError` for T <= 0 and for a target that cannot carry the objective.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: at T = 0 there is no KL")
    check_target(loss, head.vocabulary, teacher, reference)
    trained = (hidden_Nd, head.weight_Vd, head.bias_V)
    wants_grad = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in trained)
    with torch.no_grad(), torch.autocast(hidden_Nd.device.type, enabled=False):
        student = Dense(hidden_Nd.detach(), head.detach())
        measured = empty_measurements(loss, hidden_Nd, teacher, reference)
        estimator = Estimator(loss, temperature, tokens, teacher, measured, wants_grad)
        gradients = _Gradients(student, head) if wants_grad else None
        if isinstance(teacher, Grouped):
            logp_N = score_hidden(
                student.head, student.hidden_Nd, tokens.sampled_N, temperature, chunk_bytes=chunk_bytes
            )
            estimator.groups = group_terms(teacher, tokens, logp_N.logprobs_S, loss.importance_cap)
        policies = [_Logits(policy) for policy in (student, teacher, reference)]
        for c in _backwards(len(hidden_Nd), _chunk_length(loss, head.vocabulary, chunk_bytes)):
            logits_CV, teacher_CV, reference_CV = (policy.of(c) for policy in policies)
            assert logits_CV is not None
            scale = head.multiplier / (temperature * denominator) if wants_grad else None
            _to_gradient_(estimator, c, logits_CV, teacher_CV, reference_CV, head.softcap, scale)
            if gradients is not None:
                gradients.add(c, logits_CV)
        value = measured.objective.sum() / denominator
    if gradients is None:
        return value, measured
    attached: Tensor = _WithGradient.apply(value, gradients.found(), *trained)  # type: ignore[no-untyped-call]
    return attached, measured


def _to_gradient_(
    estimator: Estimator,
    c: slice,
    logits_CV: Tensor,
    teacher_CV: Tensor | None,
    reference_CV: Tensor | None,
    softcap: float | None,
    scale: float | None,
) -> None:
    """One chunk, block by block: the student's logits become the gradient of what the head's matmul gave.

    `scale` is what the head and the loss multiply by; None where no gradient is wanted.
    """
    rows = len(logits_CV)
    if logits_CV.device.type == "cpu":
        rows = max(1, BLOCK_BYTES // logits_CV[0].nbytes)
    for part in _backwards(len(logits_CV), rows):
        x_CV = logits_CV[part]
        slope_CV = None if softcap is None else 1 - (x_CV / softcap) ** 2
        grad_CV = estimator.gradient_(
            slice(c.start + part.start, c.start + part.stop),
            x_CV,
            None if teacher_CV is None else teacher_CV[part],
            None if reference_CV is None else reference_CV[part],
        )
        if scale is not None:
            torch.mul(grad_CV, scale if slope_CV is None else slope_CV.mul_(scale), out=x_CV)


class _Logits:
    """A policy's logits, a chunk at a time; each chunk's take the place of those before."""

    def __init__(self, policy: Target | None) -> None:
        self.policy = policy if isinstance(policy, Dense) else None
        self.buffer_CV: Tensor | None = None

    def of(self, c: slice) -> Tensor | None:
        """[C, V], or None where only some log-probs are known."""
        if self.policy is None:
            return None
        hidden_Cd = self.policy.hidden_Nd[c]
        out_CV = None if self.buffer_CV is None else self.buffer_CV[: len(hidden_Cd)]
        self.buffer_CV = self.policy.head.logits(hidden_Cd, out_CV)
        return self.buffer_CV


class _Gradients:
    """Of hidden states, weight and bias, added up chunk by chunk; None for what is frozen."""

    def __init__(self, student: Dense, head: Head) -> None:
        self.student = student
        self.hidden_Nd = torch.empty_like(student.hidden_Nd)
        self.weight_Vd = _zeros(student.head.weight_Vd) if head.weight_Vd.requires_grad else None
        self.bias_V: Tensor | None = None
        if head.bias_V is not None and head.bias_V.requires_grad:
            self.bias_V = _zeros(head.bias_V)

    def add(self, c: slice, grad_CV: Tensor) -> None:
        """From the gradient of what the head's matmul gave."""
        hidden_Cd, weight_Vd = self.student.hidden_Nd[c], self.student.head.weight_Vd
        narrow_CV = grad_CV.to(hidden_Cd.dtype)
        torch.mm(narrow_CV, weight_Vd.to(hidden_Cd.dtype), out=self.hidden_Nd[c])
        if self.weight_Vd is not None:
            if self.weight_Vd.dtype == hidden_Cd.dtype:
                self.weight_Vd.addmm_(narrow_CV.T, hidden_Cd)
            else:
                self.weight_Vd.add_(narrow_CV.T @ hidden_Cd)
        if self.bias_V is not None:
            self.bias_V.add_(grad_CV.sum(dim=0))

    def found(self) -> tuple[Tensor | None, ...]:
        return (self.hidden_Nd if len(self.hidden_Nd) else None, self.weight_Vd, self.bias_V)


def _zeros(like: Tensor) -> Tensor:
    """Sums of chunks are in float32 at least."""
    return torch.zeros_like(like, dtype=at_least_float32(like[:0]).dtype)


class _WithGradient(torch.autograd.Function):
    """A value whose gradient is already known: backward scales it and hands it on, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        ctx.dtypes = [None if part is None else part.dtype for part in inputs]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the fused loss can be back-propagated once"
        scaled = (None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in gradients)
        return None, None, *(None if g is None else g.to(dtype) for g, dtype in zip(scaled, ctx.dtypes, strict=True))


def _chunk_length(loss: Loss, vocabulary: int, chunk_bytes: int) -> int:
    largest = LARGEST_DISCOUNTED_CHUNK if loss.discount > 0 else LARGEST_CHUNK
    return max(1, min(largest, chunk_bytes // (4 * vocabulary)))


def _backwards(count: int, length: int) -> Iterator[slice]:
    """Slices of `length`, from the last to the first."""
    return (slice(max(0, end - length), end) for end in range(count, 0, -length))
