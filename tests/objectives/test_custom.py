"""An objective of your own: the skewed reverse KL of DistiLLM, as docs/guides/extending.md shows it.

Used through a recipe's table it trains on every support, and `check_objective` holds it to what it promises.

Shape legend: V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from limbeck.config.factory import Build
from limbeck.config.objective import ObjectiveConfig, PythonObjectiveConfig, ReverseKLConfig
from limbeck.config.recipe import parse_recipe
from limbeck.errors import RecipeError
from limbeck.objectives import Loss, loss_of

from .helpers import close, every_token, expected, finite_difference, log_softmax, randn

V = 5


@dataclass(frozen=True)
class SkewedReverseKL:
    """KL(p || m) with m = (1 - alpha) q + alpha p: a reverse KL that stays finite where q is 0 (Ko et al. 2024)."""

    alpha: float = 0.1

    def log_mixture(self, logp: Tensor, logq: Tensor) -> Tensor:
        return torch.logaddexp(logq + math.log1p(-self.alpha), logp + math.log(self.alpha))

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * self.gain(logp, logq)

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        logm = self.log_mixture(logp, logq)
        return logp - logm + self.alpha * (1 - (logp - logm).exp())  # d value / d p, less the constant 1 - alpha

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * (logp - self.log_mixture(logp, logq))


def skewed(build: Build, alpha: float) -> SkewedReverseKL:
    """The factory: `factory = "my_package.objectives:skewed"`, `alpha = 0.2`."""
    return SkewedReverseKL(alpha)


def by_definition(z_V: Tensor, u_V: Tensor, alpha: float) -> Tensor:
    p_V, q_V = log_softmax(z_V, 0.7).exp(), log_softmax(u_V, 0.7).exp()
    return (p_V * (p_V / ((1 - alpha) * q_V + alpha * p_V)).log()).sum()


def recipe_of(**objective: object) -> ObjectiveConfig:
    table = {
        "student": {"model": "demo:student"},
        "teacher": {"model": "demo:teacher"},
        "task": {"kind": "arithmetic"},
        "objective": {"divergence": "python", "factory": f"{__name__}:skewed", **objective},
    }
    return parse_recipe(table).objective


def build(folder: Path | None = None) -> Build:
    return Build(recipe=None, info=None, tokenizer=None, device=None, seed=0, folder=folder)


@pytest.mark.parametrize("support", ["sampled", 1, 3, V, "full"])
def test_a_recipe_trains_it_on_every_support(support: int | str) -> None:
    """From the table to the gradient: E[gradient] and E[estimate] are those of the definition."""
    loss = loss_of(recipe_of(alpha=0.2, support=support), build=build())
    assert loss == Loss(SkewedReverseKL(0.2), support=support, name="SkewedReverseKL")
    z_V, u_V = randn(0, V), randn(1, V)
    grad_VV, p_V, measured = every_token(loss, 0.7, z_V, u_V)
    close(expected(grad_VV, p_V), finite_difference(lambda x: by_definition(x, u_V, 0.2), z_V), 1e-8)
    close(expected(measured.objective, p_V), by_definition(z_V, u_V, 0.2))
    grad_VV, _, measured = every_token(loss, 0.7, z_V, z_V)
    close(grad_VV, torch.zeros(V, V), 1e-14)
    close(measured.objective, torch.zeros(V), 1e-14)


def test_an_object_takes_the_place_of_the_tables_divergence() -> None:
    """`limbeck.train(recipe, objective=...)`: the rest of the table still holds."""
    loss = loss_of(ReverseKLConfig(support=3, discount=0.5, importance_cap=4.0), SkewedReverseKL())
    assert loss == Loss(SkewedReverseKL(), 3, 0.5, 4.0, name="SkewedReverseKL")


def test_a_wrong_objective_never_becomes_a_loss() -> None:
    with pytest.raises(RecipeError, match="has no method gain"):
        loss_of(ReverseKLConfig(), object_without_gain())
    with pytest.raises(RecipeError, match=r"cannot be called as \(build, alpah=...\)"):
        loss_of(recipe_of(alpah=0.2), build=build())
    with pytest.raises(RecipeError, match="has to be built"):
        loss_of(PythonObjectiveConfig(factory="my_package.objectives:mine"))


def object_without_gain() -> SkewedReverseKL:
    class Half:
        def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
            return p

        value = pull

    return Half()  # type: ignore[return-value]
