"""Gradients through the head: widths, bias, multiplier, soft cap, tied and frozen weights, narrow dtypes.

logits = softcap * tanh(multiplier * (hidden @ weight.T + bias) / softcap), spelled out again here.

Shape legend: N tokens, V vocabulary, d hidden width of the student, D of the teacher.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Head, Tokens
from tests._naive import naive_loss
from tests.objectives.helpers import alone, at, close, distillation_loss, log_softmax, name, randn

N, V, WIDTH, TEACHER_WIDTH, T = 6, 9, 4, 7, 0.7

OBJECTIVES: list[ObjectiveConfig] = [
    ReverseKLConfig(),
    ReverseKLConfig(support="sampled"),
    ReverseKLConfig(support=3, discount=0.6),
    ReverseKLConfig(reference=ReferenceConfig(weight=0.3), discount=1.0),
    ForwardKLConfig(discount=0.5),
    JSDConfig(beta=0.4),
]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=name)


def raw_logits(head: Head, hidden_Nd: Tensor) -> Tensor:
    logits_NV = hidden_Nd @ head.weight_Vd.T
    if head.bias_V is not None:
        logits_NV = logits_NV + head.bias_V
    logits_NV = head.multiplier * logits_NV
    return logits_NV if head.softcap is None else head.softcap * torch.tanh(logits_NV / head.softcap)


def student(seed: int, bias: bool = False, multiplier: float = 1.0, softcap: float | None = None):
    """[N, d] hidden states and a head, all of whose parameters want a gradient."""
    head = Head(
        randn(seed, V, WIDTH).requires_grad_(),
        randn(seed + 1, V).requires_grad_() if bias else None,
        multiplier,
        softcap,
    )
    return randn(seed + 2, N, WIDTH).requires_grad_(), head


def teacher() -> Dense:
    return Dense(randn(90, N, TEACHER_WIDTH, scale=0.6), Head(randn(91, V, TEACHER_WIDTH), randn(92, V)))


def reference_for(objective: ObjectiveConfig) -> Dense | None:
    head = Head(randn(93, V, 2), multiplier=0.5, softcap=3.0)
    return Dense(randn(94, N, 2), head) if objective.reference else None


def tokens_for(hidden_Nd: Tensor, head: Head) -> Tokens:
    sampled_N = torch.tensor([0, 3, 3, 8, 1, 5])
    with torch.no_grad():
        behaviour_N = at(log_softmax(raw_logits(head, hidden_Nd), T), sampled_N)
    return Tokens(sampled_N, torch.tensor([0, 0, 0, 1, 2, 2]), behaviour_N, randn(95, N))


def naive_gradients(objective: ObjectiveConfig, hidden_Nd: Tensor, head: Head, wrt: list[Tensor]) -> list[Tensor]:
    target, reference = teacher(), reference_for(objective)
    twin = naive_loss(
        objective,
        T,
        raw_logits(head, hidden_Nd),
        log_softmax(raw_logits(target.head, target.hidden_Nd), T),
        tokens_for(hidden_Nd, head),
        5.0,
        None if reference is None else log_softmax(raw_logits(reference.head, reference.hidden_Nd), T),
    )
    return list(torch.autograd.grad(twin.surrogate, wrt))


def fused_loss(objective: ObjectiveConfig, hidden_Nd: Tensor, head: Head, **options: int) -> Tensor:
    tokens = tokens_for(hidden_Nd, head)
    reference = reference_for(objective)
    loss, _ = distillation_loss(objective, T, hidden_Nd, head, tokens, teacher(), 5.0, reference, **options)
    return loss


@every_objective
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("multiplier", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_reach_hidden_states_and_head(
    objective: ObjectiveConfig, bias: bool, multiplier: float, softcap: float | None
) -> None:
    """Student and teacher of different widths; two chunks, so that the head's gradient adds up."""
    hidden_Nd, head = student(0, bias, multiplier, softcap)
    wrt = [hidden_Nd, head.weight_Vd, *([] if head.bias_V is None else [head.bias_V])]
    got = torch.autograd.grad(fused_loss(objective, hidden_Nd, head, chunk_bytes=4 * V * 4), wrt)
    for a, b in zip(got, naive_gradients(objective, hidden_Nd, head, wrt), strict=True):
        close(a, b)


