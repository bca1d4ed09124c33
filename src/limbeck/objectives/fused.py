"""The loss and its gradient without a `[tokens, vocabulary]` tensor.

Hidden states go through the head a chunk of tokens at a time; a chunk's logits, its divergence and
the gradients it sends to hidden states and head are computed together and the logits are dropped.
So the forward pass already holds the gradient, and the backward pass only hands it on. Within a chunk
the arithmetic between the matmuls goes block by block: a matmul wants many rows, but a dozen passes over
them want to find them in the cache.

Every term of the loss has a gradient of one of two shapes with respect to x = logits / T:

    dense    p * (a - E_p[a])            a over the whole vocabulary
    sparse   a - p * sum(a)              a on a few tokens: the teacher's top K, the sampled one

Chunks run from the last token to the first: with `discount` a token's coefficient holds the
divergences that come after it in its sequence, and these are then already known.

Shape legend: N tokens, C tokens of one chunk or block, V vocabulary, d hidden width, K support size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.config.objective import JSDConfig, ObjectiveConfig, ReverseKLConfig
from limbeck.models.head import Head, at_least_float32
from limbeck.objectives.logits import Sparse, dot, log_softmax_, mixture_gain, sparse_gradient, top
from limbeck.objectives.targets import Dense, Measured, Target, Tokens, TopK, check_target

LARGEST_CHUNK = 4096
BLOCK_BYTES = 2 * 2**20  # of each of a block's tensors on a CPU: a handful of them share its cache
LARGEST_DISCOUNTED_CHUNK = 512  # a chunk's discounted sums take a [C, C] matrix


def distillation_loss(
    objective: ObjectiveConfig,
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
    global count of trained tokens. The loss is a scalar: the sum of the per-token estimates of the
    divergence (DESIGN section 2) over the denominator; its gradient is that of the surrogate L_t,
    of which the value means nothing.

    Raises `ValueError` for T <= 0 and for a target that cannot carry the objective.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: at T = 0 there is no KL")
    check_target(objective, teacher, reference)
    trained = (hidden_Nd, head.weight_Vd, head.bias_V)
    wants_grad = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in trained)
    with torch.no_grad(), torch.autocast(hidden_Nd.device.type, enabled=False):
        run = _Chunks(
            objective,
            temperature,
            hidden_Nd.detach(),
            head,
            tokens,
            teacher,
            reference,
            denominator,
            wants_grad,
        )
        for start, end in _backwards(hidden_Nd.shape[0], _chunk_length(objective, head.vocabulary, chunk_bytes)):
            run.step(slice(start, end))
        value = run.measured.objective.sum() / denominator
    if not wants_grad:
        return value, run.measured
    gradients = (run.grad_hidden_Nd, run.grad_weight_Vd, run.grad_bias_V)
    loss: Tensor = _WithGradient.apply(value, gradients, *trained)  # type: ignore[no-untyped-call]
    return loss, run.measured


class _WithGradient(torch.autograd.Function):
    """A value whose gradient is already known: backward scales it and hands it on, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the fused loss can be back-propagated once"
        return (None, None, *(None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in gradients))


