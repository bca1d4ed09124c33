"""One estimator family: every support has the gradient of D in expectation, and only these are offered.

    L_t = sum_{v in S} sg[p_v (log p_v - log q_v)] log p_v + 1[y not in S] sg[w r] log p(y)

S is the teacher's top K: empty is the sampled-token loss, the whole vocabulary the exact one. A test
that speaks of an expectation computes it exactly, from one gradient per token of the vocabulary.

Shape legend: N tokens, V vocabulary, K support size. y the sampled token, mu the sampler's policy.
"""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from tests._naive import kl, naive_loss

from .helpers import (
    TEMPERATURES,
    UNCAPPED,
    alone,
    at,
    close,
    dense,
    every_token,
    expected,
    finite_difference,
    gradient_of,
    log_softmax,
    name,
    randn,
    target,
)

V = 5
# "sampled" is K = 0, V a top-K that happens to be everything, "full" the dense path.
SUPPORTS: list[int | str] = ["sampled", 1, 2, 3, 4, V, "full"]
every_support = pytest.mark.parametrize("support", SUPPORTS)
every_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def reverse_kl(z_V: Tensor, u_V: Tensor, temperature: float) -> Tensor:
    return kl(log_softmax(z_V, temperature), log_softmax(u_V, temperature))


def grad_reverse_kl(z_V: Tensor, u_V: Tensor, temperature: float) -> Tensor:
    """[V] (1/T) p (log p - log q - D)."""
    logp_V, logq_V = log_softmax(z_V, temperature), log_softmax(u_V, temperature)
    return logp_V.exp() * (logp_V - logq_V - kl(logp_V, logq_V)) / temperature


def score(z_V: Tensor, temperature: float) -> Tensor:
    """[V, V] row y is grad log p(y) with respect to z: (e_y - p) / T."""
    return (torch.eye(len(z_V)) - log_softmax(z_V, temperature).exp()) / temperature


# --- The family ---------------------------------------------------------------------------------------


@every_support
@every_temperature
@pytest.mark.parametrize("compact", [True, False], ids=["teacher-compact", "teacher-dense"])
def test_expected_gradient_is_grad_d(support: int | str, temperature: float, compact: bool) -> None:
    """E_{y~p}[fused gradient] = grad D for every support, by closed form and by finite differences."""
    z_V, u_V = randn(0, V), randn(1, V)
    objective = ReverseKLConfig(support=support)
    grad_VV, p_V, _ = every_token(objective, temperature, z_V, u_V, compact=compact)
    close(expected(grad_VV, p_V), grad_reverse_kl(z_V, u_V, temperature))
    slope_V = finite_difference(lambda x: reverse_kl(x, u_V, temperature), z_V)
    close(expected(grad_VV, p_V), slope_V, 1e-8)


@every_support
def test_expected_value_is_d(support: int | str) -> None:
    """E_{y~p}[per-token estimate] = D for every support."""
    z_V, u_V = randn(2, V), randn(3, V)
    _, p_V, measured = every_token(ReverseKLConfig(support=support), 0.7, z_V, u_V)
    close(expected(measured.objective, p_V), reverse_kl(z_V, u_V, 0.7))


@every_support
def test_each_sample_follows_the_formula(support: int | str) -> None:
    """Not only on average: sample by sample, the gradient of L_t above (of D for the whole vocabulary)."""
    z_V, u_V, temperature = randn(4, V), randn(5, V), 0.7
    logp_V, logq_V = log_softmax(z_V, temperature), log_softmax(u_V, temperature)
    grad_VV, _, measured = every_token(ReverseKLConfig(support=support), temperature, z_V, u_V)
    score_VV, ratio_V = score(z_V, temperature), logp_V - logq_V
    size = {"sampled": 0, "full": V}.get(support, support) if isinstance(support, str) else support
    inside = logq_V.argsort(descending=True)[:size].tolist()
    for y in range(V):
        if support == "full":
            wanted_V, value = grad_reverse_kl(z_V, u_V, temperature), kl(logp_V, logq_V)
        else:
            wanted_V, value = torch.zeros(V), torch.zeros(())
            for v in inside:
                wanted_V = wanted_V + logp_V[v].exp() * ratio_V[v] * score_VV[v]
                value = value + logp_V[v].exp() * ratio_V[v]
            if y not in inside:
                wanted_V, value = wanted_V + ratio_V[y] * score_VV[y], value + ratio_V[y]
        close(grad_VV[y], wanted_V)
        close(measured.objective[y], value)


