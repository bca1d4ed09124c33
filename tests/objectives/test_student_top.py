"""The student's own top K as the support: unbiased for every K and whoever sampled, exact at K = V, and quieter.

Expectations are exact, from one gradient per token of the vocabulary, in float64.

Shape legend: N tokens, V vocabulary, K support size. y the sampled token, mu the sampler's policy.
"""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from limbeck.config.objective import ObjectiveConfig
from limbeck.objectives import JSD, ForwardKL, Loss, Objective, ReverseKL, Sampled, TopK, loss_of

from .helpers import (
    UNCAPPED,
    alone,
    close,
    dense,
    every_token,
    expected,
    finite_difference,
    gradient_of,
    log_softmax,
    randn,
)

V, T = 6, 0.7
every_k = pytest.mark.parametrize("k", [1, 2, 4, V])
every_objective = pytest.mark.parametrize(
    "objective", [ReverseKL(), JSD(0.3), ForwardKL()], ids=lambda x: type(x).__name__
)


def divergence(objective: Objective, z_V: Tensor, u_V: Tensor) -> Tensor:
    logp_V = log_softmax(z_V, T)
    return objective.value(logp_V.exp(), logp_V, log_softmax(u_V, T)).sum()


@every_k
@every_objective
@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "stale"])
def test_the_expected_gradient_is_that_of_the_whole_vocabulary(objective: Objective, k: int, stale: bool) -> None:
    """The learner's own top K, the sample from anybody: y may be on the list or not."""
    z_V, u_V = randn(1, V), randn(2, V)
    mu_V = log_softmax(randn(3, V)) if stale else None
    loss = Loss(objective, support="student_top", k=k, importance_cap=UNCAPPED)
    grad_VV, probabilities_V, measured = every_token(loss, T, z_V, u_V, mu_V=mu_V, compact=False)
    close(expected(grad_VV, probabilities_V), finite_difference(lambda x: divergence(objective, x, u_V), z_V), 1e-8)
    close(expected(measured.objective, probabilities_V), divergence(objective, z_V, u_V))


@every_k
def test_the_samplers_top_k_is_as_good_as_the_learners(k: int) -> None:
    """Served: S is of mu, which has lagged behind p, and the rest is weighed by p / mu."""
    z_V, u_V, mu_V = randn(4, V), randn(5, V), log_softmax(randn(6, V))
    ids_VK = mu_V.topk(k).indices.expand(V, -1)
    assert k in (1, V) or set(ids_VK[0].tolist()) != set(z_V.topk(k).indices.tolist())
    logq_VV = log_softmax(u_V, T).expand(V, -1)
    loss = Loss(ReverseKL(), support="student_top", k=k, importance_cap=UNCAPPED)
    teacher = TopK(ids_VK, logq_VV.gather(1, ids_VK), logq_VV.diagonal())
    grad_VV, _, _ = gradient_of(loss, T, z_V.expand(V, -1), alone(torch.arange(V), mu_V), teacher)
    slope_V = finite_difference(lambda x: divergence(ReverseKL(), x, u_V), z_V)
    close(expected(grad_VV, mu_V.exp()), slope_V, 1e-8)


@every_objective
def test_with_the_whole_vocabulary_each_sample_has_the_gradient_of_full(objective: Objective) -> None:
    z_V, u_V, mu_V = randn(7, V), randn(8, V), log_softmax(randn(9, V))
    ours = every_token(Loss(objective, support="student_top", k=V), T, z_V, u_V, mu_V=mu_V, compact=False)
    full = every_token(Loss(objective), T, z_V, u_V, mu_V=mu_V)
    close(ours[0], full[0])
    close(ours[2].objective, full[2].objective)


def test_it_is_the_students_top_and_not_the_teachers() -> None:
    """Where the two disagree: the student's K take the noise out of what it samples, and the teacher's do not."""
    z_V, u_V = (
        torch.tensor([4.0, 3.0, 0.0, 0.0, -1.0, -1.0]).double(),
        torch.tensor([-2.0, -3, 1.0, 2.0, 5, 4]).double(),
    )
    noise = {}
    for support, k in ((2, None), ("student_top", 2), ("sampled", None)):
        loss = Loss(ReverseKL(), support=support, k=k)  # type: ignore[arg-type]
        grad_VV, p_V, measured = every_token(loss, T, z_V, u_V, compact=False)
        noise[support] = float(expected((grad_VV - expected(grad_VV, p_V)).square().sum(1), p_V))
        if k:
            p_top, q_top = (log_softmax(x, T).exp()[:2].sum() for x in (z_V, u_V))
            assert measured.support_student is not None
            assert measured.support_teacher is not None
            close(measured.support_student, p_top.expand(V))
            close(measured.support_teacher, q_top.expand(V))
        assert (measured.support_student is None) == (support == "sampled")
    assert noise["student_top"] < noise[2] / 20
    assert noise[2] < 1.5 * noise["sampled"]


def test_a_k_beyond_the_vocabulary_and_answers_about_fewer_ids_are_refused() -> None:
    z_NV, tokens = randn(12, 2, V), alone(torch.tensor([0, 1]), torch.zeros(2).double())
    logq_NV = log_softmax(randn(13, 2, V))
    with pytest.raises(
        ValueError, match=rf"'student_top' with k = {V + 1}, but the student has {V} tokens.*objective\.k"
    ):
        gradient_of(Loss(ReverseKL(), support="student_top", k=V + 1), T, z_NV, tokens, dense(z_NV))
    three = Loss(ReverseKL(), support="student_top", k=3)
    with pytest.raises(ValueError, match=r"with k = 3 needs .* the sampled token only"):
        gradient_of(three, T, z_NV, tokens, Sampled(logq_NV[:, 0]))
    ids_NK = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="with k = 3, but the teacher gave scores of 2"):
        gradient_of(three, T, z_NV, tokens, TopK(ids_NK, logq_NV.gather(1, ids_NK), logq_NV[:, 0]))


def test_the_recipes_table() -> None:
    parse = TypeAdapter(ObjectiveConfig).validate_python
    loss = loss_of(parse({"divergence": "reverse_kl", "support": "student_top", "k": 20}))
    assert (loss.support, loss.k, loss.size) == ("student_top", 20, 20)
    assert (Loss(ReverseKL(), support=5).size, Loss(ReverseKL(), support="sampled").size, Loss(ReverseKL()).size) == (
        5,
        0,
        0,
    )
    for wrong, says in (
        ({"support": "student_top"}, "needs k, .* objective.k = 20"),
        ({"support": 20, "k": 20}, "k = 20 is of support = 'student_top'"),
        ({"k": 20}, "remove objective.k"),
        ({"support": "student_top", "k": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(ValidationError, match=says):
            parse({"divergence": "reverse_kl", **wrong})
    for table in ({"divergence": "forward_kl"}, {"divergence": "jsd", "beta": 0.0}):
        with pytest.raises(ValidationError, match=r"'student_top': .* no bound"):
            parse({**table, "support": "student_top", "k": 4})
    for wrong_loss in (
        {"support": "student_top"},
        {"support": 5, "k": 5},
        {"k": 5},
        {"support": "student_top", "k": 0},
    ):
        with pytest.raises(ValueError, match="k of a loss must be"):
            Loss(ReverseKL(), **wrong_loss)  # type: ignore[arg-type]