class _Chunks:
    """What is carried from chunk to chunk: gradients, measurements, the discounted future."""

    def __init__(
        self,
        objective: ObjectiveConfig,
        temperature: float,
        hidden_Nd: Tensor,
        head: Head,
        tokens: Tokens,
        teacher: Target,
        reference: Dense | None,
        denominator: float,
        wants_grad: bool,
    ) -> None:
        self.objective, self.temperature, self.denominator = objective, temperature, denominator
        self.hidden_Nd, self.head, self.tokens = hidden_Nd, head.detach(), tokens
        self.teacher, self.reference, self.wants_grad = teacher, reference, wants_grad
        count, dtype = hidden_Nd.shape[0], at_least_float32(hidden_Nd[:0]).dtype

        def empty() -> Tensor:
            return torch.empty(count, dtype=dtype, device=hidden_Nd.device)

        dense = isinstance(teacher, Dense)
        self.measured = Measured(
            student_logprob=empty(),
            teacher_logprob=empty(),
            student_entropy=empty(),
            objective=empty(),
            teacher_entropy=empty() if dense else None,
            reverse_kl=empty() if dense else None,
            overlap=empty() if dense else None,
            reference_kl=empty() if reference else None,
        )
        self.grad_hidden_Nd = torch.empty_like(hidden_Nd) if wants_grad and hidden_Nd.shape[0] else None
        self.grad_weight_Vd = self.grad_bias_V = None
        if wants_grad and head.weight_Vd.requires_grad:
            self.grad_weight_Vd = torch.zeros_like(head.weight_Vd)
        if wants_grad and head.bias_V is not None and head.bias_V.requires_grad:
            self.grad_bias_V = torch.zeros_like(head.bias_V)
        self.rooms: dict[str, Tensor] = {}  # logits of each model, written over chunk by chunk
        self.future = torch.zeros((), dtype=dtype, device=hidden_Nd.device)  # of the token after the chunk
        self.future_sequence = torch.full((), -1, device=hidden_Nd.device)

    def step(self, c: slice) -> None:
        """One chunk: logits, what each block makes of them, gradient."""
        logits_CV = self._logits("student", self.head, self.hidden_Nd[c])
        teacher_CV, reference_CV = (
            self._logits(name, other.head, other.hidden_Nd[c]) if isinstance(other, Dense) else None
            for name, other in (("teacher", self.teacher), ("reference", self.reference))
        )
        softcap, rows = self.head.softcap, len(logits_CV)
        if logits_CV.device.type == "cpu":
            rows = max(1, BLOCK_BYTES // logits_CV[0].nbytes)
        for start, end in _backwards(len(logits_CV), rows):
            part = slice(start, end)
            x_CV = logits_CV[part]
            slope_CV = None if softcap is None else 1 - (x_CV / softcap) ** 2
            grad_CV = self._block(
                slice(c.start + start, c.start + end),
                x_CV,
                None if teacher_CV is None else teacher_CV[part],
                None if reference_CV is None else reference_CV[part],
            )
            if self.wants_grad:
                scale = self.head.multiplier / (self.temperature * self.denominator)
                torch.mul(grad_CV, scale if slope_CV is None else slope_CV.mul_(scale), out=x_CV)
        if self.wants_grad:
            self._send_back(c, logits_CV)

    def _logits(self, name: str, head: Head, hidden_Cd: Tensor) -> Tensor:
        """Of one chunk, in the place of the last one's."""
        room_CV = self.rooms.get(name)
        self.rooms[name] = head.logits(hidden_Cd, None if room_CV is None else room_CV[: len(hidden_Cd)])
        return self.rooms[name]

    def _block(self, c: slice, logits_CV: Tensor, teacher_CV: Tensor | None, reference_CV: Tensor | None) -> Tensor:
        """A few rows: measurements, loss value, and dL/dx of each token. Overwrites the logits."""
        measured, sampled_C1 = self.measured, self.tokens.sampled_N[c, None]
        logp_CV, p_CV = log_softmax_(logits_CV.div_(self.temperature))
        measured.student_logprob[c] = logp_CV.gather(1, sampled_C1)[:, 0]
        measured.student_entropy[c] = -dot(p_CV, logp_CV)

        to_reference_CV = self._reference_ratio(c, p_CV, logp_CV, reference_CV)
        logq_CV = q_CV = None
        if teacher_CV is not None:
            logq_CV, q_CV = log_softmax_(teacher_CV.div_(self.temperature))
            self._measure_dense(c, logp_CV, logq_CV, q_CV)
        elif not isinstance(self.teacher, Dense):
            measured.teacher_logprob[c] = self.teacher.logprobs_N[c]

        if isinstance(self.objective, ReverseKLConfig) and self.objective.support != "full":
            if logq_CV is not None:
                self._measure_reverse_kl(c, dot(p_CV, logp_CV - logq_CV))
            sparse = self._sparse_support(c, p_CV, logp_CV, logq_CV, to_reference_CV)
            # Weighted like its gradient: the mean over mu, not over p, is the divergence.
            value_C = sparse.weighted_CK.sum(dim=1) + self._importance(c) * sparse.tail_C
            coefficient_C = self._coefficient(c, value_C, sparse.tail_C)
            assert coefficient_C is not None
            grad_CV = sparse_gradient(p_CV, sparse, coefficient_C)
        else:
            assert logq_CV is not None
            assert q_CV is not None
            grad_CV, value_C = self._dense(c, p_CV, logp_CV, logq_CV, q_CV, to_reference_CV)
            coefficient_C = self._coefficient(c, value_C, None)
            if coefficient_C is not None:
                grad_CV.addcmul_(p_CV, coefficient_C[:, None], value=-1)
        measured.objective[c] = value_C
        if self.wants_grad and coefficient_C is not None:
            grad_CV.scatter_add_(1, sampled_C1, coefficient_C[:, None])
        return grad_CV

    def _dense(
        self, c: slice, p_CV: Tensor, logp_CV: Tensor, logq_CV: Tensor, q_CV: Tensor, to_reference_CV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """dL/dx of a divergence over the whole vocabulary, and its value at each token."""
        objective = self.objective
        beta = {"reverse_kl": 1.0, "forward_kl": 0.0}.get(objective.divergence)
        beta = objective.beta if isinstance(objective, JSDConfig) else beta
        assert beta is not None
        ratio_CV = logp_CV - logq_CV
        reverse_C = dot(p_CV, ratio_CV)
        self._measure_reverse_kl(c, reverse_C)
        if beta == 0:
            value_C = -dot(q_CV, ratio_CV)
            grad_CV = torch.sub(p_CV, q_CV, out=ratio_CV)
        elif beta == 1:
            value_C = reverse_C
            grad_CV = ratio_CV.sub_(reverse_C[:, None]).mul_(p_CV)
        else:
            gain_CV, value_C = mixture_gain(p_CV, logp_CV, logq_CV, q_CV, beta)
            grad_CV = gain_CV.sub_(dot(p_CV, gain_CV)[:, None]).mul_(p_CV)
        if to_reference_CV is not None:
            mean_C = dot(p_CV, to_reference_CV)
            value_C = value_C + mean_C
            grad_CV.addcmul_(p_CV, to_reference_CV.sub_(mean_C[:, None]))
        return grad_CV, value_C

    def _sparse_support(
        self, c: slice, p_CV: Tensor, logp_CV: Tensor, logq_CV: Tensor | None, to_reference_CV: Tensor | None
    ) -> Sparse:
        """p (log p - log q) on the support, and log p - log q of the sampled token outside it."""
        teacher, sampled_C1 = self.teacher, self.tokens.sampled_N[c, None]
        assert isinstance(self.objective, ReverseKLConfig)
        support = self.objective.support
        if support == "sampled":
            ids_CK, logq_CK = sampled_C1[:, :0], logp_CV[:, :0]
        elif isinstance(teacher, TopK):
            ids_CK, logq_CK = teacher.ids_NK[c], teacher.logprobs_NK[c]
        else:
            assert logq_CV is not None
            assert isinstance(support, int)
            logq_CK, ids_CK = top(logq_CV, min(support, logq_CV.shape[1]))
        gain_CK = logp_CV.gather(1, ids_CK) - logq_CK
        ratio_C = self.measured.student_logprob[c] - self.measured.teacher_logprob[c]
        if to_reference_CV is not None:
            gain_CK = gain_CK + to_reference_CV.gather(1, ids_CK)
            ratio_C = ratio_C + to_reference_CV.gather(1, sampled_C1)[:, 0]
        tail_C = torch.where((ids_CK == sampled_C1).any(dim=1), 0.0, ratio_C)
        return Sparse(ids_CK, p_CV.gather(1, ids_CK) * gain_CK, tail_C)

    def _reference_ratio(self, c: slice, p_CV: Tensor, logp_CV: Tensor, reference_CV: Tensor | None) -> Tensor | None:
        """weight * (log p - log p_ref), which adds to the log-ratio of every reverse KL."""
        if reference_CV is None:
            return None
        assert self.objective.reference is not None
        assert self.measured.reference_kl is not None
        ratio_CV = logp_CV - log_softmax_(reference_CV.div_(self.temperature))[0]
        self.measured.reference_kl[c] = dot(p_CV, ratio_CV)
        return ratio_CV.mul_(self.objective.reference.weight)

    def _measure_dense(self, c: slice, logp_CV: Tensor, logq_CV: Tensor, q_CV: Tensor) -> None:
        measured = self.measured
        assert measured.teacher_entropy is not None
        assert measured.overlap is not None
        measured.teacher_logprob[c] = logq_CV.gather(1, self.tokens.sampled_N[c, None])[:, 0]
        measured.teacher_entropy[c] = -dot(q_CV, logq_CV)
        k = min(self.objective.overlap_k, logp_CV.shape[1])
        ids_CK, teacher_CK = (top(x_CV, k)[1] for x_CV in (logp_CV, logq_CV))
        shared_C = (ids_CK[:, :, None] == teacher_CK[:, None, :]).any(dim=2).sum(dim=1)
        measured.overlap[c] = shared_C.to(measured.overlap.dtype) / k

    def _measure_reverse_kl(self, c: slice, reverse_C: Tensor) -> None:
        assert self.measured.reverse_kl is not None
        self.measured.reverse_kl[c] = reverse_C

    def _coefficient(self, c: slice, value_C: Tensor, tail_C: Tensor | None) -> Tensor | None:
        """What multiplies log p(y_t): the sampled tail, the discounted future, minus the advantage."""
        terms = [] if tail_C is None else [tail_C]
        if self.objective.discount > 0:
            terms.append(self.objective.discount * self._discounted_future(c, value_C))
        if self.tokens.advantage_N is not None:
            terms.append(-self.tokens.advantage_N[c])
        if not terms:
            return None
        return self._importance(c) * torch.stack(terms).sum(dim=0)

    def _importance(self, c: slice) -> Tensor:
        """min(p(y_t) / mu(y_t), cap), [C]."""
        log_weight_C = self.measured.student_logprob[c] - self.tokens.behaviour_N[c]
        return log_weight_C.exp().clamp(max=self.objective.importance_cap)

    def _discounted_future(self, c: slice, value_C: Tensor) -> Tensor:
        """sum_{u > t} discount^(u-t-1) D_u within each token's sequence, [C]."""
        discount, sequence_C = self.objective.discount, self.tokens.sequence_N[c]
        steps_C = torch.arange(len(value_C), device=value_C.device)
        ahead_CC = steps_C[None, :] - steps_C[:, None] - 1
        same_CC = (sequence_C[None, :] == sequence_C[:, None]) & (ahead_CC >= 0)
        decay_CC = torch.where(same_CC, discount ** ahead_CC.clamp(min=0).to(value_C.dtype), 0.0)
        until_end_C = (len(value_C) - 1 - steps_C).to(value_C.dtype)
        carried_C = torch.where(sequence_C == self.future_sequence, discount**until_end_C * self.future, 0.0)
        future_C = decay_CC @ value_C + carried_C
        self.future, self.future_sequence = value_C[0] + discount * future_C[0], sequence_C[0]
        return future_C

    def _send_back(self, c: slice, grad_CV: Tensor) -> None:
        """From the gradient of what the head's matmul gave to hidden states and head."""
        hidden_Cd = self.hidden_Nd[c]
        narrow_CV = grad_CV.to(hidden_Cd.dtype)
        assert self.grad_hidden_Nd is not None
        torch.mm(narrow_CV, self.head.weight_Vd.to(hidden_Cd.dtype), out=self.grad_hidden_Nd[c])
        if self.grad_weight_Vd is not None:
            if self.grad_weight_Vd.dtype == hidden_Cd.dtype:
                self.grad_weight_Vd.addmm_(narrow_CV.T, hidden_Cd)
            else:
                self.grad_weight_Vd.add_(narrow_CV.T @ hidden_Cd)
        if self.grad_bias_V is not None:
            self.grad_bias_V.add_(grad_CV.sum(dim=0))


def _chunk_length(objective: ObjectiveConfig, vocabulary: int, chunk_bytes: int) -> int:
    largest = LARGEST_DISCOUNTED_CHUNK if objective.discount > 0 else LARGEST_CHUNK
    return max(1, min(largest, chunk_bytes // (4 * vocabulary)))


def _backwards(count: int, length: int) -> list[tuple[int, int]]:
    """[start, end) of chunks of `length`, from the last to the first."""
    return [(max(0, end - length), end) for end in range(count, 0, -length)]