def test_variance_falls_to_nothing_with_the_support() -> None:
    """Total variance of the gradient under p: positive for the sampled token, zero for everything."""
    z_V, u_V = randn(6, V), randn(7, V)
    variances = []
    for support in SUPPORTS:
        grad_VV, p_V, _ = every_token(ReverseKLConfig(support=support), 1.0, z_V, u_V)
        mean_V = expected(grad_VV, p_V)
        variances.append(float(expected((grad_VV - mean_V).square().sum(dim=1), p_V)))
    assert variances[0] > 0.1
    assert max(variances[-2:]) < 1e-25


@every_support
def test_the_whole_family_rests_where_the_policies_agree(support: int | str) -> None:
    """At p = q every sample's gradient is zero, not only the mean: r vanishes token by token."""
    z_V = randn(8, V)
    grad_VV, _, measured = every_token(ReverseKLConfig(support=support), 0.7, z_V, z_V + 3.0)
    close(grad_VV, torch.zeros(V, V), 1e-13)
    close(measured.objective, torch.zeros(V), 1e-13)


@pytest.mark.parametrize("temperature", [0.3, 0.7, 1.5])
def test_sampled_teacher_left_at_temperature_one_moves_the_optimum(temperature: float) -> None:
    """Log-probs served at temperature 1 against p_T: E[gradient] vanishes at z = T u and not at z = u."""
    u_V = randn(9, V)
    sampled_N, logq_at_one_NV = torch.arange(V), log_softmax(u_V).expand(V, -1)
    for z_V, rests in ((u_V, False), (temperature * u_V, True)):
        logp_V = log_softmax(z_V, temperature)
        for support in ("sampled", 2):
            teacher = target(support, logq_at_one_NV, sampled_N)
            tokens = alone(sampled_N, logp_V)
            grad_VV, _, _ = gradient_of(
                ReverseKLConfig(support=support), temperature, z_V.expand(V, -1), tokens, teacher
            )
            size = float(expected(grad_VV, logp_V.exp()).abs().max())
            assert size < 1e-13 if rests else size > 1e-2


@every_support
def test_a_stronger_support_is_read_off_a_dense_teacher(support: int | str) -> None:
    """The same sample by sample, whether the teacher serves its top K or its whole distribution."""
    z_V, u_V = randn(10, V), randn(11, V)
    compact, dense_ = (every_token(ReverseKLConfig(support=support), 0.7, z_V, u_V, compact=c) for c in (True, False))
    close(compact[0], dense_[0])
    close(compact[2].objective, dense_[2].objective)


# --- Importance weights -------------------------------------------------------------------------------


@every_support
@every_temperature
def test_expected_gradient_under_another_sampler_is_grad_d(support: int | str, temperature: float) -> None:
    """E_{y~mu}[fused gradient] = grad D where no ratio p/mu reaches the cap."""
    z_V, u_V, mu_V = randn(12, V), randn(13, V), log_softmax(randn(14, V))
    objective = ReverseKLConfig(support=support, importance_cap=UNCAPPED)
    grad_VV, probabilities_V, _ = every_token(objective, temperature, z_V, u_V, mu_V=mu_V)
    close(expected(grad_VV, probabilities_V), grad_reverse_kl(z_V, u_V, temperature))
    if support == "sampled":  # the weights are doing this: without them the mean is elsewhere
        grad_VV, _, _ = every_token(objective, temperature, z_V, u_V)
        biased_V = expected(grad_VV, probabilities_V)
        assert (biased_V - grad_reverse_kl(z_V, u_V, temperature)).abs().max() > 1e-2


