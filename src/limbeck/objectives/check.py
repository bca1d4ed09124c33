"""Does a custom objective keep its promises? Finite differences in float64 on a vocabulary of seven, in milliseconds.

    check_objective(MyDivergence(0.3))   # raises RecipeError with the first promise that is broken

What must hold is in `divergences.py`. What need not, and is reported: that the value is never negative, that value
and gradient are zero at p = q, and that nothing overflows where a probability underflows.

Shape legend: N prefixes, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.errors import RecipeError
from limbeck.objectives.divergences import DenseBlock, dense_function
from limbeck.objectives.logits import dot
from limbeck.protocols import Objective

PREFIXES, VOCABULARY = 32, 7
SPREADS = (0.3, 8.0)  # of a prefix's random logits: from nearly even distributions to nearly certain ones
STEP = 1e-5  # of finite differences, whose error is then about 1e-10
TOLERANCE = 1e-6  # relative to a prefix's largest entry, or to 1
UNLIKELY = -200.0  # a log-prob whose probability is 0 in float32
SIGNATURES = {"pull": "(p, logp, logq)", "gain": "(logp, logq)", "value": "(p, logp, logq)"}


@dataclass(frozen=True)
class ObjectiveReport:
    """What is usual of a divergence and not required of an objective."""

    smallest_value: float  # of sum(value) over random pairs of distributions; negative: not a divergence
    value_at_equal: float  # largest |sum(value)| where p = q
    gradient_at_equal: float  # largest |pull - p * sum(pull)| where p = q; not 0: the teacher is no resting point
    overflows: tuple[str, ...]  # methods that are infinite in float32 where p or q underflows


@dataclass(frozen=True, eq=False)
class _Pair:
    """Log-probs of two policies and probabilities of the first, [N, V] each."""

    p: Tensor
    logp: Tensor
    logq: Tensor

    @staticmethod
    def of(z_NV: Tensor, u_NV: Tensor) -> _Pair:
        logp_NV = torch.log_softmax(z_NV, dim=-1)
        return _Pair(logp_NV.exp(), logp_NV, torch.log_softmax(u_NV, dim=-1))

    def at(self, ids: Tensor) -> _Pair:
        return _Pair(self.p[..., ids], self.logp[..., ids], self.logq[..., ids])


def check_objective(objective: Objective) -> ObjectiveReport:
    """Compare `pull`, `gain` and `value` with each other.

    Raises `RecipeError` (a `ValueError`) that names the first mismatch: a method that is missing or fails, another
    shape or type, an argument that was written to, an entry that depends on other entries, a pull that is not the
    gradient of the value, a gain that is not pull / p, a `dense_` that differs from the two, a NaN where p or q
    underflows.
    """
    generator = torch.Generator().manual_seed(0)
    low, high = (math.log10(spread) for spread in SPREADS)
    spread_N1 = torch.logspace(low, high, PREFIXES, dtype=torch.float64)[:, None]
    z_NV, u_NV = (
        spread_N1 * torch.randn(PREFIXES, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    calls = _Calls(objective)
    pair = _Pair.of(z_NV, u_NV)
    _check_elementwise(calls, pair)
    _check_gradient(calls, z_NV, u_NV)
    _check_gain(calls, pair)
    _check_dense(calls, pair)
    equal = _Pair.of(z_NV, z_NV)
    return ObjectiveReport(
        smallest_value=float(calls.value(pair).sum(dim=-1).min()),
        value_at_equal=float(calls.value(equal).sum(dim=-1).abs().max()),
        gradient_at_equal=float(_gradient(calls, equal).abs().max()),
        overflows=_check_underflow(calls),
    )


class _Calls:
    """The three methods, with what they return looked at."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.name = objective, f"objective {type(objective).__name__}"
        for method, signature in SIGNATURES.items():
            if not callable(getattr(objective, method, None)):
                raise RecipeError(f"{self.name} has no method {method}{signature}. See limbeck.protocols.Objective.")

    def pull(self, pair: _Pair) -> Tensor:
        return self._call("pull", self.objective.pull, pair.p, pair.logp, pair.logq)

    def gain(self, pair: _Pair) -> Tensor:
        return self._call("gain", self.objective.gain, pair.logp, pair.logq)

    def value(self, pair: _Pair) -> Tensor:
        return self._call("value", self.objective.value, pair.p, pair.logp, pair.logq)

    def all(self) -> dict[str, Callable[[_Pair], Tensor]]:
        return {"pull": self.pull, "gain": self.gain, "value": self.value}

    def _call(self, method: str, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        before = [argument.clone() for argument in arguments]
        wanted = arguments[0]
        try:
            result = function(*arguments)
        except Exception as error:
            raise RecipeError(
                f"{self.name}: {method}{SIGNATURES[method]} of tensors of shape {tuple(wanted.shape)} raised "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(result, Tensor) or result.shape != wanted.shape or result.dtype != wanted.dtype:
            given = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else type(result).__name__
            raise RecipeError(
                f"{self.name}: {method}{SIGNATURES[method]} must give a tensor of its arguments' shape and type, "
                f"{tuple(wanted.shape)} {wanted.dtype}, but gave {given}. Leave sums to the loss."
            )
        if not all(torch.equal(a, b) for a, b in zip(arguments, before, strict=True)):
            raise RecipeError(
                f"{self.name}: {method} wrote to its arguments, which others read after it. Make new ones."
            )
        return result


def _check_elementwise(calls: _Calls, pair: _Pair) -> None:
    """Some entries alone are those entries of all: none, one, several in another order, without a leading dimension."""
    for method, function in calls.all().items():
        everything = function(pair)
        for ids in (torch.tensor([], dtype=torch.long), torch.tensor([3]), torch.tensor([5, 0, 2])):
            _compare(
                function(pair.at(ids)), everything[..., ids],
                f"{calls.name}: {method} of some tokens differs from those entries of {method} of all tokens, so it is "
                "not elementwise and cannot be used on a part of the vocabulary",
            )  # fmt: skip
        first = _Pair(pair.p[0], pair.logp[0], pair.logq[0])
        _compare(
            function(first), everything[0], f"{calls.name}: {method} of one prefix differs from {method} among others"
        )


def _gradient(calls: _Calls, pair: _Pair) -> Tensor:
    pull_NV = calls.pull(pair)
    return pull_NV - pair.p * pull_NV.sum(dim=-1, keepdim=True)


def _check_gradient(calls: _Calls, z_NV: Tensor, u_NV: Tensor) -> None:
    slope_NV = torch.empty_like(z_NV)
    for v in range(z_NV.shape[1]):
        moved = [z_NV.clone(), z_NV.clone()]
        moved[0][:, v] += STEP
        moved[1][:, v] -= STEP
        above_N, below_N = (calls.value(_Pair.of(x_NV, u_NV)).sum(dim=-1) for x_NV in moved)
        slope_NV[:, v] = (above_N - below_N) / (2 * STEP)
    _compare(
        _gradient(calls, _Pair.of(z_NV, u_NV)), slope_NV,
        f"{calls.name}: pull - p * sum(pull) is not the gradient of sum(value) with respect to the student's logits",
    )  # fmt: skip


def _check_gain(calls: _Calls, pair: _Pair) -> None:
    _compare(calls.gain(pair), calls.pull(pair) / pair.p, f"{calls.name}: gain is not pull / p")


def _check_dense(calls: _Calls, pair: _Pair) -> None:
    """An objective's own `dense_`, or ours: the same gradient and value."""
    q_NV, ratio_NV = pair.logq.exp(), pair.logp - pair.logq
    wanted_NV, value_N = _gradient(calls, pair), calls.value(pair).sum(dim=-1)
    block = DenseBlock(pair.p, pair.logp, q_NV, pair.logq, ratio_NV, dot(pair.p, ratio_NV))
    grad_NV, dense_value_N = dense_function(calls.objective)(block)
    _compare(grad_NV, wanted_NV, f"{calls.name}: the gradient of dense_ is not pull - p * sum(pull)")
    _compare(dense_value_N, value_N, f"{calls.name}: the value of dense_ is not sum(value)")


def _check_underflow(calls: _Calls) -> tuple[str, ...]:
    """Methods that are infinite in float32 where a probability is 0. NaN is refused: it would stop the run."""
    z_NV = torch.tensor([[0.0, UNLIKELY], [UNLIKELY, 0.0], [0.0, UNLIKELY]], dtype=torch.float32)
    u_NV = torch.tensor([[0.0, -1.0], [0.0, -1.0], [UNLIKELY, 0.0]], dtype=torch.float32)
    pair, overflows = _Pair.of(z_NV, u_NV), []
    for method, function in calls.all().items():
        result = function(pair)
        if result.isnan().any():
            n, v = (int(i) for i in result.isnan().nonzero()[0])
            raise RecipeError(
                f"{calls.name}: {method} is NaN in float32 at log p = {float(pair.logp[n, v]):g}, log q = "
                f"{float(pair.logq[n, v]):g}. Form it from log-probs, so that nothing is infinity times 0."
            )
        if result.isinf().any():
            overflows.append(method)
    return tuple(overflows)


def _compare(found: Tensor, wanted: Tensor, what: str) -> None:
    """Raises `RecipeError` with the first entry that is off."""
    if wanted.numel() == 0:
        return
    allowed = TOLERANCE * wanted.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    off = ~((found - wanted).abs() <= allowed)  # NaN is off
    if off.any():
        where = tuple(off.nonzero()[0].tolist())
        raise RecipeError(
            f"{what}: at entry {where} it is {float(found[where]):.6g}, expected {float(wanted[where]):.6g}"
        )
