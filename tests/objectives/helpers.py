"""Small worlds: raw logits as hidden states under an identity head, every token enumerated.

With `weight = eye(V)` a hidden state *is* a row of logits, so `hidden.grad` is the gradient with
respect to raw logits. `every_token` lays out one copy of a prefix per vocabulary entry, each sampled
once: weighting the rows of the gradient by p(y) (or mu(y)) is then an exact expectation.

Shape legend: N tokens, V vocabulary, K support size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck.config.objective import ObjectiveConfig
from limbeck.objectives import Dense, Head, Loss, Measured, Sampled, Target, Tokens, TopK, loss_of
from limbeck.objectives import distillation_loss as loss_from

TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
UNCAPPED = 1e30  # an importance cap no ratio here comes near


def name(objective: ObjectiveConfig) -> str:
    """A test id: what differs from the default reverse KL."""
    given = objective.model_dump(exclude_defaults=True, exclude={"divergence"})
    return "-".join([objective.divergence, *(f"{key}={value}" for key, value in given.items())])


def distillation_loss(objective: ObjectiveConfig | Loss, *args: Any, **options: Any) -> tuple[Tensor, Measured]:
    """The fused loss of a recipe's table, or of a loss."""
    loss = objective if isinstance(objective, Loss) else loss_of(objective)
    return loss_from(loss, *args, **options)


def randn(seed: int, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.log_softmax(logits / temperature, dim=-1)


def at(logprobs_NV: Tensor, ids_N: Tensor) -> Tensor:
    """[N] the entry of each row named by `ids_N`."""
    return logprobs_NV.gather(-1, ids_N[..., None])[..., 0]


def identity(vocabulary: int, dtype: torch.dtype = torch.float64) -> Head:
    return Head(torch.eye(vocabulary, dtype=dtype))


def dense(logits_NV: Tensor) -> Dense:
    return Dense(logits_NV, identity(logits_NV.shape[-1], logits_NV.dtype))


def alone(sampled_N: Tensor, behaviour_N: Tensor, advantage_N: Tensor | None = None) -> Tokens:
    """Each token a sequence of its own."""
    return Tokens(sampled_N, torch.arange(len(sampled_N)), behaviour_N, advantage_N)


def target(support: int | str, logq_NV: Tensor, sampled_N: Tensor, ids_NK: Tensor | None = None) -> Target:
    """The least a teacher must give for a support, from its log-probs at T; `ids_NK`: those it is asked about."""
    if ids_NK is not None:
        return TopK(ids_NK, logq_NV.gather(1, ids_NK), at(logq_NV, sampled_N))
    if support == "sampled":
        return Sampled(at(logq_NV, sampled_N))
    if support == "full":
        return dense(logq_NV)  # only good at T = 1: log-probs are then logits
    assert isinstance(support, int)
    top = logq_NV.topk(support, dim=-1)
    return TopK(top.indices, top.values, at(logq_NV, sampled_N))


def gradient_of(
    objective: ObjectiveConfig | Loss,
    temperature: float,
    logits_NV: Tensor,
    tokens: Tokens,
    teacher: Target,
    denominator: float = 1.0,
    **options: Any,
) -> tuple[Tensor, Tensor, Measured]:
    """[N, V] fused gradient with respect to raw logits, [] loss value, measurements."""
    hidden_NV = logits_NV.detach().clone().requires_grad_()
    head = identity(logits_NV.shape[-1], logits_NV.dtype)
    loss, measured = distillation_loss(objective, temperature, hidden_NV, head, tokens, teacher, denominator, **options)
    (grad_NV,) = torch.autograd.grad(loss, hidden_NV)
    return grad_NV, loss.detach(), measured


def every_token(
    objective: ObjectiveConfig | Loss,
    temperature: float,
    z_V: Tensor,
    u_V: Tensor,
    *,
    mu_V: Tensor | None = None,
    advantage_V: Tensor | None = None,
    reference_V: Tensor | None = None,
    compact: bool = True,
) -> tuple[Tensor, Tensor, Measured]:
    """One prefix, every y: [V, V] gradient of each sample (row y), [V] probability of each, measurements.

    `mu_V` are log-probs of the sampler (the student's own where absent). With `compact` the teacher
    gives only what the support needs, else its whole distribution.
    """
    count = len(z_V)
    logp_V = log_softmax(z_V, temperature)
    mu_V = logp_V if mu_V is None else mu_V
    sampled_N = torch.arange(count)
    rows_NV = u_V.expand(count, -1)
    teacher: Target = dense(rows_NV)
    if compact and objective.support != "full":
        teacher = target(objective.support, log_softmax(rows_NV, temperature), sampled_N)
    grad_NV, _, measured = gradient_of(
        objective,
        temperature,
        z_V.expand(count, -1),
        alone(sampled_N, mu_V, advantage_V),
        teacher,
        reference=None if reference_V is None else dense(reference_V.expand(count, -1)),
    )
    return grad_NV, mu_V.exp(), measured


def expected(values: Tensor, probabilities: Tensor) -> Tensor:
    """Exact expectation over the first dimension."""
    return torch.tensordot(probabilities, values, dims=1)


def finite_difference(f: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a scalar function, an entry at a time."""
    slope = torch.empty_like(x)
    for i in range(x.numel()):
        delta = torch.zeros_like(x)
        delta.view(-1)[i] = step
        slope.view(-1)[i] = (f(x + delta) - f(x - delta)) / (2 * step)
    return slope


def close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-11) -> None:
    assert_close(actual, wanted, rtol=tolerance, atol=tolerance)


class LargestTensor(TorchDispatchMode):
    """Records the largest output of every operator run inside, views included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.where = 0, ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.numel() > self.numel:
                self.numel, self.where = leaf.numel(), f"{func} {tuple(leaf.shape)}"
        return out
