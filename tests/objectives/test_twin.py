"""Fused against naive, everything drawn at random: shapes, temperature, objective, head, chunks, staleness.

Values and all gradients to 1e-10. What each estimator's expectation is stands in its own file.

Shape legend: N tokens, V vocabulary, d hidden width, D the teacher's.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Head, Tokens
from tests._naive import naive_loss

from .helpers import at, close, distillation_loss, log_softmax, randn, target

discounts = st.sampled_from([0.0, 0.0, 0.5, 0.95, 1.0])
references = st.none() | st.builds(ReferenceConfig, weight=st.floats(0.05, 3.0))
common = {"discount": discounts, "reference": references, "importance_cap": st.floats(1.0, 4.0)}
supports = st.sampled_from(["sampled", "full"]) | st.integers(1, 8)
betas = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0.01, 0.99)
objectives = st.one_of(
    st.builds(ReverseKLConfig, support=supports, **common),
    st.builds(ReverseKLConfig, support=supports, **common),  # twice: the family is the heart of it
    st.builds(ReverseKLConfig, support=st.just("student_top"), k=st.integers(1, 8), **common),
    st.builds(JSDConfig, beta=st.floats(0.01, 1.0), support=st.just("student_top"), k=st.integers(1, 8), **common),
    st.builds(ForwardKLConfig, support=st.just("full") | st.integers(1, 8), **common),
    st.builds(JSDConfig, beta=betas, **common),
    st.builds(JSDConfig, beta=st.floats(0.01, 1.0), support=supports, **common),
)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    objective=objectives,
    temperature=st.floats(0.3, 3.0),
    count=st.integers(0, 9),
    vocabulary=st.integers(2, 8),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    bias=st.booleans(),
    multiplier=st.sampled_from([1.0, 0.25, 1.6]),
    softcap=st.none() | st.floats(1.0, 10.0),
    staleness=st.sampled_from([0.0, 1.0]),
    rewarded=st.booleans(),
    compact=st.booleans(),
    chunk=st.integers(1, 10),
    denominator=st.floats(0.5, 100.0),
    seed=st.integers(0, 2**20),
)
def test_fused_equals_naive(
    objective: ObjectiveConfig,
    temperature: float,
    count: int,
    vocabulary: int,
    widths: tuple[int, int],
    bias: bool,
    multiplier: float,
    softcap: float | None,
    staleness: float,
    rewarded: bool,
    compact: bool,
    chunk: int,
    denominator: float,
    seed: int,
) -> None:
    """Value and gradients of hidden states, weight and bias: the fused loss is the naive one."""
    if isinstance(objective.support, int):
        objective = objective.model_copy(update={"support": min(objective.support, vocabulary)})
    if objective.k is not None:
        objective = objective.model_copy(update={"k": min(objective.k, vocabulary)})
    hidden_Nd = randn(seed, count, widths[0]).requires_grad_()
    weight_Vd = randn(seed + 1, vocabulary, widths[0]).requires_grad_()
    bias_V = randn(seed + 2, vocabulary).requires_grad_() if bias else None
    policies = [
        Dense(randn(seed + i, count, widths[1]), Head(randn(seed + i + 1, vocabulary, widths[1]))) for i in (3, 5)
    ]
    logq_NV, logref_NV = (log_softmax(x.hidden_Nd @ x.head.weight_Vd.T, temperature) for x in policies)

    logits_NV = hidden_Nd @ weight_Vd.T
    logits_NV = multiplier * (logits_NV if bias_V is None else logits_NV + bias_V)
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)

    generator = torch.Generator().manual_seed(seed + 7)
    sampled_N = torch.randint(vocabulary, (count,), generator=generator)
    behaviour_N = at(log_softmax(logits_NV.detach(), temperature), sampled_N)
    tokens = Tokens(
        sampled_N,
        torch.randint(3, (count,), generator=generator).sort().values,
        behaviour_N + staleness * randn(seed + 8, count),
        randn(seed + 9, count) if rewarded else None,
    )

    twin = naive_loss(objective, temperature, logits_NV, logq_NV, tokens, denominator, logref_NV)
    teacher = policies[0]
    if compact and objective.support != "full":
        ids_NK = None if objective.k is None else logits_NV.detach().topk(objective.k, dim=-1).indices
        teacher = target(objective.support, logq_NV, sampled_N, ids_NK)
    loss, measured = distillation_loss(
        objective,
        temperature,
        hidden_Nd,
        Head(weight_Vd, bias_V, multiplier, softcap),
        tokens,
        teacher,
        denominator,
        policies[1] if objective.reference else None,
        chunk_bytes=4 * vocabulary * chunk,
    )
    close(loss.detach(), twin.value.detach(), 1e-10)
    close(measured.objective, twin.estimate_N, 1e-10)
    wrt = [hidden_Nd, weight_Vd, *([] if bias_V is None else [bias_V])]
    got, wanted = (
        torch.autograd.grad(x, wrt, materialize_grads=True, retain_graph=True) for x in (loss, twin.surrogate)
    )
    for a, b in zip(got, wanted, strict=True):
        close(a, b, 1e-10)