@every_support
def test_expected_value_under_another_sampler_is_d(support: int | str) -> None:
    """E_{y~mu}[per-token estimate] = D: the estimate is weighted like the gradient it stands for."""
    z_V, u_V, mu_V = randn(15, V), randn(16, V), log_softmax(randn(17, V))
    objective = ReverseKLConfig(support=support, importance_cap=UNCAPPED)
    _, probabilities_V, measured = every_token(objective, 0.7, z_V, u_V, mu_V=mu_V)
    close(expected(measured.objective, probabilities_V), reverse_kl(z_V, u_V, 0.7))


@pytest.mark.parametrize("cap", [1.0, 1.5, 4.0])
def test_weights_are_truncated_at_the_cap_from_above_only(cap: float) -> None:
    """w = min(p/mu, cap): grad = w r (e_y - p)/T, with ratios 0.25, 0.9, exactly cap, 3 and 1e6."""
    z_V, u_V, temperature = randn(18, V), randn(19, V), 0.7
    logp_V, logq_V = log_softmax(z_V, temperature), log_softmax(u_V, temperature)
    ratio_V = torch.tensor([0.25, 0.9, cap, 3.0, 1e6])
    objective = ReverseKLConfig(support="sampled", importance_cap=cap)
    grad_VV, _, _ = every_token(objective, temperature, z_V, u_V, mu_V=logp_V - ratio_V.log())
    weight_V = torch.tensor([min(ratio, cap) for ratio in ratio_V.tolist()])
    close(grad_VV, (weight_V * (logp_V - logq_V))[:, None] * score(z_V, temperature))


def test_default_cap_is_two() -> None:
    z_V, u_V = randn(20, V), randn(21, V)
    mu_V = log_softmax(z_V) - 1.0  # ratio e > 2
    default, explicit = (
        every_token(objective, 1.0, z_V, u_V, mu_V=mu_V)[0]
        for objective in (
            ReverseKLConfig(support="sampled"),
            ReverseKLConfig(support="sampled", importance_cap=2.0),
        )
    )
    close(default, explicit)


@pytest.mark.parametrize(
    "objective",
    [
        ReverseKLConfig(),
        ReverseKLConfig(support=V),
        ForwardKLConfig(),
        JSDConfig(beta=0.3),
        ReverseKLConfig(reference=ReferenceConfig(weight=0.5)),
    ],
    ids=["full", "top-all", "forward", "jsd", "reference"],
)
def test_dense_terms_take_no_weight(objective: ObjectiveConfig) -> None:
    """Sums over the vocabulary hold no sample: whoever drew y, gradient and value are the same bits."""
    z_V, u_V, ref_V = randn(22, V), randn(23, V), randn(24, V)
    reference_V = ref_V if objective.reference else None
    fresh, stale = (
        every_token(objective, 0.7, z_V, u_V, mu_V=mu_V, reference_V=reference_V)
        for mu_V in (None, log_softmax(randn(25, V, scale=3.0)))
    )
    assert torch.equal(fresh[0], stale[0])
    assert torch.equal(fresh[2].objective, stale[2].objective)


@pytest.mark.parametrize("support", [1, 2, 3])
def test_weights_touch_the_tail_of_a_top_k_only(support: int) -> None:
    """y inside S: no weight at all. y outside: w on r, none on the sum over S."""
    z_V, u_V, temperature = randn(26, V), randn(27, V), 0.7
    logp_V, logq_V = log_softmax(z_V, temperature), log_softmax(u_V, temperature)
    objective = ReverseKLConfig(support=support, importance_cap=3.0)
    weight_V = torch.tensor([0.3, 0.5, 1.7, 2.5, 2.9])
    fresh_VV, _, _ = every_token(objective, temperature, z_V, u_V)
    stale_VV, _, _ = every_token(objective, temperature, z_V, u_V, mu_V=logp_V - weight_V.log())
    extra_V = (weight_V - 1) * (logp_V - logq_V)
    extra_V[logq_V.topk(support).indices] = 0.0
    close(stale_VV - fresh_VV, extra_V[:, None] * score(z_V, temperature))


# --- ReferenceConfig and advantages -------------------------------------------------------------------------


