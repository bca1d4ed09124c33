"""Spans of text in the tokens of two tokenizers: the log-ratio of a group, and what it does to its tokens.

A group g is a run of sampled tokens whose text the teacher says in tokens of its own. With sums over both sides

    r_g = sum_{t in g} log p(y_t) - sum_{s in g} log q(x_s)        w_g = min(prod_{t in g} p(y_t) / mu(y_t), cap)

every token of the group has the coefficient sg[w_g r_g]: a group is one action. So the sums over a whole group have to
be known before the gradient of its last token is formed, and all sampled tokens go through the head once before.

The estimate of the divergence, w_g r_g, stands at a group's *first* token and 0 at its others. Then "what comes after a
token", which a discount weighs, is what comes after its group. And so is the group that ends just before a token: that
it ends there follows from the token too, where the teacher might have said both in one ("hel" before "p" is a group,
before "lo" it is none). What a token decides in this way is weighed by the discount, once.

Shape legend: N tokens, C tokens of one chunk, G groups, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.objectives.targets import Grouped, Tokens


@dataclass(frozen=True, eq=False)
class GroupTerms:
    """Of each token, what its group says."""

    coefficient_N: Tensor  # w_g r_g
    value_N: Tensor  # the same at the first token of a group, 0 at its others
    before_N: Tensor  # that of the group before, at the first token of a group; 0 at its others
    teacher_logprob_N: Tensor  # an equal share of the group's log q: the sum over a group is right


def group_terms(target: Grouped, tokens: Tokens, logp_N: Tensor, cap: float) -> GroupTerms:
    """`logp_N` are the student's log-probs of the sampled tokens, `cap` that of an importance ratio."""
    group_N, groups = target.group_N, len(target.logprobs_G)

    def total_of(values_N: Tensor) -> Tensor:
        return logp_N.new_zeros(groups).index_add_(0, group_N, values_N.to(logp_N.dtype))

    logp_G, logq_G = total_of(logp_N), target.logprobs_G.to(logp_N.dtype)
    weight_G = (logp_G - total_of(tokens.behaviour_N)).clamp(max=math.log(cap)).exp()
    coefficient_N = (weight_G * (logp_G - logq_G))[group_N]
    first_N = torch.ones_like(group_N, dtype=torch.bool)
    first_N[1:] = group_N[1:] != group_N[:-1]
    before_N = torch.zeros_like(coefficient_N)
    closes_N = first_N[1:] & (tokens.sequence_N[1:] == tokens.sequence_N[:-1])
    before_N[1:] = torch.where(closes_N, coefficient_N[:-1], 0.0)
    share_G = logq_G / total_of(torch.ones_like(logp_N))
    return GroupTerms(coefficient_N, torch.where(first_N, coefficient_N, 0.0), before_N, share_G[group_N])
