"""Groups of tokens, of a teacher with others: fused against naive, and one token a group against one token.

Shape legend: N tokens, G groups, V vocabulary.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limbeck.config.objective import JSDConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Grouped, Head, Sampled, Tokens
from tests._naive import naive_groups

from .helpers import alone, at, close, dense, distillation_loss, gradient_of, log_softmax, randn


def groups_of(sizes: list[int]) -> list[list[int]]:
    """[[0, 1], [2]] for [2, 1]."""
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [list(range(a, b)) for a, b in pairwise(starts)]


def numbers(groups: list[list[int]]) -> Tensor:
    return torch.tensor([g for g, places in enumerate(groups) for _ in places], dtype=torch.int64)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 4), max_size=5),
    vocabulary=st.integers(2, 6),
    temperature=st.floats(0.5, 2.0),
    discount=st.sampled_from([0.0, 0.0, 0.7, 1.0]),
    cap=st.floats(1.0, 4.0),
    reference=st.booleans(),
    rewarded=st.booleans(),
    staleness=st.sampled_from([0.0, 1.0]),
    chunk=st.integers(1, 6),
    softcap=st.none() | st.floats(2.0, 8.0),
    seed=st.integers(0, 2**20),
)
def test_fused_equals_naive(
    sizes: list[int],
    vocabulary: int,
    temperature: float,
    discount: float,
    cap: float,
    reference: bool,
    rewarded: bool,
    staleness: float,
    chunk: int,
    softcap: float | None,
    seed: int,
) -> None:
    """Value and gradients of hidden states and weight, sample by sample; chunks end within groups."""
    groups, count = groups_of(sizes), sum(sizes)
    objective = ReverseKLConfig(
        support="sampled",
        discount=discount,
        importance_cap=cap,
        reference=ReferenceConfig(weight=0.7) if reference else None,
    )
    hidden_Nd, weight_Vd = randn(seed, count, 3).requires_grad_(), randn(seed + 1, vocabulary, 3).requires_grad_()
    policy = Dense(randn(seed + 2, count, 2), Head(randn(seed + 3, vocabulary, 2)))
    logref_NV = log_softmax(policy.hidden_Nd @ policy.head.weight_Vd.T, temperature)
    logits_NV = hidden_Nd @ weight_Vd.T
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap)
    generator = torch.Generator().manual_seed(seed)
    sampled_N = torch.randint(vocabulary, (count,), generator=generator)
    sequence_N = torch.tensor([g // 2 for g, places in enumerate(groups) for _ in places], dtype=torch.int64)
    behaviour_N = at(log_softmax(logits_NV.detach(), temperature), sampled_N) + staleness * randn(seed + 4, count)
    tokens = Tokens(sampled_N, sequence_N, behaviour_N, randn(seed + 5, count) if rewarded else None)
    logq_G = -3 * randn(seed + 6, len(groups)).abs()

    twin = naive_groups(objective, temperature, logits_NV, groups, logq_G, tokens, 7.0, logref_NV)
    loss, measured = distillation_loss(
        objective,
        temperature,
        hidden_Nd,
        Head(weight_Vd, softcap=softcap),
        tokens,
        Grouped(logq_G, numbers(groups)),
        7.0,
        policy if reference else None,
        chunk_bytes=4 * vocabulary * chunk,
    )
    close(loss.detach(), twin.value.detach(), 1e-10)
    close(measured.objective, twin.estimate_N, 1e-10)
    got, wanted = (
        torch.autograd.grad(x, [hidden_Nd, weight_Vd], materialize_grads=True, retain_graph=True)
        for x in (loss, twin.surrogate)
    )
    for a, b in zip(got, wanted, strict=True):
        close(a, b, 1e-10)
    ratio_N = measured.student_logprob - measured.teacher_logprob  # what the KL of a byte is summed from
    logp_N = at(log_softmax(logits_NV.detach(), temperature), sampled_N)
    for g, places in enumerate(groups):
        close(ratio_N[places].sum(), logp_N[places].sum() - logq_G[g], 1e-10)


def test_a_token_a_group_is_the_sampled_token() -> None:
    """Where both sides have the same tokens, groups change nothing: gradient, value and measurements are the same."""
    logits_NV, teacher_NV = randn(0, 6, 5), log_softmax(randn(1, 6, 5))
    sampled_N = torch.tensor([0, 4, 2, 2, 1, 3])
    tokens = Tokens(
        sampled_N, torch.tensor([0, 0, 0, 1, 1, 1]), at(log_softmax(logits_NV), sampled_N) + 0.3 * randn(2, 6)
    )
    objective = ReverseKLConfig(support="sampled")
    targets = (Sampled(at(teacher_NV, sampled_N)), Grouped(at(teacher_NV, sampled_N), torch.arange(6)))
    plain, grouped = (gradient_of(objective, 1.0, logits_NV, tokens, teacher) for teacher in targets)
    close(grouped[0], plain[0])
    close(grouped[1], plain[1])
    close(grouped[2].objective, plain[2].objective)
    close(grouped[2].teacher_logprob, plain[2].teacher_logprob)


def test_a_group_that_neither_side_thinks_likely_is_finite() -> None:
    """Its probability is 0 in float32: nothing is divided by it."""
    logits_NV = torch.zeros(40, 3)
    logits_NV[:, 0] = -30.0
    teacher = Grouped(torch.tensor([-2000.0]), torch.zeros(40, dtype=torch.int64))
    sampled_N = torch.zeros(40, dtype=torch.int64)
    tokens = Tokens(sampled_N, torch.zeros(40, dtype=torch.int64), at(log_softmax(logits_NV), sampled_N))
    grad_NV, loss, _ = gradient_of(ReverseKLConfig(support="sampled"), 1.0, logits_NV, tokens, teacher)
    assert torch.isfinite(grad_NV).all()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ReverseKLConfig(support=2), "objective.support = 2 of a teacher with another tokenizer.*would be biased"),
        (ReverseKLConfig(support="full"), "Set objective.support = 'sampled'"),
        (JSDConfig(support="sampled"), "jsd is asked for of a teacher with another tokenizer"),
    ],
)
def test_what_groups_cannot_carry_is_refused(objective: ReverseKLConfig | JSDConfig, message: str) -> None:
    teacher = Grouped(torch.zeros(1), torch.zeros(2, dtype=torch.int64))
    tokens = alone(torch.zeros(2, dtype=torch.int64), torch.zeros(2))
    with pytest.raises(ValueError, match=message):
        distillation_loss(objective, 1.0, randn(0, 2, 3), dense(randn(1, 2, 3)).head, tokens, teacher, 1.0)
