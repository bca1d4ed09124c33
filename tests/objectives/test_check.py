"""`check_objective`: the divergences that ship pass, and each broken promise is named.

Shape legend: N prefixes, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.objectives import JSD, ForwardKL, Objective, ReverseKL, check_objective
from limbeck.objectives.divergences import DenseBlock

from .test_custom import SkewedReverseKL

SHIPPED: list[Objective] = [ReverseKL(), ForwardKL(), JSD(0.01), JSD(0.5), JSD(0.99)]
every_objective = pytest.mark.parametrize("objective", [*SHIPPED, SkewedReverseKL(0.2)], ids=repr)


@every_objective
def test_what_ships_keeps_its_promises(objective: Objective) -> None:
    report = check_objective(objective)
    assert report.smallest_value > 1e-4
    assert report.value_at_equal < 1e-14
    assert report.gradient_at_equal < 1e-14
    assert report.overflows == (("gain",) if objective == ForwardKL() else ())


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_it_takes_milliseconds_and_leaves_the_generator_alone(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    state, seconds = torch.random.get_rng_state(), []
    for _ in range(5):
        started = time.perf_counter()
        check_objective(JSD())
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.set_default_dtype(torch.float64)


class Entropy:
    """sum p log p: no divergence, and a fine objective; also one that is not of degree 1 in p and q."""

    def pull(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * logp

    def gain(self, logp: Tensor, logq: Tensor) -> Tensor:
        return logp

    def value(self, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
        return p * logp


def test_what_is_not_a_divergence_is_reported_and_allowed() -> None:
    report = check_objective(Entropy())
    assert report.smallest_value < -0.1
    assert report.value_at_equal > 0.1
    assert report.gradient_at_equal > 0.1


def broken(**methods: Callable[..., Any] | None) -> Objective:
    """The reverse KL with other methods; None: without."""
    right = {name: getattr(ReverseKL, name) for name in ("pull", "gain", "value")}
    kept = {name: method for name, method in (right | methods).items() if method is not None}
    return type("Mine", (), kept)()


def wrong_entry(self: Any, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    """As right as can be, but for likely tokens."""
    return (1 + 0.01 * (p > 0.9)).to(p.dtype) * p * (logp - logq)


def overwritten(self: Any, p: Tensor, logp: Tensor, logq: Tensor) -> Tensor:
    return logp.sub_(logq).mul_(p)


def half_dense(self: Any, block: DenseBlock) -> tuple[Tensor, Tensor]:
    return ReverseKL().dense_(block)[0] / 2, block.reverse_kl_C


def worthless_dense(self: Any, block: DenseBlock) -> tuple[Tensor, Tensor]:
    return ReverseKL().dense_(block)[0], 2 * block.reverse_kl_C


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"value": None}, r"objective Mine has no method value\(p, logp, logq\)"),
        ({"gain": lambda self, p, logp, logq: logp}, r"gain\(logp, logq\) .* raised TypeError"),
        ({"value": lambda self, p, logp, logq: (p * (logp - logq)).sum(dim=-1)}, "value.* Leave sums to the loss"),
        ({"pull": lambda self, p, logp, logq: (p * (logp - logq)).float()}, "pull.* gave .*float32"),
        ({"gain": lambda self, logp, logq: 1.0}, "gain.* gave float"),
        ({"pull": overwritten}, "pull wrote to its arguments"),
        ({"pull": lambda self, p, logp, logq: p * (logp - logq - logq.mean(dim=-1, keepdim=True))}, "not elementwise"),
        ({"pull": lambda self, p, logp, logq: p * (logq - logp)}, "not the gradient of sum"),
        ({"pull": wrong_entry, "gain": lambda self, logp, logq: wrong_entry(None, logp.exp(), logp, logq) / logp.exp()},
         "not the gradient of sum"),
        ({"value": lambda self, p, logp, logq: -logq.exp() * (logp - logq)}, "not the gradient of sum"),
        ({"gain": lambda self, logp, logq: logp - logq + 1}, "gain is not pull / p: at entry"),
        ({"dense_": half_dense}, "the gradient of dense_ is not"),
        ({"dense_": worthless_dense}, "the value of dense_ is not"),
        ({"value": lambda self, p, logp, logq: p * (p / logq.exp()).log()}, "value is NaN in float32 at log p = -200"),
    ],
)  # fmt: skip
def test_each_broken_promise_is_named(methods: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_objective(broken(**methods))


def test_the_control_passes() -> None:
    check_objective(broken())


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, float("nan")])
def test_the_ends_of_the_jsd_are_other_objectives(beta: float) -> None:
    with pytest.raises(ValueError, match="Use ForwardKL for 0 and ReverseKL for 1"):
        JSD(beta)