@every_objective
def test_tied_weight_collects_both_gradients(objective: ObjectiveConfig) -> None:
    """The head's weight is the embedding as well: what it gets as either adds up."""
    embedding_Vd, mixing_dd = randn(10, V, WIDTH).requires_grad_(), randn(11, WIDTH, WIDTH).requires_grad_()
    ids_N = torch.tensor([2, 3, 0, 0, 7, 8])

    def hidden() -> Tensor:
        return torch.tanh(embedding_Vd[ids_N] @ mixing_dd)

    head = Head(embedding_Vd)
    fused_loss(objective, hidden(), head).backward()
    assert embedding_Vd.grad is not None
    assert mixing_dd.grad is not None
    wanted = naive_gradients(objective, hidden(), head, [embedding_Vd, mixing_dd])
    close(embedding_Vd.grad, wanted[0])
    close(mixing_dd.grad, wanted[1])
    assert (embedding_Vd.grad[ids_N].abs() > 0).all()


def test_frozen_weight_gets_no_gradient_and_passes_it_on() -> None:
    hidden_Nd, head = student(20, bias=True)
    assert head.bias_V is not None
    (wanted_Nd,) = naive_gradients(ReverseKLConfig(), hidden_Nd, head, [hidden_Nd])
    frozen = head.detach()
    fused_loss(ReverseKLConfig(), hidden_Nd, frozen).backward()
    assert hidden_Nd.grad is not None
    close(hidden_Nd.grad, wanted_Nd)
    assert frozen.weight_Vd.grad is None
    assert head.weight_Vd.grad is None
    assert head.bias_V.grad is None


def test_frozen_weight_with_a_trained_bias() -> None:
    hidden_Nd, head = student(23, bias=True)
    assert head.bias_V is not None
    half = replace(head, weight_Vd=head.weight_Vd.detach())
    wanted = naive_gradients(ReverseKLConfig(), hidden_Nd, half, [hidden_Nd, head.bias_V])
    got = torch.autograd.grad(fused_loss(ReverseKLConfig(), hidden_Nd, half), [hidden_Nd, head.bias_V])
    close(got[0], wanted[0])
    close(got[1], wanted[1])


def test_frozen_hidden_states_leave_the_head_to_train() -> None:
    hidden_Nd, head = student(26)
    hidden_Nd = hidden_Nd.detach()
    fused_loss(ReverseKLConfig(), hidden_Nd, head).backward()
    assert head.weight_Vd.grad is not None
    close(head.weight_Vd.grad, naive_gradients(ReverseKLConfig(), hidden_Nd, head, [head.weight_Vd])[0])
    assert hidden_Nd.grad is None


def test_the_bias_alone_can_be_trained() -> None:
    """Hidden states and weight frozen: "gradients flow to it and to the head's weight and bias"."""
    hidden_Nd, head = student(29, bias=True)
    assert head.bias_V is not None
    hidden_Nd, half = hidden_Nd.detach(), replace(head, weight_Vd=head.weight_Vd.detach())
    loss = fused_loss(ReverseKLConfig(), hidden_Nd, half)
    assert loss.requires_grad
    (wanted_V,) = naive_gradients(ReverseKLConfig(), hidden_Nd, half, [head.bias_V])
    close(torch.autograd.grad(loss, head.bias_V)[0], wanted_V)


@every_objective
def test_without_gradients_the_value_is_the_same(objective: ObjectiveConfig) -> None:
    hidden_Nd, head = student(32, bias=True)
    with_grad = fused_loss(objective, hidden_Nd, head)
    assert with_grad.requires_grad
    frozen = fused_loss(objective, hidden_Nd.detach(), head.detach())
    with torch.no_grad():
        inference = fused_loss(objective, hidden_Nd, head)
    for loss in (frozen, inference):
        assert not loss.requires_grad
        assert torch.equal(loss, with_grad.detach())


