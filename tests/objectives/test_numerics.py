"""Extreme logits in float32: what is finite on paper is finite here; what is infinite stops the step.

Finite logits make every divergence finite (log-probs are computed, never logs of probabilities), however
many probabilities underflow. A log-prob of -inf, which a masked vocabulary or a served top-K can bring,
may make it truly infinite: then the loss is not finite, which the learner takes for `NonFiniteError`.

Shape legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Head, Sampled, TopK

from .helpers import alone, at, dense, distillation_loss, gradient_of, log_softmax, name, randn

OBJECTIVES: list[ObjectiveConfig] = [
    ReverseKLConfig(),
    ReverseKLConfig(support="sampled"),
    ReverseKLConfig(support=2),
    ReverseKLConfig(discount=1.0, reference=ReferenceConfig(weight=0.5)),
    ForwardKLConfig(),
    ForwardKLConfig(discount=1.0),
    JSDConfig(beta=0.0),
    JSDConfig(beta=0.01),
    JSDConfig(beta=0.5),
    JSDConfig(beta=0.99),
    JSDConfig(beta=1.0),
    JSDConfig(beta=0.5, support="sampled"),
    JSDConfig(beta=0.5, support=2, discount=1.0),
]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=name)
one = torch.float32

EXTREMES = {
    "confident-and-opposed": ([1e4, -1e4, 0.0, 3.0], [-1e4, 1e4, 0.0, 3.0]),
    "confident-and-agreed": ([1e4, -1e4, 0.0, 3.0], [1e4, -1e4, 5.0, -7.0]),
    "confident-student": ([1e4, 0.0, 0.0, 0.0], [0.1, 0.2, 0.3, 0.4]),
    "confident-teacher": ([0.1, 0.2, 0.3, 0.4], [0.0, 1e4, 0.0, 0.0]),
    "tie-far-above": ([1e4, 1e4, -1e4, -1e4], [1e4, -1e4, 1e4, -1e4]),
    "shifted-far-up": ([1e4, 10001.0, 9999.0, 1e4], [1e4, 9999.0, 10001.0, 1e4]),
    "shifted-far-down": ([-1e4, -10001.0, -9999.0, -1e4], [-1e4, -9999.0, -10001.0, -1e4]),
}


def rows(logits: list[float]) -> Tensor:
    """[4, 4] one row per token that might have been sampled."""
    return torch.tensor(logits, dtype=one).expand(4, -1).clone()


@every_objective
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
@pytest.mark.parametrize("extreme", EXTREMES)
def test_finite_logits_give_finite_numbers(objective: ObjectiveConfig, temperature: float, extreme: str) -> None:
    """Every token sampled by turns, the impossible ones too; everything measured is finite."""
    z_NV, u_NV = (rows(x) for x in EXTREMES[extreme])
    tokens = alone(torch.arange(4), torch.full((4,), -1.0, dtype=one), torch.ones(4, dtype=one))
    reference = dense(rows([0.0, 0.0, 1e4, 0.0])) if objective.reference else None
    grad_NV, loss, measured = gradient_of(objective, temperature, z_NV, tokens, dense(u_NV), reference=reference)
    assert grad_NV.dtype == loss.dtype == one
    assert loss.isfinite()
    assert grad_NV.isfinite().all()
    assert all(x.isfinite().all() for x in vars(measured).values() if x is not None)


@pytest.mark.parametrize("objective", [ForwardKLConfig(), ReverseKLConfig(), JSDConfig(beta=0.3)], ids=name)
def test_float32_keeps_the_value_where_probabilities_underflow(objective: ObjectiveConfig) -> None:
    """p or q is exactly 0 in float32, yet value and gradient are those of float64 (where exp(-300) is not)."""
    z_NV, u_NV = rows([300.0, 0.0, -2.0, 1.0]), rows([0.0, 0.5, 300.0, -1.0])
    for a, b in ((z_NV, u_NV), (u_NV, z_NV)):
        assert (log_softmax(a).exp() == 0).any()
        assert not (log_softmax(a.double()).exp() == 0).any()
        tokens = alone(torch.arange(4), torch.zeros(4, dtype=one))
        grad_NV, loss, _ = gradient_of(objective, 1.0, a, tokens, dense(b))
        wide = alone(torch.arange(4), torch.zeros(4))
        wanted_NV, wanted, _ = gradient_of(objective, 1.0, a.double(), wide, dense(b.double()))
        torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(grad_NV.double(), wanted_NV, rtol=1e-5, atol=1e-5)


def test_forward_kl_still_pulls_where_the_student_has_underflowed() -> None:
    """The teacher is sure of token 1, where p = exp(-2e4) = 0: KL(q || p) = 2e4 and its gradient is p - q."""
    z_NV, u_NV = rows([1e4, -1e4, 0.0, 0.0]), rows([-1e4, 1e4, 0.0, 0.0])
    tokens = alone(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=one))
    grad_NV, loss, _ = gradient_of(ForwardKLConfig(), 1.0, z_NV, tokens, dense(u_NV), 4.0)
    assert loss == 2e4
    torch.testing.assert_close(grad_NV * 4, torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=one).expand(4, -1))


def test_jsd_of_disjoint_policies_is_bounded() -> None:
    """H(beta) = -beta log beta - (1 - beta) log(1 - beta), though one side's log-probs are -2e4."""
    z_NV, u_NV = rows([1e4, -1e4, -1e4, -1e4]), rows([-1e4, 1e4, -1e4, -1e4])
    for beta in (0.01, 0.5, 0.9):
        tokens = alone(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=one))
        _, loss, _ = gradient_of(JSDConfig(beta=beta), 1.0, z_NV, tokens, dense(u_NV), 4.0)
        entropy = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
        assert loss.item() == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("objective", [ReverseKLConfig(support="sampled"), ReverseKLConfig(support=2)], ids=name)
