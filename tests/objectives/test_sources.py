"""Tokens that others than the student wrote: what is exact of them, by enumeration, and what is not.

Shape legend: V vocabulary. y the token that is there, mu the policy that wrote it, delta the point mass on y.
"""

from __future__ import annotations

import pytest
import torch

from limbeck.config.sources import UNCAPPED as LEAST_CAP
from limbeck.objectives import JSD, ForwardKL, Loss, Objective, ReverseKL, TopK

from .helpers import (
    UNCAPPED,
    alone,
    close,
    every_token,
    expected,
    finite_difference,
    gradient_of,
    log_softmax,
    randn,
)
from .test_supports import divergence

V, T = 5, 0.7
OBJECTIVES = [ReverseKL(), ForwardKL(), JSD(0.3)]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: type(x).__name__)


@every_objective
@pytest.mark.parametrize("support", ["sampled", 1, 2, "full"])
def test_where_the_teacher_sampled_the_ratio_makes_every_support_exact(objective: Objective, support) -> None:
    z_V, u_V = randn(60, V, scale=2.0), randn(61, V, scale=2.0)
    loss = Loss(objective, support=support, importance_cap=UNCAPPED)
    grad_VV, q_V, measured = every_token(loss, T, z_V, u_V, mu_V=log_softmax(u_V, T))
    close(expected(grad_VV, q_V), finite_difference(lambda x: divergence(objective, x, u_V), z_V), 1e-8)
    close(expected(measured.objective, q_V), divergence(objective, z_V, u_V))


def test_a_cap_on_the_ratio_to_the_teacher_is_a_bias_and_the_least_that_is_taken_is_none() -> None:
    z_V, u_V = randn(60, V, scale=2.0), randn(61, V, scale=2.0)
    slope_V = finite_difference(lambda x: divergence(ReverseKL(), x, u_V), z_V)
    off = {}
    for cap in (2.0, LEAST_CAP):
        loss = Loss(ReverseKL(), support="sampled", importance_cap=cap)
        grad_VV, q_V, _ = every_token(loss, T, z_V, u_V, mu_V=log_softmax(u_V, T))
        off[cap] = float((expected(grad_VV, q_V) - slope_V).abs().max())
    assert off[2.0] > 0.1 * float(slope_V.abs().max())
    assert off[LEAST_CAP] < 1e-8


@every_objective
def test_on_full_support_a_token_of_unknown_probability_has_the_exact_gradient(objective: Objective) -> None:
    z_V, u_V, unknown_V = randn(62, V), randn(63, V), torch.full((V,), torch.nan, dtype=torch.float64)
    grad_VV, _, measured = every_token(Loss(objective), T, z_V, u_V, mu_V=unknown_V)
    slope_V = finite_difference(lambda x: divergence(objective, x, u_V), z_V)
    for row_V in grad_VV:
        close(row_V, slope_V, 1e-8)
    assert measured.objective.isfinite().all()


@pytest.mark.parametrize("loss", [Loss(ReverseKL(), support="sampled"), Loss(ReverseKL(), support=2)])
def test_elsewhere_it_has_no_gradient_at_all_rather_than_a_biased_one(loss: Loss) -> None:
    unknown_V = torch.full((V,), torch.nan, dtype=torch.float64)
    grad_VV, _, _ = every_token(loss, T, randn(62, V), randn(63, V), mu_V=unknown_V)
    assert grad_VV.isnan().any()


def test_a_point_mass_on_the_token_has_the_gradient_of_cross_entropy() -> None:
    """KL(delta || p) = -log p(y): the teacher's top 1 is y itself, and no weight of the token is asked for."""
    z_VV, y_V = randn(64, V, V), torch.arange(V)
    certain_V = torch.zeros(V, dtype=torch.float64)
    target = TopK(y_V[:, None], certain_V[:, None], certain_V)
    tokens = alone(y_V, torch.full((V,), torch.nan, dtype=torch.float64))
    loss = Loss(ForwardKL(), support=1)
    grad_VV, _, measured = gradient_of(loss, T, z_VV, tokens, target)
    logits_VV = z_VV.clone().requires_grad_()
    nll_V = torch.nn.functional.cross_entropy(logits_VV / T, y_V, reduction="none")
    nll_V.sum().backward()
    close(grad_VV, logits_VV.grad, 1e-10)
    close(measured.objective, nll_V.detach())
