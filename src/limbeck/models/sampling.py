"""Drawing a token from logits, with its exact log-prob, and what truncation leaves to draw from.

The randomness of a row is its own (`seeding.uniforms`), so a response does not depend on what else is in the batch.

Shape legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.records import Sampling

BLOCK = 256


def draw(logits_BV: Tensor, sampling: Sampling, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """[B] token ids and [B] log-probs in the whole distribution at the temperature.

    top_k, top_p and min_p decide what may be drawn and leave the log-probs alone, so that they compare with
    everyone else's. Greedy takes the most likely token.
    """
    p_BV = logits_BV / sampling.temperature
    cut_BV = truncate(torch.log_softmax(p_BV, dim=-1), sampling).exp_() if sampling.truncated else None
    p_BV.sub_(p_BV.amax(dim=-1, keepdim=True)).exp_()  # up to a factor, which spares passes over the vocabulary
    token_B = (
        logits_BV.argmax(dim=-1) if sampling.greedy else inverse_cdf(p_BV if cut_BV is None else cut_BV, uniform_B)
    )
    logp_B = (p_BV.gather(1, token_B[:, None])[:, 0] / p_BV.sum(dim=-1)).log()
    return token_B, logp_B


def inverse_cdf(p_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """[B] the first token whose cumulative probability exceeds `uniform_B`; `p_BV` need not sum to one.

    In two levels, blocks and then tokens of one block: a hundred times cheaper than
    `torch.multinomial` at a vocabulary of 49k, and sums of 256 terms lose no precision.
    """
    rows, vocabulary = p_BV.shape
    if vocabulary <= BLOCK:
        total_B1 = p_BV.sum(dim=-1, keepdim=True, dtype=torch.float64)
        return _within(p_BV, uniform_B.double()[:, None] * total_B1)[:, 0]
    if vocabulary % BLOCK:
        p_BV = torch.nn.functional.pad(p_BV, (0, -vocabulary % BLOCK))
    p_BnK = p_BV.view(rows, -1, BLOCK)
    blocks_Bn = p_BnK.sum(dim=-1).double().cumsum(dim=-1)
    target_B1 = (uniform_B.double() * blocks_Bn[:, -1])[:, None]
    block_B1 = torch.searchsorted(blocks_Bn, target_B1, right=True).clamp_(max=blocks_Bn.shape[1] - 1)
    before_B1 = torch.where(block_B1 > 0, blocks_Bn.gather(1, (block_B1 - 1).clamp(min=0)), 0.0)
    p_BK = p_BnK.gather(1, block_B1[:, :, None].expand(-1, -1, BLOCK))[:, 0]
    return (block_B1 * BLOCK + _within(p_BK, target_B1 - before_B1))[:, 0]


def _within(p_BK: Tensor, target_B1: Tensor) -> Tensor:
    """[B, 1] the first token of a block whose cumulative probability exceeds the target."""
    within_B1 = torch.searchsorted(p_BK.cumsum(dim=-1, dtype=torch.float64), target_B1, right=True)
    # Rounding can step past the end of a block: stay on its last token of probability above 0.
    places_K = torch.arange(p_BK.shape[1], device=p_BK.device)
    last_B1 = torch.where(p_BK > 0, places_K, 0).amax(dim=-1, keepdim=True)
    return torch.minimum(within_B1, last_B1)


def truncate(logp_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probs renormalised over what top_k, top_p and min_p keep, -inf elsewhere; in that order.

    The same for who samples and for who recomputes.
    """
    if 0 < sampling.top_k < logp_BV.shape[1]:
        least_B1 = logp_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logp_BV = _keep(logp_BV, logp_BV >= least_B1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = logp_BV.sort(dim=-1, descending=True)
        p_BV = sorted_BV.exp()
        kept_BV = p_BV.cumsum(dim=-1) - p_BV < sampling.top_p  # the mass before a token is short of top_p
        logp_BV = _keep(logp_BV, torch.zeros_like(kept_BV).scatter_(1, order_BV, kept_BV))
    if sampling.min_p > 0:
        logp_BV = _keep(logp_BV, logp_BV >= logp_BV.amax(dim=-1, keepdim=True) + math.log(sampling.min_p))
    return logp_BV


def _keep(logp_BV: Tensor, kept_BV: Tensor) -> Tensor:
    return torch.log_softmax(logp_BV.masked_fill(~kept_BV, -torch.inf), dim=-1)
