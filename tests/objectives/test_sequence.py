"""The sequence objective of a tiny autoregressive model, enumerated.

The student is a table of logits, one row per prefix, V = 3 and at most 3 tokens; with an end token,
sequences stop where it is drawn. Every sequence is one entry of the batch, its gradient weighted by its
probability, so each expectation below is exact:

    J = E_{y~p} sum_t D_t                                      what is minimised
    discount = 1     E[fused gradient] = grad J                for every support
    discount = 0     E[fused gradient] = E sum_t grad D_t      with the prefixes' frequencies held fixed
    in between       E sum_t [grad D_t + grad log p(y_t) sum_{u>t} discount^(u-t) D_u]

Shape legend: P prefixes, B sequences, N tokens of all of them, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Target, Tokens
from tests._naive import jsd, kl, naive_loss

from .helpers import (
    UNCAPPED,
    at,
    close,
    dense,
    distillation_loss,
    finite_difference,
    identity,
    log_softmax,
    randn,
    target,
)

V = 3
T = 0.7
EOS = 2


@dataclass(frozen=True, eq=False)
class World:
    """All sequences of a length, flattened: token n is `sampled_N[n]` after prefix `prefix_N[n]`."""

    prefixes: int
    sequences: list[tuple[int, ...]]
    prefix_N: Tensor
    sampled_N: Tensor
    sequence_N: Tensor

    def probability(self, table_PV: Tensor) -> Tensor:
        """[B] probability of each sequence under a table of log-probs."""
        logp_N = table_PV[self.prefix_N, self.sampled_N]
        return torch.zeros(len(self.sequences)).index_add(0, self.sequence_N, logp_N).exp()


def world(length: int, ends: bool) -> World:
    def cut(y: tuple[int, ...]) -> tuple[int, ...]:
        return y[: y.index(EOS) + 1] if ends and EOS in y else y

    sequences = sorted({cut(y) for y in itertools.product(range(V), repeat=length)})
    prefixes = {y[:t]: None for y in sequences for t in range(len(y))}
    number = {prefix: i for i, prefix in enumerate(prefixes)}
    flat = [(number[y[:t]], y[t], b) for b, y in enumerate(sequences) for t in range(len(y))]
    return World(len(prefixes), sequences, *(torch.tensor(column) for column in zip(*flat, strict=True)))


WORLDS = {"fixed-length": world(3, ends=False), "with-end-token": world(3, ends=True)}
every_world = pytest.mark.parametrize("w", WORLDS.values(), ids=WORLDS.keys())
every_support = pytest.mark.parametrize("support", ["sampled", 1, 2, "full"])


def tables(w: World, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """[P, V] raw logits of student, teacher and reference."""
    return tuple(randn(seed + i, w.prefixes, V) for i in range(3))  # type: ignore[return-value]


def expected_gradient(
    objective: ObjectiveConfig,
    w: World,
    z_PV: Tensor,
    u_PV: Tensor,
    *,
    ref_PV: Tensor | None = None,
    mu_PV: Tensor | None = None,
    reward_B: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """[P, V] sum over sequences of mu(sequence) times its fused gradient with respect to the table.

    `mu_PV` are the sampler's log-probs, the student's own where absent.
    """
    logp_PV = log_softmax(z_PV, T)
    mu_PV = logp_PV if mu_PV is None else mu_PV
    behaviour_N = mu_PV[w.prefix_N, w.sampled_N]
    advantage_N = None if reward_B is None else reward_B[w.sequence_N]
    tokens = Tokens(w.sampled_N, w.sequence_N, behaviour_N, advantage_N)
    teacher: Target = dense(u_PV[w.prefix_N])
    if objective.support not in ("full", "student_top"):
        teacher = target(objective.support, log_softmax(u_PV, T)[w.prefix_N], w.sampled_N)
    hidden_NV = z_PV[w.prefix_N].requires_grad_()
    reference = None if ref_PV is None else dense(ref_PV[w.prefix_N])
    loss, _ = distillation_loss(objective, T, hidden_NV, identity(V), tokens, teacher, 1.0, reference, **options)
    (grad_NV,) = torch.autograd.grad(loss, hidden_NV)
    weighted_NV = w.probability(mu_PV)[w.sequence_N, None] * grad_NV
    return torch.zeros_like(z_PV).index_add(0, w.prefix_N, weighted_NV)


def sequence_objective(
    w: World, z_PV: Tensor, u_PV: Tensor, ref_PV: Tensor | None = None, weight: float = 0.0
) -> Tensor:
    """J from its definition on sampled log-ratios: E_y sum_t r_t, the reference's included."""
    logp_PV = log_softmax(z_PV, T)
    ratio_PV = logp_PV - log_softmax(u_PV, T)
    if ref_PV is not None:
        ratio_PV = ratio_PV + weight * (logp_PV - log_softmax(ref_PV, T))
    ratio_N = ratio_PV[w.prefix_N, w.sampled_N]
    return (w.probability(logp_PV)[w.sequence_N] * ratio_N).sum()