def test_a_ratio_that_overflows_is_truncated(objective: ObjectiveConfig) -> None:
    """p/mu = exp(200) is inf in float32 and counts as the cap; exp(-200) counts as nothing."""
    z_NV, u_NV = randn(0, 4, 4, dtype=one), randn(1, 4, 4, dtype=one)
    sampled_N = torch.arange(4)
    logp_N = at(log_softmax(z_NV), sampled_N)
    capped, overflowing, vanishing = (
        gradient_of(objective, 1.0, z_NV, alone(sampled_N, logp_N - gap), dense(u_NV))[0]
        for gap in (math.log(2.0) + 0.1, 200.0, -200.0)
    )
    assert torch.equal(capped, overflowing)
    assert vanishing.isfinite().all()
    if objective == ReverseKLConfig(support="sampled"):
        assert (vanishing == 0).all()


def test_soft_cap_saturates_quietly() -> None:
    """tanh is flat at 1e4: logits are +-softcap and no gradient passes, but no NaN either."""
    hidden_Nd = (1e4 * torch.eye(4, dtype=one)).requires_grad_()
    head = Head(torch.eye(4, dtype=one), softcap=30.0)
    u_NV = randn(2, 4, 4, dtype=one)
    tokens = alone(torch.arange(4), torch.zeros(4, dtype=one))
    loss, _ = distillation_loss(ReverseKLConfig(), 1.0, hidden_Nd, head, tokens, dense(u_NV), 4.0)
    loss.backward()
    assert loss.isfinite()
    assert hidden_Nd.grad is not None
    assert hidden_Nd.grad.isfinite().all()
    assert (hidden_Nd.grad.diagonal() == 0).all()


def test_kl_in_float32_is_not_noticeably_negative() -> None:
    """Almost equal policies over a real vocabulary: rounding stays below a millionth of a nat."""
    z_NV = randn(3, 16, 32_000, scale=3.0, dtype=one)
    u_NV = z_NV + 1e-4 * randn(4, 16, 32_000, dtype=one)
    hidden_N1 = torch.ones(1, 1, dtype=one)
    for z_V, u_V in zip(z_NV, u_NV, strict=True):  # one row at a time: logits are the head's weight
        for objective in (ReverseKLConfig(), ForwardKLConfig(), JSDConfig()):
            tokens = alone(torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=one))
            _, measured = distillation_loss(
                objective, 1.0, hidden_N1, Head(z_V[:, None]), tokens,
                Dense(hidden_N1, Head(u_V[:, None])), 1.0,
            )  # fmt: skip
            assert -1e-6 < measured.objective.item() < 1e-6


@pytest.mark.parametrize(
    "objective",
    [ReverseKLConfig(), ForwardKLConfig(), JSDConfig(), ReverseKLConfig(reference=ReferenceConfig(weight=1.0))],
    ids=name,
)
def test_float32_sums_do_not_drift_with_the_vocabulary(objective: ObjectiveConfig) -> None:
    """49k terms in float32: values to 5e-6 of float64's, and gradients that sum to zero over the vocabulary.

    Terms added one after another lose a digit more than this, and all in one direction.
    """
    count, width, vocabulary = 4, 16, 49_152
    hidden_Nd, weight_Vd = randn(20, count, width, dtype=one), randn(21, vocabulary, width, scale=0.5, dtype=one)
    policy = Dense(randn(22, count, width, dtype=one), Head(randn(23, vocabulary, width, scale=0.5, dtype=one)))
    reference = policy if objective.reference else None
    results = []
    for dtype in (one, torch.float64):
        bias_V = torch.zeros(vocabulary, dtype=dtype, requires_grad=True)
        teacher = Dense(policy.hidden_Nd.to(dtype), Head(policy.head.weight_Vd.to(dtype)))
        loss, measured = distillation_loss(
            objective,
            0.7,
            hidden_Nd.to(dtype).requires_grad_(),
            Head(weight_Vd.to(dtype), bias_V),
            alone(torch.arange(count), torch.zeros(count, dtype=dtype)),
            teacher,
            1.0,
            teacher if reference else None,
        )
        assert measured.reverse_kl is not None
        (grad_V,) = torch.autograd.grad(loss, bias_V)
        results.append([loss.detach(), measured.objective, measured.reverse_kl, measured.student_entropy])
        assert grad_V.double().sum().abs() < 1e-5 * loss
    for narrow, wide in zip(*results, strict=True):
        torch.testing.assert_close(narrow.double(), wide, rtol=5e-6, atol=0.0)