def test_teacher_and_reference_get_no_gradient() -> None:
    """Both are frozen by definition, even when their tensors belong to a live graph."""
    hidden_Nd, head = student(35)
    live = [randn(38, N, 3).requires_grad_(), randn(39, V, 3).requires_grad_()]
    policy = Dense(live[0], Head(live[1]))
    objective = ReverseKLConfig(reference=ReferenceConfig(weight=0.5))
    loss, _ = distillation_loss(
        objective, T, hidden_Nd, head, tokens_for(hidden_Nd, head), policy, 5.0, reference=policy
    )
    loss.backward()
    assert hidden_Nd.grad is not None
    assert [x.grad for x in live] == [None, None]


def test_upstream_gradient_scales() -> None:
    """The loss is one term of many: what comes down from above multiplies every gradient."""
    hidden_Nd, head = student(40, bias=True)
    assert head.bias_V is not None
    wrt = [hidden_Nd, head.weight_Vd, head.bias_V]
    wanted = naive_gradients(ReverseKLConfig(), hidden_Nd, head, wrt)
    got = torch.autograd.grad(-2.5 * fused_loss(ReverseKLConfig(), hidden_Nd, head) + 7.0, wrt)
    for a, b in zip(got, wanted, strict=True):
        close(a, -2.5 * b)


def test_gradients_accumulate_over_micro_batches() -> None:
    """Two losses over one head before a step: `.grad` is their sum, and neither spoils the other's."""
    hidden_Nd, head = student(43)
    wanted = naive_gradients(ReverseKLConfig(), hidden_Nd, head, [hidden_Nd, head.weight_Vd])
    (fused_loss(ReverseKLConfig(), hidden_Nd, head) + fused_loss(ReverseKLConfig(), hidden_Nd, head)).backward()
    fused_loss(ReverseKLConfig(), hidden_Nd, head).backward()
    assert hidden_Nd.grad is not None
    assert head.weight_Vd.grad is not None
    close(hidden_Nd.grad, 3 * wanted[0])
    close(head.weight_Vd.grad, 3 * wanted[1])


def test_a_second_backward_is_refused() -> None:
    """The gradient is handed on, not kept; better an error than a gradient scaled twice."""
    hidden_Nd, head = student(46)
    loss = fused_loss(ReverseKLConfig(), hidden_Nd, head)
    loss.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="once"):
        loss.backward()


def test_inputs_are_left_alone() -> None:
    """Chunks are worked on in place; hidden states, heads, scores and tokens are not."""
    hidden_Nd, head = student(49, bias=True)
    assert head.bias_V is not None
    target, tokens = teacher(), tokens_for(hidden_Nd, head)
    held = [hidden_Nd, head.weight_Vd, head.bias_V, target.hidden_Nd, target.head.weight_Vd]
    held += [tokens.sampled_N, tokens.behaviour_N]
    before = [x.detach().clone() for x in held]
    for objective in OBJECTIVES:
        loss, _ = distillation_loss(objective, T, hidden_Nd, head, tokens, target, 5.0, reference_for(objective))
        loss.backward()
    for x, y in zip(held, before, strict=True):
        assert torch.equal(x, y)


def test_hidden_states_need_not_be_contiguous() -> None:
    """A slice of the model's output, transposed or strided, as masks and shifts leave it."""
    flat_dN = randn(52, WIDTH, 2 * N).requires_grad_()
    head = Head(randn(53, V, WIDTH).requires_grad_())
    for view in (lambda: flat_dN.T[:N], lambda: flat_dN.T[::2]):
        assert not view().is_contiguous()
        got = torch.autograd.grad(fused_loss(ReverseKLConfig(), view(), head), [flat_dN, head.weight_Vd])
        wanted = naive_gradients(ReverseKLConfig(), view(), head, [flat_dN, head.weight_Vd])
        close(got[0], wanted[0])
        close(got[1], wanted[1])