def reach(w: World, mu_PV: Tensor) -> Tensor:
    """[P] how often each prefix is reached under mu, from the log-probs of its tokens."""
    probability_B = w.probability(mu_PV)
    return torch.zeros(w.prefixes).index_add(0, w.prefix_N, probability_B[w.sequence_N])


def test_the_worlds_are_complete() -> None:
    """Probabilities of all sequences sum to 1, and J has the same value token by token: E sum_t D_t."""
    assert len(WORLDS["fixed-length"].sequences) == 27
    assert sorted(len(y) for y in WORLDS["with-end-token"].sequences) == [1, 2, 2] + [3] * 12
    for w in WORLDS.values():
        z_PV, u_PV, _ = tables(w, 0)
        logp_PV, logq_PV = log_softmax(z_PV, T), log_softmax(u_PV, T)
        close(w.probability(logp_PV).sum(), torch.ones(()))
        kl_P = torch.stack([kl(p, q) for p, q in zip(logp_PV, logq_PV, strict=True)])
        close(sequence_objective(w, z_PV, u_PV), (reach(w, logp_PV) * kl_P).sum())


@every_world
@every_support
def test_undiscounted_gradient_is_that_of_j(w: World, support: int | str) -> None:
    """discount = 1: E_{y~p}[fused gradient] = grad J, by finite differences of J."""
    z_PV, u_PV, _ = tables(w, 3)
    got_PV = expected_gradient(ReverseKLConfig(support=support, discount=1.0), w, z_PV, u_PV)
    slope_PV = finite_difference(lambda x: sequence_objective(w, x, u_PV), z_PV)
    close(got_PV, slope_PV, 1e-8)


@every_world
@pytest.mark.parametrize("k", [1, 2, V])
def test_undiscounted_gradient_on_the_students_own_top_is_that_of_j(w: World, k: int) -> None:
    z_PV, u_PV, _ = tables(w, 1)
    slope_PV = finite_difference(lambda x: sequence_objective(w, x, u_PV), z_PV)
    objective = ReverseKLConfig(support="student_top", k=k, discount=1.0)
    close(expected_gradient(objective, w, z_PV, u_PV), slope_PV, 1e-8)


@every_world
@every_support
def test_gradient_at_discount_zero_is_the_per_token_part(w: World, support: int | str) -> None:
    """discount = 0: E_{y~p}[fused gradient] = sum_prefix d(prefix) grad D(prefix), d held fixed."""
    z_PV, u_PV, _ = tables(w, 6)
    got_PV = expected_gradient(ReverseKLConfig(support=support), w, z_PV, u_PV)
    reached_P, logq_PV = reach(w, log_softmax(z_PV, T)), log_softmax(u_PV, T)

    def frozen(x_PV: Tensor) -> Tensor:
        logp_PV = log_softmax(x_PV, T)
        return (reached_P[:, None] * logp_PV.exp() * (logp_PV - logq_PV)).sum()

    close(got_PV, finite_difference(frozen, z_PV), 1e-8)
    slope_PV = finite_difference(lambda x: sequence_objective(w, x, u_PV), z_PV)
    assert (got_PV - slope_PV).abs().max() > 1e-3  # the other term is there to be missed


@every_world
@every_support
@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 1.0])
def test_gradient_at_any_discount_follows_the_formula(w: World, support: int | str, discount: float) -> None:
    """E sum_t [grad D_t + grad log p(y_t) sum_{u>t} discount^(u-t) D_u], with exact D_u."""
    z_PV, u_PV, _ = tables(w, 9)
    got_PV = expected_gradient(ReverseKLConfig(support=support, discount=discount), w, z_PV, u_PV)

    z_PV.requires_grad_()
    logp_PV, logq_PV = log_softmax(z_PV, T), log_softmax(u_PV, T)
    kl_P = torch.stack([kl(p, q) for p, q in zip(logp_PV, logq_PV, strict=True)])
    probability_B = w.probability(logp_PV).detach()
    wanted = torch.zeros(())
    for n, b in enumerate(w.sequence_N.tolist()):
        later = [m for m in range(n + 1, len(w.sequence_N)) if w.sequence_N[m] == b]
        future = sum((discount ** (m - n) * kl_P[w.prefix_N[m]].detach() for m in later), torch.zeros(()))
        logp = logp_PV[w.prefix_N[n], w.sampled_N[n]]
        wanted = wanted + probability_B[b] * (kl_P[w.prefix_N[n]] + future * logp)
    close(got_PV, torch.autograd.grad(wanted, z_PV)[0])


