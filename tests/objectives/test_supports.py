"""Any objective on any support: the expected gradient and value are those of the whole vocabulary.

    L_t = sum_{v in S} sg[pull_v] log p_v + 1[y not in S] sg[w gain(y)] log p(y)
    D_t ~ sum_{v in S} value_v            + 1[y not in S] w value(y) / p(y)

Expectations are exact, from one gradient per token of the vocabulary. S may be anybody's list of tokens as long as it
is a function of the prefix; a list that the sampled token was added to is shown to be biased.

Shape legend: N tokens, V vocabulary, K support size. y the sampled token, mu the sampler's policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig
from limbeck.objectives import JSD, Dense, ForwardKL, Head, Loss, Objective, ReverseKL, Tokens, TopK, loss_of

from .helpers import (
    UNCAPPED,
    alone,
    close,
    dense,
    distillation_loss,
    every_token,
    expected,
    finite_difference,
    gradient_of,
    log_softmax,
    randn,
)
from .test_check import Entropy
from .test_custom import SkewedReverseKL

V, T = 5, 0.7


@dataclass(frozen=True)
class WithoutDense:
    """Another objective by its three methods alone: the general path over the whole vocabulary."""

    of: Objective

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return self.of.pull(p, logp, logq)

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return self.of.gain(logp, logq)

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return self.of.value(p, logp, logq)


SHIPPED = [ReverseKL(), ForwardKL(), JSD(0.3)]
OBJECTIVES = [*SHIPPED, SkewedReverseKL(0.2), Entropy()]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda x: type(x).__name__)
every_support = pytest.mark.parametrize("support", ["sampled", 1, 2, 4, V, "full"])


def divergence(objective: Objective, z_V: Tensor, u_V: Tensor) -> Tensor:
    """[] the sum over the whole vocabulary."""
    logp_V = log_softmax(z_V, T)
    return objective.value(logp_V.exp(), logp_V, log_softmax(u_V, T)).sum()


@every_objective
@every_support
@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
@pytest.mark.parametrize("compact", [True, False], ids=["teacher-compact", "teacher-dense"])
def test_expectations_do_not_depend_on_the_support(
    objective: Objective, support: int | str, stale: bool, compact: bool
) -> None:
    z_V, u_V = randn(60, V), randn(61, V)
    mu_V = log_softmax(randn(62, V)) if stale else None
    loss = Loss(objective, support=support, importance_cap=UNCAPPED)
    grad_VV, probabilities_V, measured = every_token(loss, T, z_V, u_V, mu_V=mu_V, compact=compact)
    slope_V = finite_difference(lambda x: divergence(objective, x, u_V), z_V)
    close(expected(grad_VV, probabilities_V), slope_V, 1e-8)
    close(expected(measured.objective, probabilities_V), divergence(objective, z_V, u_V))
    assert slope_V.abs().max() > 1e-2


@every_objective
@every_support
def test_a_reference_adds_its_reverse_kl_to_every_objective(objective: Objective, support: int | str) -> None:
    z_V, u_V, ref_V = randn(63, V), randn(64, V), randn(65, V)
    loss = Loss(objective, support=support, reference_weight=0.4)
    grad_VV, p_V, measured = every_token(loss, T, z_V, u_V, reference_V=ref_V)

    def total(x_V: Tensor) -> Tensor:
        return divergence(objective, x_V, u_V) + 0.4 * divergence(ReverseKL(), x_V, ref_V)

    close(expected(grad_VV, p_V), finite_difference(total, z_V), 1e-8)
    close(expected(measured.objective, p_V), total(z_V))


@pytest.mark.parametrize("objective", SHIPPED, ids=lambda x: type(x).__name__)
@every_support
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shortcuts_equal_the_three_methods(objective: Objective, support: int | str, dtype: torch.dtype) -> None:
    """`dense_` saves passes over the vocabulary and changes nothing, reference and chunks and all."""
    count, vocabulary = 7, 11
    hidden_Nd, weight_Vd = randn(66, count, 3, dtype=dtype), randn(67, vocabulary, 3, dtype=dtype)
    policies = [
        Dense(randn(i, count, 3, dtype=dtype), Head(randn(i + 1, vocabulary, 3, dtype=dtype))) for i in (68, 70)
    ]
    tokens = Tokens(
        torch.arange(count), torch.arange(count) // 3, randn(72, count, dtype=dtype) - 2, torch.ones(count, dtype=dtype)
    )
    results = []
    for one in (objective, WithoutDense(objective)):
        leaves = [hidden_Nd.clone().requires_grad_(), weight_Vd.clone().requires_grad_()]
        loss = Loss(one, support=support, discount=0.5, reference_weight=0.3)
        value, measured = distillation_loss(
            loss, T, leaves[0], Head(leaves[1]), tokens, policies[0], 3.0, policies[1], chunk_bytes=4 * vocabulary * 3
        )
        results.append([value.detach(), measured.objective, *torch.autograd.grad(value, leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(
            a, b, rtol=1e-11 if dtype is torch.float64 else 1e-4, atol=1e-11 if dtype is torch.float64 else 1e-5
        )


def test_the_importance_cap_holds_for_the_value_as_for_the_gradient() -> None:
    """Sampled token alone: value = min(p/mu, cap) value(y)/p(y), gradient with the same weight."""
    z_V, u_V, ratio_V = randn(74, V), randn(75, V), torch.tensor([0.25, 0.9, 1.5, 3.0, 1e6])
    logp_V, logq_V = log_softmax(z_V, T), log_softmax(u_V, T)
    for objective in (JSD(0.3), Entropy()):
        loss = Loss(objective, support="sampled", importance_cap=1.5)
        grad_VV, _, measured = every_token(loss, T, z_V, u_V, mu_V=logp_V - ratio_V.log())
        weight_V = ratio_V.clamp(max=1.5)
        close(measured.objective, weight_V * objective.value(logp_V.exp(), logp_V, logq_V) / logp_V.exp())
        score_VV = (torch.eye(V) - logp_V.exp()) / T
        close(grad_VV, (weight_V * objective.gain(logp_V, logq_V))[:, None] * score_VV)


# --- Whose list it is ---------------------------------------------------------------------------------


def listed(ids_VK: Tensor, u_V: Tensor) -> TopK:
    """One prefix, every y: the teacher's log-probs of a list of tokens for each y."""
    logq_VV = log_softmax(u_V, T).expand(V, -1)
    return TopK(ids_VK, logq_VV.gather(1, ids_VK), logq_VV.diagonal())