@pytest.mark.parametrize(
    "objective", [ReverseKLConfig(), ReverseKLConfig(support="sampled"), ForwardKLConfig(), JSDConfig()], ids=name
)
def test_bfloat16_hidden_states_over_float32_weights(objective: ObjectiveConfig) -> None:
    """Loose: logits carry bfloat16's 8 bits. Gradients keep their tensors' dtypes, float32 adds up."""
    generous = {"rtol": 0.1, "atol": 0.02}
    hidden_Nd = randn(60, N, WIDTH, dtype=torch.float32).bfloat16().requires_grad_()
    head = Head(
        randn(61, V, WIDTH, dtype=torch.float32).requires_grad_(),
        randn(62, V, dtype=torch.float32).requires_grad_(),
    )
    target = Dense(
        randn(63, N, TEACHER_WIDTH, dtype=torch.float32).bfloat16(),
        Head(randn(64, V, TEACHER_WIDTH, dtype=torch.float32).bfloat16()),
    )
    assert head.bias_V is not None
    sampled_N = torch.tensor([0, 3, 3, 8, 1, 5])
    wide_Nd = hidden_Nd.detach().double().requires_grad_()
    logits_NV = raw_logits(Head(head.weight_Vd.double(), head.bias_V.double()), wide_Nd)
    logq_NV = log_softmax(target.hidden_Nd.double() @ target.head.weight_Vd.double().T, T)
    behaviour_N = at(log_softmax(logits_NV.detach(), T), sampled_N)
    twin = naive_loss(objective, T, logits_NV, logq_NV, alone(sampled_N, behaviour_N), 2.0)
    wanted = torch.autograd.grad(twin.surrogate, [wide_Nd, head.weight_Vd, head.bias_V])

    tokens = alone(sampled_N, behaviour_N.float())
    loss, measured = distillation_loss(objective, T, hidden_Nd, head, tokens, target, 2.0, chunk_bytes=4 * V * 4)
    got = torch.autograd.grad(loss, [hidden_Nd, head.weight_Vd, head.bias_V])
    assert loss.dtype == measured.objective.dtype == torch.float32
    assert [g.dtype for g in got] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(loss.detach().double(), twin.value.detach(), **generous)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b.double(), **generous)


def test_autocast_around_the_loss_changes_nothing() -> None:
    """Precision is that of the tensors given: an ambient autocast must not narrow the logits."""
    hidden_Nd, head = student(70)
    hidden_Nd, weight_Vd = (x.detach().float().requires_grad_() for x in (hidden_Nd, head.weight_Vd))
    tokens = tokens_for(hidden_Nd, Head(weight_Vd))
    target = Dense(randn(90, N, 3, dtype=torch.float32), Head(randn(91, V, 3, dtype=torch.float32)))
    tokens = replace(tokens, advantage_N=None)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = distillation_loss(ReverseKLConfig(), T, hidden_Nd, Head(weight_Vd), tokens, target, 5.0)
        results.append([loss.detach(), *torch.autograd.grad(loss, [hidden_Nd, weight_Vd])])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_narrowed_head_is_the_head_of_a_smaller_vocabulary() -> None:
    """Padded embedding tables: rows past the vocabulary are out of the softmax and out of the gradient."""
    hidden_Nd, head = student(80, bias=True)
    shown = 7
    small = head.narrow(shown)
    assert small.vocabulary == shown
    assert small.bias_V is not None
    assert head.narrow(V) is head
    close(small.logits(hidden_Nd).detach(), head.logits(hidden_Nd).detach()[:, :shown])
    sampled_N = torch.tensor([0, 3, 3, 6, 1, 5])
    target = Dense(randn(83, N, 3), Head(randn(84, shown, 3)))
    loss, _ = distillation_loss(ReverseKLConfig(), T, hidden_Nd, small, alone(sampled_N, torch.zeros(N)), target, 5.0)
    (grad_Vd,) = torch.autograd.grad(loss, head.weight_Vd)
    assert (grad_Vd[shown:] == 0).all()
    assert (grad_Vd[:shown] != 0).any(dim=1).all()