@every_world
@every_support
def test_j_with_a_reference_and_rewards(w: World, support: int | str) -> None:
    """discount = 1: E[fused gradient] = grad [J + weight J_ref - E_y R(y)], R the sequence's reward."""
    z_PV, u_PV, ref_PV = tables(w, 12)
    reward_B = randn(15, len(w.sequences))
    objective = ReverseKLConfig(support=support, discount=1.0, reference=ReferenceConfig(weight=0.4))
    got_PV = expected_gradient(objective, w, z_PV, u_PV, ref_PV=ref_PV, reward_B=reward_B)

    def total(x_PV: Tensor) -> Tensor:
        reward = (w.probability(log_softmax(x_PV, T)) * reward_B).sum()
        return sequence_objective(w, x_PV, u_PV, ref_PV, weight=0.4) - reward

    close(got_PV, finite_difference(total, z_PV), 1e-8)


@every_world
@pytest.mark.parametrize(
    "objective",
    [
        ForwardKLConfig(discount=1.0),
        JSDConfig(beta=0.3, discount=1.0),
        ForwardKLConfig(discount=1.0, support=1),
        JSDConfig(beta=0.3, discount=1.0, support=2),
        JSDConfig(beta=0.3, discount=1.0, support="sampled"),
    ],
    ids=["fkl", "jsd", "fkl-top-1", "jsd-top-2", "jsd-sampled"],
)
def test_undiscounted_gradient_of_other_divergences(w: World, objective: ObjectiveConfig) -> None:
    """discount = 1: E_{y~p}[fused gradient] = grad E_{y~p} sum_t divergence_t."""
    z_PV, u_PV, _ = tables(w, 16)
    got_PV = expected_gradient(objective, w, z_PV, u_PV)

    def total(x_PV: Tensor) -> Tensor:
        logp_PV, logq_PV = log_softmax(x_PV, T), log_softmax(u_PV, T)
        divergence_P = torch.stack(
            [
                jsd(objective.beta, p, q) if isinstance(objective, JSDConfig) else kl(q, p)
                for p, q in zip(logp_PV, logq_PV, strict=True)
            ]
        )
        return (reach(w, logp_PV) * divergence_P).sum()

    close(got_PV, finite_difference(total, z_PV), 1e-8)


@every_world
@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_a_matched_student_rests(w: World, discount: float) -> None:
    """p = q everywhere: every term of the gradient is zero, the future's too."""
    z_PV, _, _ = tables(w, 19)
    for support in ("sampled", 2, "full"):
        got_PV = expected_gradient(ReverseKLConfig(support=support, discount=discount), w, z_PV, z_PV)
        close(got_PV, torch.zeros_like(z_PV), 1e-13)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("support", ["sampled", 2, "full"])
def test_gradient_of_j_does_not_see_chunk_borders(support: int | str, chunk: int) -> None:
    """discount = 1 with chunks that cut sequences anywhere: E[fused gradient] = grad J."""
    w = WORLDS["with-end-token"]
    z_PV, u_PV, _ = tables(w, 22)
    objective = ReverseKLConfig(support=support, discount=1.0)
    got_PV = expected_gradient(objective, w, z_PV, u_PV, chunk_bytes=4 * V * chunk)
    slope_PV = finite_difference(lambda x: sequence_objective(w, x, u_PV), z_PV)
    close(got_PV, slope_PV, 1e-8)


# --- Sampled by another policy ------------------------------------------------------------------------