def expectation_over(
    ids_VK: Tensor, objective: Objective, z_V: Tensor, u_V: Tensor, mu_V: Tensor
) -> tuple[Tensor, Tensor]:
    """[V] E_{y~mu}[gradient] and [] E_{y~mu}[estimate] with row y's list where y is sampled."""
    loss = Loss(objective, support=ids_VK.shape[1], importance_cap=UNCAPPED)
    tokens = alone(torch.arange(V), mu_V)
    grad_VV, _, measured = gradient_of(loss, T, z_V.expand(V, -1), tokens, listed(ids_VK, u_V))
    return expected(grad_VV, mu_V.exp()), expected(measured.objective, mu_V.exp())


@every_objective
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_list_that_depends_on_the_prefix_only_may_be_anybodys(objective: Objective, k: int) -> None:
    """The sampler's top K by rank, of a policy that is neither student nor teacher by now; and an arbitrary one."""
    z_V, u_V, mu_V = randn(76, V), randn(77, V), log_softmax(randn(84, V))
    slope_V = finite_difference(lambda x: divergence(objective, x, u_V), z_V)
    samplers, arbitrary = mu_V.topk(k).indices, torch.tensor([4, 0, 3, 1])[:k]
    assert set(samplers.tolist()) != set(log_softmax(u_V).topk(k).indices.tolist())
    for ids_K in (samplers, arbitrary):
        gradient_V, estimate = expectation_over(ids_K.expand(V, -1), objective, z_V, u_V, mu_V)
        close(gradient_V, slope_V, 1e-8)
        close(estimate, divergence(objective, z_V, u_V))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_adding_the_sampled_token_to_the_list_biases_the_gradient(k: int) -> None:
    """The sampler's top K and y, as some servers list them: S is then a function of y.

    A token outside the top K would enter with weight p, and only where it is drawn: p^2 in expectation instead of p.
    """
    z_V = randn(79, V)
    u_V, mu_V = randn(80, V), log_softmax(z_V, T)
    top_K = mu_V.topk(k).indices
    spare = [next(v for v in range(V) if v not in top_K.tolist() and v != y) for y in range(V)]
    rows = [[*top_K.tolist(), y if y not in top_K.tolist() else spare[y]] for y in range(V)]
    gradient_V, estimate = expectation_over(torch.tensor(rows), ReverseKL(), z_V, u_V, mu_V)
    slope_V = finite_difference(lambda x: divergence(ReverseKL(), x, u_V), z_V)
    assert (gradient_V - slope_V).abs().max() > 1e-2
    assert (estimate - divergence(ReverseKL(), z_V, u_V)).abs() > 1e-2