@every_support
@every_temperature
def test_reference_adds_its_reverse_kl(support: int | str, temperature: float) -> None:
    """E_{y~p}[fused gradient] = grad [D(p, q) + weight D(p, ref)], E[estimate] that value."""
    z_V, u_V, ref_V = randn(28, V), randn(29, V), randn(30, V)
    objective = ReverseKLConfig(support=support, reference=ReferenceConfig(weight=0.4))
    grad_VV, p_V, measured = every_token(objective, temperature, z_V, u_V, reference_V=ref_V)

    def total(x_V: Tensor) -> Tensor:
        return reverse_kl(x_V, u_V, temperature) + 0.4 * reverse_kl(x_V, ref_V, temperature)

    close(expected(grad_VV, p_V), finite_difference(total, z_V), 1e-8)
    close(expected(measured.objective, p_V), total(z_V))
    assert measured.reference_kl is not None
    close(measured.reference_kl, reverse_kl(z_V, ref_V, temperature).expand(V))  # unweighted


@pytest.mark.parametrize("objective", [ForwardKLConfig(), JSDConfig(beta=0.3)], ids=["forward", "jsd"])
def test_reference_of_another_divergence_is_a_reverse_kl_too(objective: ObjectiveConfig) -> None:
    """Exact, no expectation: grad [divergence + weight D(p, ref)]."""
    z_V, u_V, ref_V = randn(31, V), randn(32, V), randn(33, V)
    with_reference = objective.model_copy(update={"reference": ReferenceConfig(weight=0.4)})
    plain_VV, _, plain = every_token(objective, 0.7, z_V, u_V)
    both_VV, _, both = every_token(with_reference, 0.7, z_V, u_V, reference_V=ref_V)
    close(both_VV - plain_VV, 0.4 * grad_reverse_kl(z_V, ref_V, 0.7).expand(V, -1))
    close(both.objective - plain.objective, 0.4 * reverse_kl(z_V, ref_V, 0.7).expand(V))


@pytest.mark.parametrize(
    "objective", [ReverseKLConfig(), ReverseKLConfig(support="sampled"), ForwardKLConfig(), JSDConfig()], ids=name
)
def test_a_positive_advantage_raises_the_sampled_token(objective: ObjectiveConfig) -> None:
    """The sign: one step of gradient descent where the teacher pulls nowhere (p = q)."""
    z_V, temperature = randn(34, V), 0.7
    for advantage in (1.0, -1.0):
        grad_VV, _, _ = every_token(objective, temperature, z_V, z_V, advantage_V=torch.full((V,), advantage))
        for y in range(V):
            before = log_softmax(z_V, temperature)[y]
            after = log_softmax(z_V - 0.01 * grad_VV[y], temperature)[y]
            assert (after - before) * advantage > 1e-5


@every_support
@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
def test_expected_gradient_of_advantages_is_minus_that_of_their_mean(support: int | str, stale: bool) -> None:
    """E_y[fused gradient] = grad [D + weight D_ref - E_{y~p} A(y)], under p or a weighted mu."""
    z_V, u_V, ref_V, advantage_V = randn(35, V), randn(36, V), randn(37, V), randn(38, V)
    objective = ReverseKLConfig(support=support, reference=ReferenceConfig(weight=0.4), importance_cap=UNCAPPED)
    mu_V = log_softmax(randn(39, V)) if stale else None
    grad_VV, probabilities_V, measured = every_token(
        objective, 0.7, z_V, u_V, mu_V=mu_V, advantage_V=advantage_V, reference_V=ref_V
    )

    def total(x_V: Tensor) -> Tensor:
        reward = (log_softmax(x_V, 0.7).exp() * advantage_V).sum()
        return reverse_kl(x_V, u_V, 0.7) + 0.4 * reverse_kl(x_V, ref_V, 0.7) - reward

    close(expected(grad_VV, probabilities_V), finite_difference(total, z_V), 1e-8)

    # The value stays the divergence: a reward is not one.
    _, _, without = every_token(objective, 0.7, z_V, u_V, mu_V=mu_V, reference_V=ref_V)
    assert torch.equal(measured.objective, without.objective)


