"""Divergences over the whole vocabulary: their values, gradients and limits.

Notation: z, u raw logits of student and teacher, p = softmax(z/T), q = softmax(u/T). No sampling is
involved, so nothing here is an expectation: values and gradients are exact.

Shape legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReverseKLConfig
from limbeck.objectives import Dense, Head
from tests._naive import jsd, kl

from .helpers import (
    TEMPERATURES,
    alone,
    close,
    dense,
    finite_difference,
    gradient_of,
    log_softmax,
    name,
    randn,
)

EVERY = [
    ReverseKLConfig(),
    ForwardKLConfig(),
    JSDConfig(beta=0.0),
    JSDConfig(beta=0.1),
    JSDConfig(beta=0.5),
    JSDConfig(beta=0.8),
    JSDConfig(beta=1.0),
]
every_divergence = pytest.mark.parametrize("objective", EVERY, ids=name)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def divergence(objective: ObjectiveConfig, z_NV: Tensor, u_NV: Tensor, temperature: float = 1.0):
    """[N] fused value and [N, V] fused gradient with respect to z, unnormalised."""
    tokens = alone(torch.zeros(len(z_NV), dtype=torch.long), torch.zeros(len(z_NV)))
    grad_NV, _, measured = gradient_of(objective, temperature, z_NV, tokens, dense(u_NV))
    return measured.objective, grad_NV


def by_definition(objective: ObjectiveConfig, z_NV: Tensor, u_NV: Tensor, temperature: float) -> Tensor:
    """[] sum over tokens of the divergence, from probabilities."""
    total = torch.zeros(())
    for z_V, u_V in zip(z_NV, u_NV, strict=True):
        logp_V, logq_V = log_softmax(z_V, temperature), log_softmax(u_V, temperature)
        if isinstance(objective, JSDConfig):
            total = total + jsd(objective.beta, logp_V, logq_V)
        else:
            forward = isinstance(objective, ForwardKLConfig)
            total = total + (kl(logq_V, logp_V) if forward else kl(logp_V, logq_V))
    return total


@every_divergence
@every_temperature
def test_value_and_gradient_are_those_of_the_definition(objective: ObjectiveConfig, temperature: float) -> None:
    z_NV, u_NV = randn(0, 4, 6), randn(1, 4, 6)
    value_N, grad_NV = divergence(objective, z_NV, u_NV, temperature)

    z_NV.requires_grad_()
    wanted = by_definition(objective, z_NV, u_NV, temperature)
    close(value_N.sum(), wanted.detach())
    close(grad_NV, torch.autograd.grad(wanted, z_NV)[0])


@every_divergence
@every_temperature
def test_gradient_is_the_finite_difference(objective: ObjectiveConfig, temperature: float) -> None:
    z_NV, u_NV = randn(2, 2, 5), randn(3, 2, 5)
    _, grad_NV = divergence(objective, z_NV, u_NV, temperature)
    slope_NV = finite_difference(lambda x: by_definition(objective, x, u_NV, temperature), z_NV)
    close(grad_NV, slope_NV, 1e-7)


@every_temperature
def test_reverse_kl_gradient_has_its_closed_form(temperature: float) -> None:
    """grad D = (1/T) p (log p - log q - D)."""
    z_NV, u_NV = randn(4, 3, 7), randn(5, 3, 7)
    value_N, grad_NV = divergence(ReverseKLConfig(), z_NV, u_NV, temperature)
    logp_NV, logq_NV = log_softmax(z_NV, temperature), log_softmax(u_NV, temperature)
    close(grad_NV, logp_NV.exp() * (logp_NV - logq_NV - value_N[:, None]) / temperature)


@every_temperature
def test_forward_kl_gradient_has_its_closed_form(temperature: float) -> None:
    """grad KL(q || p) = (1/T) (p - q)."""
    z_NV, u_NV = randn(6, 3, 7), randn(7, 3, 7)
    _, grad_NV = divergence(ForwardKLConfig(), z_NV, u_NV, temperature)
    p_NV, q_NV = log_softmax(z_NV, temperature).exp(), log_softmax(u_NV, temperature).exp()
    close(grad_NV, (p_NV - q_NV) / temperature)


@every_divergence
def test_divergence_is_positive_unless_the_policies_are_one(objective: ObjectiveConfig) -> None:
    z_NV, u_NV = randn(8, 200, 5), randn(9, 200, 5)
    value_N, _ = divergence(objective, z_NV, u_NV)
    assert (value_N > 1e-4).all()

    near_N, _ = divergence(objective, z_NV, z_NV + 1e-3 * u_NV)
    assert (near_N >= 0).all()  # in float64, 1e-7 nats are far above rounding
    assert (near_N > 0).all()


@every_divergence
@every_temperature
def test_equal_policies_are_a_stationary_zero(objective: ObjectiveConfig, temperature: float) -> None:
    """D = 0 and grad D = 0 where p = q, though the logits differ by a constant per token."""
    z_NV = randn(10, 6, 5, scale=2.0)
    value_N, grad_NV = divergence(objective, z_NV, z_NV + randn(11, 6, 1, scale=9.0), temperature)
    close(value_N, torch.zeros(6), 1e-14)
    close(grad_NV, torch.zeros(6, 5), 1e-14)


@every_divergence
def test_logit_shifts_of_either_side_change_nothing(objective: ObjectiveConfig) -> None:
    z_NV, u_NV = randn(12, 4, 6), randn(13, 4, 6)
    value_N, grad_NV = divergence(objective, z_NV, u_NV, 0.7)
    close(grad_NV.sum(dim=1), torch.zeros(4), 1e-13)  # the same statement, differentiated
    for shift in (5.0, -300.0):
        for moved in ((z_NV + shift, u_NV), (z_NV, u_NV + shift)):
            shifted_N, shifted_grad_NV = divergence(objective, *moved, 0.7)
            close(shifted_N, value_N)
            close(shifted_grad_NV, grad_NV)


@every_divergence
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.5])
def test_temperature_divides_both_sides_and_the_gradient_once_more(
    objective: ObjectiveConfig, temperature: float
) -> None:
    """D_T(z, u) = D_1(z/T, u/T), hence G_T(z) = G_1(z/T) / T."""
    z_NV, u_NV = randn(14, 4, 6), randn(15, 4, 6)
    value_N, grad_NV = divergence(objective, z_NV, u_NV, temperature)
    plain_N, plain_grad_NV = divergence(objective, z_NV / temperature, u_NV / temperature)
    close(value_N, plain_N)
    close(grad_NV, plain_grad_NV / temperature)


@every_divergence
@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.5])
def test_a_teacher_left_at_temperature_one_teaches_the_wrong_logits(
    objective: ObjectiveConfig, temperature: float
) -> None:
    """KL(p_T || q_1) is stationary at z = T u instead of z = u: the bug this library exists to prevent.

    A teacher whose logits are multiplied by T beforehand stands at temperature 1 once T divides them.
    """
    u_NV = randn(16, 4, 6)
    left_at_one_NV = temperature * u_NV

    value_N, grad_NV = divergence(objective, u_NV, left_at_one_NV, temperature)
    assert (value_N > 1e-4).all()
    assert (grad_NV.abs().amax(dim=1) > 1e-3).all()
    value_N, grad_NV = divergence(objective, temperature * u_NV, left_at_one_NV, temperature)
    close(value_N, torch.zeros(4), 1e-14)
    close(grad_NV, torch.zeros(4, 6), 1e-14)

    value_N, grad_NV = divergence(objective, u_NV, u_NV, temperature)  # both at T: the right answer
    close(value_N, torch.zeros(4), 1e-14)
    close(grad_NV, torch.zeros(4, 6), 1e-14)


def test_jsd_takes_its_ends_from_the_kls() -> None:
    """By GKD's convention 0 is the forward and 1 the reverse KL, not the degenerate zero of eq. 3."""
    z_NV, u_NV = randn(17, 4, 6), randn(18, 4, 6)
    for beta, end in ((0.0, ForwardKLConfig()), (1.0, ReverseKLConfig())):
        for got, wanted in zip(
            divergence(JSDConfig(beta=beta), z_NV, u_NV, 0.7), divergence(end, z_NV, u_NV, 0.7), strict=True
        ):
            close(got, wanted)


