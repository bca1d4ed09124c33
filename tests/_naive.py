"""The objectives again, slowly: all `[tokens, vocabulary]` tensors, loops and plain autograd.

Written from the definitions (docs: Notation and mathematics) and from nothing else, to be read next to
them. Where a gradient is that of the divergence itself, autograd differentiates the divergence; where it
is an estimator, the surrogate is spelled out with `.detach()` exactly as it stands on paper.

Shape legend: N tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReverseKLConfig
from limbeck.objectives import Tokens


@dataclass(frozen=True)
class Naive:
    """What the fused loss must equal: `value` in number, `surrogate` in gradient."""

    value: Tensor  # [] sum of the per-token divergence estimates over the denominator
    surrogate: Tensor  # [] differentiate this one
    estimate_N: Tensor  # per-token divergence estimates, detached


def naive_loss(
    objective: ObjectiveConfig,
    temperature: float,
    logits_NV: Tensor,
    logq_NV: Tensor,
    tokens: Tokens,
    denominator: float,
    logref_NV: Tensor | None = None,
) -> Naive:
    """The objective of `N` tokens from raw student logits and the teacher's log-probs at T.

    `logref_NV` are the reference policy's log-probs at T, wanted where the objective has a reference.
    A top-K support is the K largest entries of a row of `logq_NV`, or of log p.
    """
    logp_NV = torch.log_softmax(logits_NV / temperature, dim=-1)
    count = logits_NV.shape[0]
    estimates: list[Tensor] = []  # detached scalars, in nats
    surrogate = logits_NV.sum() * 0.0
    for t in range(count):
        logp_V, y = logp_NV[t], int(tokens.sampled_N[t])
        estimate = torch.zeros((), dtype=logits_NV.dtype)

        if objective.support != "full":
            term_V, slope_V = terms(objective, logp_V.detach(), logq_NV[t])
            if objective.reference is not None:
                assert logref_NV is not None
                to_reference_V = objective.reference.weight * (logp_V - logref_NV[t]).detach()
                term_V, slope_V = term_V + logp_V.detach().exp() * to_reference_V, slope_V + to_reference_V
            support: set[int] = set()
            if objective.support == "student_top":
                assert objective.k is not None
                support = top(logp_V, objective.k)
            elif objective.support != "sampled":
                support = top(logq_NV[t], objective.support)
            for v in support:
                estimate = estimate + term_V[v]
                surrogate = surrogate + (logp_V[v].exp() * slope_V[v]).detach() * logp_V[v]
            if y not in support:
                weight = importance(objective, tokens, logp_V, t)
                estimate = estimate + weight * term_V[y] / logp_V[y].detach().exp()
                surrogate = surrogate + weight * slope_V[y] * logp_V[y]
        else:
            divergence = dense_divergence(objective, logp_V, logq_NV[t])
            if objective.reference is not None:
                assert logref_NV is not None
                divergence = divergence + objective.reference.weight * kl(logp_V, logref_NV[t])
            estimate = estimate + divergence.detach()
            surrogate = surrogate + divergence
        estimates.append(estimate)

    return _with_what_comes_after(objective, logp_NV, tokens, denominator, estimates, surrogate)


def naive_groups(
    objective: ObjectiveConfig,
    temperature: float,
    logits_NV: Tensor,
    groups: list[list[int]],
    logq_G: Tensor,
    tokens: Tokens,
    denominator: float,
    logref_NV: Tensor | None = None,
) -> Naive:
    """The same where a teacher has other tokens: `groups` are the places of each group's tokens, in order.

    A group is one action: the sampled log-ratio of all of it is the coefficient of each of its tokens. With a discount
    it is that of the token after it too, which decides that the group ends there.
    """
    logp_NV = torch.log_softmax(logits_NV / temperature, dim=-1)
    estimates = [torch.zeros((), dtype=logits_NV.dtype) for _ in range(logits_NV.shape[0])]
    surrogate = logits_NV.sum() * 0.0
    before: dict[int, Tensor] = {}
    for g, places in enumerate(groups):
        sampled = [logp_NV[t, int(tokens.sampled_N[t])] for t in places]
        logp = torch.stack(sampled).sum().detach()
        logmu = torch.stack([tokens.behaviour_N[t] for t in places]).sum()
        weight = (logp - logmu).exp().clamp(max=objective.importance_cap)
        estimates[places[0]] = weight * (logp - logq_G[g])
        after = places[-1] + 1
        if after < len(estimates) and tokens.sequence_N[after] == tokens.sequence_N[places[-1]]:
            before[after] = weight * (logp - logq_G[g])
        for one in sampled:
            surrogate = surrogate + weight * (logp - logq_G[g]) * one
    if objective.reference is not None:
        assert logref_NV is not None
        for t in range(logits_NV.shape[0]):
            y = int(tokens.sampled_N[t])
            pull = objective.reference.weight * (logp_NV[t, y] - logref_NV[t, y]).detach()
            weight = importance(objective, tokens, logp_NV[t], t)
            estimates[t] = estimates[t] + weight * pull
            surrogate = surrogate + weight * pull * logp_NV[t, y]
    return _with_what_comes_after(objective, logp_NV, tokens, denominator, estimates, surrogate, before)


def _with_what_comes_after(
    objective: ObjectiveConfig,
    logp_NV: Tensor,
    tokens: Tokens,
    denominator: float,
    estimates: list[Tensor],
    surrogate: Tensor,
    before: dict[int, Tensor] | None = None,
) -> Naive:
    """What a token does to the divergences after it, to that `before` it which it closes, and its reward."""
    count = len(estimates)
    for t in range(count):
        y = int(tokens.sampled_N[t])
        cost = torch.zeros((), dtype=logp_NV.dtype)
        if before and t in before:
            cost = cost + objective.discount * before[t]
        for u in range(t + 1, count):
            if tokens.sequence_N[u] == tokens.sequence_N[t]:
                cost = cost + objective.discount ** (u - t) * estimates[u]
        if tokens.advantage_N is not None:
            cost = cost - tokens.advantage_N[t]
        weight = importance(objective, tokens, logp_NV[t], t)
        surrogate = surrogate + weight * cost * logp_NV[t, y]

    estimate_N = torch.stack(estimates) if estimates else logp_NV.new_zeros(0)
    return Naive(estimate_N.sum() / denominator, surrogate / denominator, estimate_N.detach())


def importance(objective: ObjectiveConfig, tokens: Tokens, logp_V: Tensor, t: int) -> Tensor:
    """min(p(y_t) / mu(y_t), cap), a constant."""
    ratio = (logp_V[int(tokens.sampled_N[t])] - tokens.behaviour_N[t]).exp()
    return ratio.clamp(max=objective.importance_cap).detach()


def top(logp_V: Tensor, k: int) -> set[int]:
    """The k most likely tokens."""
    return set(logp_V.topk(k).indices.tolist())


def kl(logp_V: Tensor, logq_V: Tensor) -> Tensor:
    """sum_v p_v (log p_v - log q_v)."""
    return (logp_V.exp() * (logp_V - logq_V)).sum()


def terms(objective: ObjectiveConfig, logp_V: Tensor, logq_V: Tensor) -> tuple[Tensor, Tensor]:
    """What each token adds to the divergence, and the derivative of that with respect to its p.

    p - q is taken off the reverse KL's terms before they are differentiated: it sums to 0, and takes off the 1.
    """
    p_V, q_V = logp_V.exp().requires_grad_(), logq_V.exp()
    if isinstance(objective, ReverseKLConfig) or (isinstance(objective, JSDConfig) and objective.beta == 1):
        term_V = p_V * torch.log(p_V / q_V)
        (slope_V,) = torch.autograd.grad((term_V - p_V + q_V).sum(), p_V)
        return term_V.detach(), slope_V
    if isinstance(objective, ForwardKLConfig) or (isinstance(objective, JSDConfig) and objective.beta == 0):
        term_V = q_V * torch.log(q_V / p_V)
    else:
        assert isinstance(objective, JSDConfig)
        m_V = objective.beta * q_V + (1 - objective.beta) * p_V
        term_V = objective.beta * q_V * torch.log(q_V / m_V) + (1 - objective.beta) * p_V * torch.log(p_V / m_V)
    (slope_V,) = torch.autograd.grad(term_V.sum(), p_V)
    return term_V.detach(), slope_V


def dense_divergence(objective: ObjectiveConfig, logp_V: Tensor, logq_V: Tensor) -> Tensor:
    """Student p against teacher q over the whole vocabulary."""
    if isinstance(objective, ReverseKLConfig):
        return kl(logp_V, logq_V)
    if isinstance(objective, ForwardKLConfig):
        return kl(logq_V, logp_V)
    assert isinstance(objective, JSDConfig)
    return jsd(objective.beta, logp_V, logq_V)


def jsd(beta: float, logp_V: Tensor, logq_V: Tensor) -> Tensor:
    """beta KL(q || m) + (1 - beta) KL(p || m), m = beta q + (1 - beta) p (Agarwal et al. 2024, eq. 3).

    By name 0 is the forward and 1 the reverse KL: the limits of JSDConfig / beta and JSDConfig / (1 - beta).
    """
    if beta == 0:
        return kl(logq_V, logp_V)
    if beta == 1:
        return kl(logp_V, logq_V)
    logm_V = torch.log(beta * logq_V.exp() + (1 - beta) * logp_V.exp())
    return beta * kl(logq_V, logm_V) + (1 - beta) * kl(logp_V, logm_V)