@pytest.mark.parametrize("support", ["sampled", 1, 2, "full"])
@pytest.mark.parametrize("discount", [0.3, 1.0])
def test_future_divergences_of_stale_samples_are_unbiased(support: int | str, discount: float) -> None:
    """Two tokens from mu, cap out of reach, the same for every support:

    E_{y~mu}[fused gradient] = E_mu [ grad D_1 + grad D_2 + w_1 grad log p(y_1) discount D_2 ].

    The future term needs E_mu[estimate of D_2 | prefix] = D_2, so a sampled estimate carries its w_2.
    """
    w = world(2, ends=False)
    z_PV, u_PV, mu_PV = tables(w, 25)
    mu_PV = log_softmax(mu_PV)
    objective = ReverseKLConfig(support=support, discount=discount, importance_cap=UNCAPPED)
    got_PV = expected_gradient(objective, w, z_PV, u_PV, mu_PV=mu_PV)

    z_PV.requires_grad_()
    logp_PV, logq_PV = log_softmax(z_PV, T), log_softmax(u_PV, T)
    kl_P = torch.stack([kl(p, q) for p, q in zip(logp_PV, logq_PV, strict=True)])
    wanted = (reach(w, mu_PV) * kl_P).sum()
    first, second = 0, {int(w.sampled_N[n]): int(w.prefix_N[n + 1]) for n in range(0, len(w.sampled_N), 2)}
    for y in range(V):  # E_mu[w_1 f(y)] = sum_y p(y) f(y)
        wanted = wanted + logp_PV[first, y].detach().exp() * logp_PV[first, y] * discount * (kl_P[second[y]].detach())
    close(got_PV, torch.autograd.grad(wanted, z_PV)[0])


@pytest.mark.parametrize("support", ["sampled", 2, "full"])
@pytest.mark.parametrize("cap", [1.0, 1.4])
def test_what_a_token_does_later_is_weighted_and_truncated(support: int | str, cap: float) -> None:
    """Stale first tokens, fresh second ones: the future's share is min(w_1, cap) D_2 grad log p(y_1).

    Read off as the difference between discounts 1 and 0, which shares everything else.
    """
    w = world(2, ends=False)
    z_PV, u_PV, _ = tables(w, 28)
    logp_PV = log_softmax(z_PV, T)
    weight_V = torch.tensor([0.5, 1.2, 6.0])
    behaviour_N = logp_PV[w.prefix_N, w.sampled_N]
    first_N = torch.arange(len(behaviour_N)) % 2 == 0
    behaviour_N = torch.where(first_N, behaviour_N - weight_V[w.sampled_N].log(), behaviour_N)
    tokens = Tokens(w.sampled_N, w.sequence_N, behaviour_N)
    grads, estimate_N = [], torch.zeros(())
    for discount in (0.0, 1.0):
        hidden_NV = z_PV[w.prefix_N].requires_grad_()
        objective = ReverseKLConfig(support=support, discount=discount, importance_cap=cap)
        teacher: Target = dense(u_PV[w.prefix_N])
        loss, measured = distillation_loss(objective, T, hidden_NV, identity(V), tokens, teacher, 1.0)
        grads.append(torch.autograd.grad(loss, hidden_NV)[0])
        estimate_N = measured.objective
    later_NV = grads[1] - grads[0]
    close(later_NV[~first_N], torch.zeros(9, V))
    score_NV = (torch.eye(V)[w.sampled_N] - logp_PV[w.prefix_N].exp())[first_N] / T
    weight_N = weight_V[w.sampled_N][first_N].clamp(max=cap)
    close(later_NV[first_N], (weight_N * estimate_N[~first_N])[:, None] * score_NV)


# --- Against the twin ---------------------------------------------------------------------------------


@every_world
@every_support
@pytest.mark.parametrize("discount", [0.35, 1.0])
def test_each_sequence_equals_the_naive_twin(w: World, support: int | str, discount: float) -> None:
    """Sample by sample: the fused gradient is that of the surrogate, discounted future and all."""
    z_PV, u_PV, ref_PV = tables(w, 31)
    objective = ReverseKLConfig(support=support, discount=discount, reference=ReferenceConfig(weight=0.4))
    logp_PV, logq_PV, logref_PV = (log_softmax(x, T) for x in (z_PV, u_PV, ref_PV))
    behaviour_N = logp_PV[w.prefix_N, w.sampled_N]
    tokens = Tokens(w.sampled_N, w.sequence_N, behaviour_N, randn(34, len(behaviour_N)))
    hidden_NV = z_PV[w.prefix_N].requires_grad_()
    twin = naive_loss(objective, T, hidden_NV, logq_PV[w.prefix_N], tokens, 6.0, logref_PV[w.prefix_N])
    teacher: Target = dense(u_PV[w.prefix_N])
    if support != "full":
        teacher = target(support, logq_PV[w.prefix_N], w.sampled_N)
    loss, _ = distillation_loss(objective, T, hidden_NV, identity(V), tokens, teacher, 6.0, dense(ref_PV[w.prefix_N]))
    close(loss.detach(), twin.value.detach())
    close(*(torch.autograd.grad(x, hidden_NV)[0] for x in (loss, twin.surrogate)))
    close(at(logp_PV[w.prefix_N], w.sampled_N), behaviour_N)