def test_advantages_are_weighted_and_truncated() -> None:
    """grad = -min(p/mu, cap) A (e_y - p)/T where the teacher pulls nowhere."""
    z_V, advantage_V, ratio_V = randn(40, V), randn(41, V), torch.tensor([0.2, 0.8, 1.4, 3.0, 50.0])
    objective = ReverseKLConfig(importance_cap=1.5)
    mu_V = log_softmax(z_V, 0.7) - ratio_V.log()
    grad_VV, _, _ = every_token(objective, 0.7, z_V, z_V, mu_V=mu_V, advantage_V=advantage_V)
    weight_V = ratio_V.clamp(max=1.5)
    close(grad_VV, -(weight_V * advantage_V)[:, None] * score(z_V, 0.7))


# --- What is not offered, and why ---------------------------------------------------------------------


def enumerated(loss_of_logp: Tensor, z_V: Tensor, weight_V: Tensor) -> Tensor:
    """[V] E_{y~weight}[back-propagation of one loss per token], by plain autograd."""
    return torch.autograd.grad((weight_V * loss_of_logp).sum(), z_V)[0]


def test_backpropagating_k1_teaches_nothing() -> None:
    """E_{y~p}[grad r(y)] = E[grad log p(y)] = 0, whatever q is."""
    z_V, u_V = randn(42, V).requires_grad_(), randn(43, V)
    logp_V, logq_V = log_softmax(z_V, 0.7), log_softmax(u_V, 0.7)
    close(enumerated(logp_V - logq_V, z_V, logp_V.detach().exp()), torch.zeros(V), 1e-14)
    assert grad_reverse_kl(z_V.detach(), u_V, 0.7).abs().max() > 0.05


def test_backpropagating_k3_follows_the_forward_kl() -> None:
    """E_{y~p}[grad (q/p - 1 - log(q/p))] = grad KL(q || p), which is not grad D."""
    z_V, u_V = randn(44, V).requires_grad_(), randn(45, V)
    logp_V, logq_V = log_softmax(z_V, 0.7), log_softmax(u_V, 0.7)
    ratio_V = logq_V - logp_V
    k3_V = enumerated(ratio_V.exp() - 1 - ratio_V, z_V, logp_V.detach().exp())
    close(k3_V, ((logp_V.exp() - logq_V.exp()) / 0.7).detach())
    assert (k3_V - grad_reverse_kl(z_V.detach(), u_V, 0.7)).abs().max() > 0.05


@pytest.mark.parametrize("support", [1, 2, 3, V])
def test_a_top_k_kl_as_a_scalar_advantage_teaches_nothing(support: int) -> None:
    """E_{y~p}[c(prefix) grad log p(y)] = 0: a penalty that does not depend on y is a mere baseline.

    The fused loss agrees: as an advantage, it leaves the expected gradient where it was.
    """
    z_V, u_V = randn(46, V), randn(47, V)
    logp_V, logq_V = log_softmax(z_V, 0.7), log_softmax(u_V, 0.7)
    top = logq_V.topk(support).indices
    penalty = (logp_V[top].exp() * (logp_V[top] - logq_V[top])).sum()
    assert penalty.abs() > 1e-2

    z_V.requires_grad_()
    close(enumerated(penalty * log_softmax(z_V, 0.7), z_V, logp_V.exp()), torch.zeros(V), 1e-14)

    z_V = z_V.detach()
    constant_V = -penalty.expand(V)
    bare_VV, p_V, _ = every_token(ReverseKLConfig(), 0.7, z_V, u_V)
    grad_VV, _, _ = every_token(ReverseKLConfig(), 0.7, z_V, u_V, advantage_V=constant_V)
    assert (grad_VV - bare_VV).abs().max() > 1e-2  # each sample is pushed about,
    close(expected(grad_VV, p_V), expected(bare_VV, p_V))  # to no effect


@pytest.mark.parametrize("wrong", ["k1", "k2", "k3", "kl", "top_k"])
def test_wrong_losses_cannot_be_asked_for(wrong: str) -> None:
    with pytest.raises(ValidationError, match="reverse_kl"):
        TypeAdapter(ObjectiveConfig).validate_python({"divergence": wrong})
    with pytest.raises(ValidationError):
        TypeAdapter(ObjectiveConfig).validate_python({"divergence": "forward_kl", "support": "sampled"})


