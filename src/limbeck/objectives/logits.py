"""What the fused loss does to the rows of a block: softmax, inner products, top tokens.

Shape legend: C tokens of one block, V vocabulary, G tokens of a group, M candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP_GROUP = 64  # tokens of which at first only the largest is looked at, see `top`


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
    grouped = groups * TOP_GROUP
    x_CnG = x_CV[:, :grouped].view(-1, groups, TOP_GROUP)
    group_Ck = x_CnG.amax(dim=2).topk(k, dim=1, sorted=False).indices
    within_G = torch.arange(TOP_GROUP, device=x_CV.device)
    ids_CM = (group_Ck[:, :, None] * TOP_GROUP + within_G).flatten(1)
    rest = torch.arange(grouped, x_CV.shape[1], device=x_CV.device).expand(len(x_CV), -1)
    ids_CM = torch.cat([ids_CM, rest], dim=1)
    values_CK, place_CK = x_CV.gather(1, ids_CM).topk(k, dim=1, sorted=False)
    return values_CK, ids_CM.gather(1, place_CK)
