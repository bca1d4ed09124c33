"""What top_k, top_p and min_p leave of a distribution: the same for who samples and for who recomputes.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from limbeck.records import Sampling


def truncate(logp_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs renormalised over what top_k, top_p and min_p keep, -inf elsewhere; in that order."""
    if 0 < sampling.top_k < logp_BV.shape[1]:
        least_B1 = logp_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logp_BV = _keep(logp_BV, logp_BV >= least_B1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True)
        p_BV = sorted_BV.exp()
        kept_BV = p_BV.cumsum(dim=-1) - p_BV < sampling.top_p  # the mass before a token is short of top_p
        logp_BV = _keep(logp_BV, torch.zeros_like(kept_BV).scatter_(1, order_BV, kept_BV))
    if sampling.min_p > 0:
        logp_BV = _keep(logp_BV, logp_BV >= logp_BV.amax(dim=-1, keepdim=True) + np.log(sampling.min_p))
    return logp_BV


def _keep(logp_BV: Tensor, kept_BV: Tensor) -> Tensor:
    return torch.log_softmax(logp_BV.masked_fill(~kept_BV, -torch.inf), dim=-1)
