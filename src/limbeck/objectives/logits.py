"""What the fused loss does to the rows of a block: softmax, inner products, top tokens, gradients.

Shape legend: C tokens of one block, V vocabulary, K support size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOP_GROUP = 64  # tokens of which at first only the largest is looked at, see `top`


@dataclass(frozen=True, eq=False)
class Sparse:
    ids_CK: Tensor  # K = 0 for the empty support
    weighted_CK: Tensor  # p (log p - log q) on the support
    tail_C: Tensor  # log p - log q of the sampled token, 0 where it is in the support


def sparse_gradient(p_CV: Tensor, sparse: Sparse, coefficient_C: Tensor) -> Tensor:
    """a - p * sum(a), short of the sampled token's own entry of a. Overwrites `p_CV`."""
    total_C = coefficient_C + sparse.weighted_CK.sum(dim=1)
    return p_CV.mul_(-total_C[:, None]).scatter_add_(1, sparse.ids_CK, sparse.weighted_CK)


def mixture_gain(p_CV: Tensor, logp_CV: Tensor, logq_CV: Tensor, q_CV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """a of the gradient p * (a - E_p[a]), and the value, of the generalised JSD at 0 < beta < 1.

    beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p: GKD (Agarwal et al.
    2024), eq. 3. At beta = 1 the reverse KL, by its convention.
    """
    logm_CV = torch.logaddexp(logq_CV + math.log(beta), logp_CV + math.log1p(-beta))
    value_C = beta * dot(q_CV, logq_CV - logm_CV)
    gain_CV = torch.sub(logp_CV, logm_CV, out=logm_CV).mul_(1 - beta)
    return gain_CV, value_C + dot(p_CV, gain_CV)


def log_softmax_(x_CV: Tensor) -> tuple[Tensor, Tensor]:
    """log p, in the place of `x_CV`, and p: with one exponential where the two functions take two."""
    x_CV.sub_(x_CV.amax(dim=1, keepdim=True))
    p_CV = x_CV.exp()
    total_C1 = p_CV.sum(dim=1, keepdim=True)
    return x_CV.sub_(total_C1.log()), p_CV.div_(total_C1)


def dot(a_CV: Tensor, b_CV: Tensor) -> Tensor:
    """Row-wise inner product. `sum` adds in a tree: fifty thousand float32 terms lose no precision."""
    return (a_CV * b_CV).sum(dim=1)


def top(x_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """[C, k] largest values of each row, and where they are, in no order.

    The k largest lie in the k groups with the largest maxima: only those are looked through.
    """
    groups = x_CV.shape[1] // TOP_GROUP
    if groups < 2 * k:
        values_CK, ids_CK = x_CV.topk(k, dim=1, sorted=False)
        return values_CK, ids_CK
    whole = groups * TOP_GROUP
    x_CnG = x_CV[:, :whole].view(-1, groups, TOP_GROUP)
    group_Ck = x_CnG.amax(dim=2).topk(k, dim=1, sorted=False).indices
    within_G = torch.arange(TOP_GROUP, device=x_CV.device)
    ids_CM = (group_Ck[:, :, None] * TOP_GROUP + within_G).flatten(1)
    rest = torch.arange(whole, x_CV.shape[1], device=x_CV.device).expand(len(x_CV), -1)
    ids_CM = torch.cat([ids_CM, rest], dim=1)
    values_CK, place_CK = x_CV.gather(1, ids_CM).topk(k, dim=1, sorted=False)
    return values_CK, ids_CM.gather(1, place_CK)
