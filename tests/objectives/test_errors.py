"""Mistakes of the caller: each is a `ValueError` that names the value, the expectation and the remedy.

Shape legend: N tokens, V vocabulary, K support size.
"""

from __future__ import annotations

import pytest
import torch

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Sampled, Target, TopK

from .helpers import alone, at, dense, distillation_loss, identity, log_softmax, name, randn, target

N, V = 3, 6
SAMPLED_N = torch.tensor([0, 2, 5])


def loss(
    objective: ObjectiveConfig, teacher: Target, temperature: float = 1.0, reference: Dense | None = None
) -> torch.Tensor:
    hidden_NV = randn(0, N, V).requires_grad_()
    behaviour_N = at(log_softmax(hidden_NV.detach(), max(temperature, 0.1)), SAMPLED_N)
    tokens = alone(SAMPLED_N, behaviour_N)
    return distillation_loss(objective, temperature, hidden_NV, identity(V), tokens, teacher, 1.0, reference)[0]


def served(support: int | str) -> Target:
    return target(support, log_softmax(randn(1, N, V)), SAMPLED_N)


@pytest.mark.parametrize("temperature", [0.0, -0.7, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature must be above 0, got (0\.0|-0\.7|nan)"):
        loss(ReverseKLConfig(), dense(randn(2, N, V)), temperature)


@pytest.mark.parametrize("objective", [ReverseKLConfig(), ForwardKLConfig(), JSDConfig()], ids=name)
@pytest.mark.parametrize(("support", "kind"), [("sampled", "Sampled"), (3, "TopK"), (V, "TopK")])
def test_the_whole_vocabulary_wants_hidden_states(objective: ObjectiveConfig, support: int | str, kind: str) -> None:
    """Even a top-K of everything: whether K is everything is not for the loss to guess."""
    with pytest.raises(ValueError) as error:
        loss(objective, served(support))
    message = str(error.value)
    assert objective.divergence in message
    assert f"gave {kind}" in message
    assert "hidden states" in message
    assert "objective.support = 'sampled'" in message


def test_a_top_k_wants_more_than_the_sampled_token() -> None:
    with pytest.raises(ValueError, match=r"objective\.support = 3 needs .* the sampled token only"):
        loss(ReverseKLConfig(support=3), served("sampled"))


@pytest.mark.parametrize("served_k", [1, 2, 4, V])
def test_k_must_be_the_objectives(served_k: int) -> None:
    """Neither fewer nor more: silently cutting would change the estimator's variance unasked."""
    with pytest.raises(ValueError, match=rf"objective\.support = 3, but .* its top {served_k}$"):
        loss(ReverseKLConfig(support=3), served(served_k))


@pytest.mark.parametrize(
    "objective", [ReverseKLConfig(), ReverseKLConfig(support="sampled"), ForwardKLConfig(), JSDConfig()], ids=name
)
def test_reference_and_its_hidden_states_come_together(objective: ObjectiveConfig) -> None:
    policy = dense(randn(3, N, V))
    with pytest.raises(ValueError, match=r"objective\.reference and .* given together"):
        loss(objective, policy, reference=policy)
    wanting = objective.model_copy(update={"reference": ReferenceConfig(weight=0.5)})
    with pytest.raises(ValueError, match=r"objective\.reference and .* given together"):
        loss(wanting, policy)


@pytest.mark.parametrize(
    ("objective", "teacher"),
    [
        (ReverseKLConfig(support="sampled"), Sampled),
        (ReverseKLConfig(support="sampled"), TopK),
        (ReverseKLConfig(support="sampled"), Dense),
        (ReverseKLConfig(support=3), TopK),
        (ReverseKLConfig(support=3), Dense),
        (ReverseKLConfig(), Dense),
        (ForwardKLConfig(), Dense),
        (ForwardKLConfig(support=3), TopK),
        (JSDConfig(), Dense),
        (JSDConfig(support="sampled"), Sampled),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else name(x),
)
def test_a_target_that_says_more_than_enough_is_welcome(objective: ObjectiveConfig, teacher: type) -> None:
    given = {Sampled: served("sampled"), TopK: served(3), Dense: served("full")}[teacher]
    assert isinstance(given, teacher)
    assert loss(objective, given).isfinite()


def test_a_support_beyond_the_vocabulary_is_all_of_it() -> None:
    teacher = dense(randn(4, N, V))
    assert torch.equal(loss(ReverseKLConfig(support=V + 10), teacher), loss(ReverseKLConfig(support=V), teacher))


def test_an_empty_micro_batch_is_checked_like_any_other() -> None:
    """A recipe that cannot work fails on the first batch, whichever rank got no tokens."""
    nothing = torch.zeros(0)
    tokens = alone(torch.zeros(0, dtype=torch.long), nothing)
    with pytest.raises(ValueError, match="hidden states"):
        distillation_loss(ReverseKLConfig(), 1.0, torch.zeros(0, V), identity(V), tokens, Sampled(nothing), 1.0)
