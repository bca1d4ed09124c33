"""The divergences that ship. Each is elementwise: what it pulls on each logit, and its value.

With p the student's and q the teacher's distribution at the rollout temperature, and x = z / T:

    D     = sum_v value_v
    a_v   = d value_v / d p_v, up to a constant that is the same for all v
    pull  = p * a           so that  dD/dx = pull - p * sum(pull)
    gain  = a = pull / p    of a sampled token: its part of the gradient is sg[w * gain] * log p(y)

All three take tensors of any one shape and give tensors of that shape: an entry depends on the same entry of the
arguments only. So the loss may call them with the whole vocabulary, a list of tokens or the sampled token alone,
chunk by chunk and rank by rank. A custom objective is these three methods (`protocols.Objective`). They must not
write to their arguments. `objectives.check_objective` compares them with each other.

A constant in `a` cancels in dD/dx. On a partial support it changes the noise and not the expectation; those chosen
here make every pull of the reverse KL and of the JSD zero at p = q.

Shape legend: C tokens of one block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.objectives.logits import dot
from limbeck.protocols import Objective


@dataclass(frozen=True, eq=False)
class DenseBlock:
    """Both distributions of a block of tokens over the whole vocabulary."""

    p_CV: Tensor
    logp_CV: Tensor
    q_CV: Tensor
    logq_CV: Tensor
    ratio_CV: Tensor  # log p - log q: the place for the gradient, once it is no longer needed
    reverse_kl_C: Tensor


DenseFunction: TypeAlias = Callable[[DenseBlock], tuple[Tensor, Tensor]]  # [C, V] dD/dx and [C] D


def dense_function(objective: Objective) -> DenseFunction:
    """Gradient and value over the whole vocabulary, which follow from `pull` and `value`.

    An objective may bring its own as a method `dense_`, to save passes over the vocabulary; the divergences below do.
    """
    own: DenseFunction | None = getattr(objective, "dense_", None)
    return own or partial(_dense, objective)


def _dense(objective: Objective, block: DenseBlock) -> tuple[Tensor, Tensor]:
    value_C = objective.value(block.p_CV, block.logp_CV, block.logq_CV).sum(dim=1)
    pull_CV = objective.pull(block.p_CV, block.logp_CV, block.logq_CV)
    total_C1 = pull_CV.sum(dim=1, keepdim=True)
    return torch.addcmul(pull_CV, block.p_CV, total_C1, value=-1, out=block.ratio_CV), value_C


@dataclass(frozen=True)
class ReverseKL:
    """KL(p || q) = sum p (log p - log q): the on-policy distillation loss. a = log p - log q."""

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * (logp - logq)

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return logp - logq

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * (logp - logq)

    def dense_(self, block: DenseBlock) -> tuple[Tensor, Tensor]:
        return block.ratio_CV.sub_(block.reverse_kl_C[:, None]).mul_(block.p_CV), block.reverse_kl_C


@dataclass(frozen=True)
class ForwardKL:
    """KL(q || p) = sum q (log q - log p), supervised distillation. a = -q/p, so the pull is -q and never overflows.

    The gain, -q/p of a sampled token, has no bound: on a partial support take enough of the teacher's top tokens.
    """

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return -logq.exp()

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return -(logq - logp).exp()

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return logq.exp() * (logq - logp)

    def dense_(self, block: DenseBlock) -> tuple[Tensor, Tensor]:
        value_C = -dot(block.q_CV, block.ratio_CV)
        return torch.sub(block.p_CV, block.q_CV, out=block.ratio_CV), value_C


@dataclass(frozen=True)
class JSD:
    """Generalised Jensen-Shannon divergence, GKD (Agarwal et al. 2024), eq. 3, for 0 < beta < 1.

    beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p. a = (1 - beta) (log p - log m).
    At both ends the formula is zero for all p and q; GKD's convention for them is `jsd`.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1:
            raise ValueError(f"JSD is for 0 < beta < 1, got {self.beta}. Use ForwardKL for 0 and ReverseKL for 1.")

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * self.gain(logp, logq)

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return (1 - self.beta) * (logp - self._log_mixture(logp, logq))

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        logm = self._log_mixture(logp, logq)
        return self.beta * logq.exp() * (logq - logm) + (1 - self.beta) * p * (logp - logm)

    def dense_(self, block: DenseBlock) -> tuple[Tensor, Tensor]:
        """The logarithm of the mixture once for gradient and value."""
        logm_CV = self._log_mixture(block.logp_CV, block.logq_CV)
        value_C = self.beta * dot(block.q_CV, block.logq_CV - logm_CV)
        gain_CV = torch.sub(block.logp_CV, logm_CV, out=logm_CV).mul_(1 - self.beta)
        mean_C = dot(block.p_CV, gain_CV)
        return gain_CV.sub_(mean_C[:, None]).mul_(block.p_CV), value_C + mean_C

    def _log_mixture(self, logp: Tensor, logq: Tensor) -> Tensor:
        return torch.logaddexp(logq + math.log(self.beta), logp + math.log1p(-self.beta))


def jsd(beta: float) -> Objective:
    """The JSD with GKD's convention at its ends: 0 is the forward and 1 the reverse KL."""
    if beta == 0:
        return ForwardKL()
    return ReverseKL() if beta == 1 else JSD(beta)