# --- What is measured ---------------------------------------------------------------------------------


def test_measurements_are_those_of_the_definitions() -> None:
    z_NV, u_NV, ref_NV = randn(48, 6, V), randn(49, 6, V), randn(50, 6, V)
    sampled_N = torch.tensor([0, 4, 2, 2, 1, 3])
    objective = ReverseKLConfig(reference=ReferenceConfig(weight=0.4), overlap_k=2)
    logp_NV, logq_NV, logref_NV = (log_softmax(x, 0.7) for x in (z_NV, u_NV, ref_NV))
    tokens = alone(sampled_N, at(logp_NV, sampled_N))
    _, loss, m = gradient_of(objective, 0.7, z_NV, tokens, dense(u_NV), 3.0, reference=dense(ref_NV))

    close(m.student_logprob, at(logp_NV, sampled_N))
    close(m.teacher_logprob, at(logq_NV, sampled_N))
    close(m.student_entropy, -(logp_NV.exp() * logp_NV).sum(dim=1))
    assert m.teacher_entropy is not None
    close(m.teacher_entropy, -(logq_NV.exp() * logq_NV).sum(dim=1))
    reverse_N = torch.stack([kl(p, q) for p, q in zip(logp_NV, logq_NV, strict=True)])
    reference_N = torch.stack([kl(p, q) for p, q in zip(logp_NV, logref_NV, strict=True)])
    assert m.reverse_kl is not None
    assert m.reference_kl is not None
    assert m.overlap is not None
    close(m.reverse_kl, reverse_N)
    close(m.reference_kl, reference_N)
    close(m.objective, reverse_N + 0.4 * reference_N)
    close(loss, m.objective.sum() / 3.0)
    shared = [
        len(set(p.topk(2).indices.tolist()) & set(q.topk(2).indices.tolist())) / 2
        for p, q in zip(logp_NV, logq_NV, strict=True)
    ]
    assert len(set(shared)) > 1
    close(m.overlap, torch.tensor(shared))
    assert not any(x.requires_grad for x in vars(m).values() if x is not None)


def test_what_the_teacher_cannot_say_is_none() -> None:
    z_NV, u_NV, sampled_N = randn(51, 3, V), randn(52, 3, V), torch.tensor([0, 1, 2])
    logq_NV = log_softmax(u_NV)
    tokens = alone(sampled_N, at(log_softmax(z_NV), sampled_N))
    for support in ("sampled", 2):
        objective = ReverseKLConfig(support=support)
        _, _, m = gradient_of(objective, 1.0, z_NV, tokens, target(support, logq_NV, sampled_N))
        assert m.teacher_entropy is None
        assert m.reverse_kl is None
        assert m.overlap is None
        assert m.reference_kl is None
        close(m.teacher_logprob, at(logq_NV, sampled_N))
    # and the sampled loss asks a top-K teacher for no more than the sampled token
    grads = [
        gradient_of(ReverseKLConfig(support="sampled"), 1.0, z_NV, tokens, target(s, logq_NV, sampled_N))[0]
        for s in ("sampled", 2)
    ]
    close(grads[0], grads[1])


def test_the_naive_twin_is_unbiased_too() -> None:
    """E_{y~mu}[naive gradient] = grad D and E_{y~mu}[naive estimate] = D for every support."""
    z_V, u_V, mu_V = randn(53, V), randn(54, V), log_softmax(randn(55, V))
    logq_NV, sampled_N = log_softmax(u_V, 0.7).expand(V, -1), torch.arange(V)
    for support in SUPPORTS:
        z_NV = z_V.repeat(V, 1).requires_grad_()
        objective = ReverseKLConfig(support=support, importance_cap=UNCAPPED)
        twin = naive_loss(objective, 0.7, z_NV, logq_NV, alone(sampled_N, mu_V), 1.0)
        (grad_NV,) = torch.autograd.grad(twin.surrogate, z_NV)
        close(expected(grad_NV, mu_V.exp()), grad_reverse_kl(z_V, u_V, 0.7))
        close(expected(twin.estimate_N, mu_V.exp()), reverse_kl(z_V, u_V, 0.7))