def test_the_students_list_at_the_learner_needs_no_teachers_top() -> None:
    """Rows of one batch may list different tokens, in any order: each is its own support."""
    z_NV, u_NV, sampled_N = randn(81, 3, V), randn(82, 3, V), torch.tensor([0, 4, 2])
    logp_NV, logq_NV = log_softmax(z_NV, T), log_softmax(u_NV, T)
    ids_NK = torch.tensor([[1, 3], [4, 0], [2, 1]])
    teacher = TopK(ids_NK, logq_NV.gather(1, ids_NK), logq_NV.gather(1, sampled_N[:, None])[:, 0])
    behaviour_N = logp_NV.gather(1, sampled_N[:, None])[:, 0]
    loss = Loss(ReverseKL(), support=2)
    grad_NV, _, _ = gradient_of(loss, T, z_NV, alone(sampled_N, behaviour_N), teacher)
    shuffled = replace(teacher, ids_NK=ids_NK.flip(1), logprobs_NK=teacher.logprobs_NK.flip(1))
    close(gradient_of(loss, T, z_NV, alone(sampled_N, behaviour_N), shuffled)[0], grad_NV)
    for n in range(3):
        score_VV, wanted_V = (torch.eye(V) - logp_NV[n].exp()) / T, torch.zeros(V)
        ratio_V = logp_NV[n] - logq_NV[n]
        for v in ids_NK[n].tolist():
            wanted_V = wanted_V + logp_NV[n, v].exp() * ratio_V[v] * score_VV[v]
        y = int(sampled_N[n])
        if y not in ids_NK[n].tolist():
            wanted_V = wanted_V + ratio_V[y] * score_VV[y]
        close(grad_NV[n], wanted_V)


# --- What a recipe may ask for ------------------------------------------------------------------------


def test_supports_in_the_recipes_table() -> None:
    """Forward KL on the sampled token alone is the one that is refused, under either of its names."""
    parse = TypeAdapter(ObjectiveConfig).validate_python
    assert loss_of(parse({"divergence": "forward_kl", "support": 20})).support == 20
    assert loss_of(parse({"divergence": "jsd", "beta": 0.3, "support": "sampled"})) == Loss(
        JSD(0.3), support="sampled", name="jsd"
    )
    assert loss_of(ForwardKLConfig()).support == loss_of(JSDConfig()).support == "full"
    assert loss_of(JSDConfig(beta=0.0)).objective == ForwardKL()
    assert loss_of(JSDConfig(beta=1.0)).objective == ReverseKL()
    for table in ({"divergence": "forward_kl"}, {"divergence": "jsd", "beta": 0.0}):
        with pytest.raises(ValidationError, match="has no bound"):
            parse({**table, "support": "sampled"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"support": 0}, "support of a loss must be .* got 0"),
        ({"support": "top"}, "support of a loss must be .* got 'top'"),
        ({"discount": 1.5}, "discount of a loss must be between 0 and 1, got 1.5"),
        ({"importance_cap": 0.5}, "importance_cap of a loss must be at least 1"),
        ({"reference_weight": -1.0}, "reference_weight of a loss must be at least 0"),
        ({"overlap_k": 0}, "overlap_k of a loss must be at least 1"),
    ],
)
def test_a_loss_refuses_numbers_out_of_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loss(ReverseKL(), **wrong)  # type: ignore[arg-type]


def test_the_message_names_an_objective_of_ones_own() -> None:
    z_NV, logq_N = randn(83, 2, V), torch.zeros(2)
    teacher = TopK(torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1), logq_N)
    with pytest.raises(ValueError, match=r"SkewedReverseKL on the whole vocabulary needs .* gave TopK"):
        gradient_of(Loss(SkewedReverseKL()), T, z_NV, alone(torch.tensor([0, 1]), logq_N), teacher)
    gradient_of(Loss(SkewedReverseKL()), T, z_NV, alone(torch.tensor([0, 1]), logq_N), dense(z_NV))