def test_jsd_tends_to_beta_times_the_kls() -> None:
    """JSD / beta -> KL(q || p) as beta -> 0, and JSDConfig / (1 - beta) -> KL(p || q) as beta -> 1."""
    z_NV, u_NV = randn(19, 4, 6), randn(20, 4, 6)
    for beta, share, end in ((1e-6, 1e-6, ForwardKLConfig()), (1 - 1e-6, 1e-6, ReverseKLConfig())):
        value_N, grad_NV = divergence(JSDConfig(beta=beta), z_NV, u_NV, 0.7)
        wanted_N, wanted_grad_NV = divergence(end, z_NV, u_NV, 0.7)
        close(value_N / share, wanted_N, 1e-4)
        close(grad_NV / share, wanted_grad_NV, 1e-4)
    forward_N, _ = divergence(ForwardKLConfig(), z_NV, u_NV, 0.7)
    reverse_N, _ = divergence(ReverseKLConfig(), z_NV, u_NV, 0.7)
    assert ((forward_N - reverse_N).abs() > 1e-2).all()  # else the ends could be swapped unseen


def test_jsd_is_symmetric_at_one_half_and_mirrored_elsewhere() -> None:
    """JSD(beta)(q, p) = JSDConfig(1 - beta)(p, q); bounded by log 2 at one half."""
    z_NV, u_NV = randn(21, 4, 6, scale=3.0), randn(22, 4, 6, scale=3.0)
    for beta in (0.5, 0.2, 0.9):
        there_N, _ = divergence(JSDConfig(beta=beta), z_NV, u_NV, 0.7)
        back_N, _ = divergence(JSDConfig(beta=1 - beta), u_NV, z_NV, 0.7)
        close(there_N, back_N)
    half_N, _ = divergence(JSDConfig(beta=0.5), z_NV, u_NV, 0.7)
    assert (half_N < torch.log(torch.tensor(2.0))).all()
    skew_N, _ = divergence(JSDConfig(beta=0.2), z_NV, u_NV, 0.7)
    skew_back_N, _ = divergence(JSDConfig(beta=0.2), u_NV, z_NV, 0.7)
    assert ((skew_N - skew_back_N).abs() > 1e-3).any()


@every_divergence
def test_only_the_distribution_of_the_teacher_matters(objective: ObjectiveConfig) -> None:
    """A teacher of another width, bias, multiplier and soft cap: only its final logits count."""
    z_NV = randn(23, 4, 6)
    head = Head(randn(24, 6, 3), randn(25, 6), multiplier=1.7, softcap=2.0)
    teacher = Dense(randn(26, 4, 3), head)
    assert head.bias_V is not None
    u_NV = 2.0 * torch.tanh(1.7 * (teacher.hidden_Nd @ head.weight_Vd.T + head.bias_V) / 2.0)
    tokens = alone(torch.zeros(4, dtype=torch.long), torch.zeros(4))
    grad_NV, loss, _ = gradient_of(objective, 0.7, z_NV, tokens, teacher)
    wanted_grad_NV, wanted, _ = gradient_of(objective, 0.7, z_NV, tokens, dense(u_NV))
    close(loss, wanted)
    close(grad_NV, wanted_grad_NV)