# --- Truly infinite -----------------------------------------------------------------------------------


def with_mask(logits_NV: Tensor, masked: int) -> Dense:
    """A policy that gives token `masked` no probability at all."""
    bias_V = torch.zeros(4, dtype=one)
    bias_V[masked] = -torch.inf
    return Dense(logits_NV, Head(torch.eye(4, dtype=one), bias_V))


@pytest.mark.parametrize("objective", [ReverseKLConfig(), ReverseKLConfig(discount=1.0)], ids=name)
def test_an_infinite_reverse_kl_is_not_hidden(objective: ObjectiveConfig) -> None:
    """q_v = 0 where p_v > 0: D = inf is the true answer, and the loss shows it."""
    z_NV, u_NV = randn(5, 4, 4, dtype=one), randn(6, 4, 4, dtype=one)
    tokens = alone(torch.arange(4), torch.zeros(4, dtype=one))
    _, loss, _ = gradient_of(objective, 1.0, z_NV, tokens, with_mask(u_NV, 2))
    assert loss == torch.inf


def test_an_infinite_forward_kl_is_not_hidden() -> None:
    """p_v = 0 where q_v > 0."""
    policy = with_mask(randn(7, 4, 4, dtype=one), 2)
    tokens = alone(torch.tensor([0, 1, 3, 0]), torch.zeros(4, dtype=one))
    loss, _ = distillation_loss(
        ForwardKLConfig(), 1.0, policy.hidden_Nd, policy.head, tokens, dense(randn(8, 4, 4, dtype=one)), 1.0
    )
    assert loss == torch.inf


@pytest.mark.parametrize("support", ["sampled", 2])
def test_an_impossible_sample_is_not_hidden(support: int | str) -> None:
    """The teacher serves -inf for the sampled token, or for one of its top K: r is infinite."""
    z_NV = randn(9, 4, 4, dtype=one)
    never_N, seldom_N = torch.full((4,), -torch.inf, dtype=one), torch.full((4,), -1.0, dtype=one)
    ids_N2 = torch.tensor([[1, 2]] * 4)
    tokens = alone(torch.zeros(4, dtype=torch.long), at(log_softmax(z_NV), torch.zeros(4, dtype=torch.long)))
    if support == "sampled":
        teachers = [Sampled(never_N)]
    else:
        teachers = [
            TopK(ids_N2, torch.stack([seldom_N, seldom_N], 1), never_N),
            TopK(ids_N2, torch.stack([seldom_N, never_N], 1), seldom_N),
        ]
    for teacher in teachers:
        _, loss, _ = gradient_of(ReverseKLConfig(support=support), 1.0, z_NV, tokens, teacher)
        assert loss == torch.inf


@pytest.mark.parametrize("objective", [ReverseKLConfig(), ForwardKLConfig(), JSDConfig()], ids=name)
def test_a_token_neither_side_can_say_stops_the_step(objective: ObjectiveConfig) -> None:
    """Both logits -inf: 0 log(0/0) is 0 on paper and NaN in floating point. Masked heads are not
    supported by the dense divergences (narrow the vocabulary instead), and they cannot go unnoticed."""
    student, teacher = with_mask(randn(10, 4, 4, dtype=one), 2), with_mask(randn(11, 4, 4, dtype=one), 2)
    tokens = alone(torch.tensor([0, 1, 3, 0]), torch.zeros(4, dtype=one))
    loss, _ = distillation_loss(objective, 1.0, student.hidden_Nd, student.head, tokens, teacher, 1.0)
    assert not loss.isfinite()


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@every_objective
def test_a_poisoned_hidden_state_reaches_the_loss(objective: ObjectiveConfig, poison: float) -> None:
    """One NaN among the student's hidden states: a non-finite loss, never a clean number."""
    z_NV, u_NV = randn(12, 4, 4, dtype=one), randn(13, 4, 4, dtype=one)
    z_NV[1, 0] = poison
    tokens = alone(torch.arange(4), torch.zeros(4, dtype=one))
    reference = dense(u_NV) if objective.reference else None
    _, loss, _ = gradient_of(objective, 1.0, z_NV, tokens, dense(u_NV), reference=reference)
    assert not loss.isfinite()
