"""A chunk is a matter of memory: it changes no number, and no tensor is ever `[tokens, vocabulary]`.

Shape legend: N tokens, V vocabulary, d hidden width, C tokens of one chunk.
"""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig
from limbeck.objectives import Dense, Head, Measured, Sampled, Target, Tokens, TopK
from tests._naive import naive_loss

from .helpers import LargestTensor, alone, at, close, distillation_loss, log_softmax, name, randn, target

OBJECTIVES: list[ObjectiveConfig] = [
    ReverseKLConfig(),
    ReverseKLConfig(support="sampled"),
    ReverseKLConfig(support=4),
    ForwardKLConfig(),
    JSDConfig(beta=0.5),
    ReverseKLConfig(support="student_top", k=4),
    ReverseKLConfig(support="student_top", k=4, discount=0.5, reference=ReferenceConfig(weight=0.3)),
    ReverseKLConfig(discount=1.0),
    ReverseKLConfig(support="sampled", discount=0.9),
    ReverseKLConfig(support=4, discount=0.5, reference=ReferenceConfig(weight=0.3)),
    ForwardKLConfig(discount=0.7),
    JSDConfig(beta=0.2, discount=0.7, reference=ReferenceConfig(weight=0.3)),
    ForwardKLConfig(support=4, discount=0.7),
    JSDConfig(beta=0.2, support="sampled", discount=0.7, reference=ReferenceConfig(weight=0.3)),
]
every_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=name)


class Case:
    """N tokens of sequences of lengths 1, 5, 2, 3 (so that borders of chunks fall everywhere)."""

    N, V, d, T = 11, 13, 4, 0.7

    def __init__(self, objective: ObjectiveConfig) -> None:
        self.objective = objective
        self.hidden_Nd = randn(0, self.N, self.d).requires_grad_()
        self.weight_Vd = randn(1, self.V, self.d).requires_grad_()
        self.bias_V = randn(2, self.V).requires_grad_()
        self.teacher = Dense(randn(3, self.N, 3), Head(randn(4, self.V, 3)))
        self.reference = Dense(randn(5, self.N, 3), Head(randn(6, self.V, 3)))
        logits_NV = self.hidden_Nd.detach() @ self.weight_Vd.detach().T + self.bias_V.detach()
        sampled_N = torch.tensor([3, 0, 12, 7, 7, 1, 5, 9, 2, 2, 4])
        behaviour_N = at(log_softmax(logits_NV, self.T), sampled_N)
        sequence_N = torch.tensor([0, 1, 1, 1, 1, 1, 4, 4, 5, 5, 5])
        self.tokens = Tokens(sampled_N, sequence_N, behaviour_N, randn(8, self.N))

    def run(self, chunk_bytes: int, keep: slice = slice(None)) -> tuple[Tensor, list[Tensor], Measured]:
        """Loss, gradients and measurements of the tokens in `keep`."""
        reference = Dense(self.reference.hidden_Nd[keep], self.reference.head)
        loss, measured = distillation_loss(
            self.objective,
            self.T,
            self.hidden_Nd[keep],
            Head(self.weight_Vd, self.bias_V),
            self.some(keep),
            Dense(self.teacher.hidden_Nd[keep], self.teacher.head),
            17.0,
            reference if self.objective.reference else None,
            chunk_bytes,
        )
        wrt = [self.hidden_Nd, self.weight_Vd, self.bias_V]
        grads = torch.autograd.grad(loss, wrt, materialize_grads=True)
        return loss.detach(), list(grads), measured

    def some(self, keep: slice) -> Tokens:
        assert self.tokens.advantage_N is not None
        return Tokens(
            self.tokens.sampled_N[keep],
            self.tokens.sequence_N[keep],
            self.tokens.behaviour_N[keep],
            self.tokens.advantage_N[keep],
        )

    def twin(self) -> tuple[Tensor, list[Tensor]]:
        logits_NV = self.hidden_Nd @ self.weight_Vd.T + self.bias_V
        logq_NV, logref_NV = (
            log_softmax(policy.hidden_Nd @ policy.head.weight_Vd.T, self.T) for policy in (self.teacher, self.reference)
        )
        twin = naive_loss(self.objective, self.T, logits_NV, logq_NV, self.tokens, 17.0, logref_NV)
        wrt = [self.hidden_Nd, self.weight_Vd, self.bias_V]
        return twin.value.detach(), list(torch.autograd.grad(twin.surrogate, wrt))


@every_objective
@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 11, 1000])
def test_any_chunk_size_gives_the_twins_numbers(objective: ObjectiveConfig, chunk: int) -> None:
    case = Case(objective)
    loss, grads, measured = case.run(4 * case.V * chunk)
    value, wanted = case.twin()
    close(loss, value)
    for a, b in zip(grads, wanted, strict=True):
        close(a, b)
    _, _, at_once = case.run(2**30)
    for field in fields(Measured):
        a, b = getattr(measured, field.name), getattr(at_once, field.name)
        assert (a is None) == (b is None)
        if a is not None:
            close(a, b)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunk_bytes_bounds_the_rows_of_a_chunk(chunk: int) -> None:
    """4 bytes a logit: the sizes above are indeed those that ran."""
    case = Case(ReverseKLConfig(overlap_k=2))
    with LargestTensor() as largest:
        case.run(4 * case.V * chunk)
    assert largest.numel == max(chunk * case.V, case.V * case.d), largest.where


@every_objective
def test_less_than_a_row_still_makes_progress(objective: ObjectiveConfig) -> None:
    case = Case(objective)
    for a, b in zip(case.run(1)[1], case.run(2**30)[1], strict=True):
        close(a, b)


@every_objective
def test_micro_batches_add_up(objective: ObjectiveConfig) -> None:
    """Split between sequences under one denominator: losses and gradients sum to those of all."""
    case = Case(objective)
    undivided, undivided_grads, _ = case.run(4 * case.V * 3)
    parts = [case.run(4 * case.V * 3, keep) for keep in (slice(0, 6), slice(6, 6), slice(6, 11))]
    close(sum((part[0] for part in parts), torch.zeros(())), undivided)
    for i, wanted in enumerate(undivided_grads):
        close(sum((part[1][i] for part in parts), torch.zeros(())), wanted)


def test_denominator_divides_value_and_gradient() -> None:
    case = Case(ReverseKLConfig(support=4))
    hidden_Nd, head = case.hidden_Nd, Head(case.weight_Vd)
    losses = [
        distillation_loss(case.objective, case.T, hidden_Nd, head, case.tokens, case.teacher, n)[0] for n in (1.0, 8.0)
    ]
    grads = [torch.autograd.grad(loss, hidden_Nd)[0] for loss in losses]
    close(losses[0].detach(), 8 * losses[1].detach())
    close(grads[0], 8 * grads[1])


@every_objective
def test_no_tokens_no_loss(objective: ObjectiveConfig) -> None:
    """N = 0, an empty micro-batch: zero, and zero gradients where there is something to give one to."""
    case = Case(objective)
    hidden_Nd = case.hidden_Nd.detach()[:0].requires_grad_()
    loss, measured = distillation_loss(
        objective,
        case.T,
        hidden_Nd,
        Head(case.weight_Vd, case.bias_V),
        case.some(slice(0, 0)),
        Dense(case.teacher.hidden_Nd[:0], case.teacher.head),
        17.0,
        Dense(case.reference.hidden_Nd[:0], case.reference.head) if objective.reference else None,
    )
    assert loss.item() == 0.0
    assert measured.objective.shape == (0,)
    loss.backward()
    assert hidden_Nd.grad is None or hidden_Nd.grad.shape == (0, case.d)
    for parameter in (case.weight_Vd, case.bias_V):
        assert parameter.grad is not None
        assert (parameter.grad == 0).all()


@every_objective
def test_a_single_token_has_no_future(objective: ObjectiveConfig) -> None:
    """N = 1: whatever the discount, the per-token gradient."""
    case = Case(objective)
    _, grads, measured = case.run(2**20, slice(4, 5))
    assert measured.objective.shape == (1,)
    undiscounted = Case(objective.model_copy(update={"discount": 0.0}))
    for a, b in zip(grads, undiscounted.run(2**20, slice(4, 5))[1], strict=True):
        close(a, b)


def test_sequences_do_not_leak_into_each_other() -> None:
    """Discounted futures stop at the sequence's end, where ids repeat no earlier ones and may skip."""
    case = Case(ReverseKLConfig(discount=1.0))
    _, grads, _ = case.run(4 * case.V * 4)
    last_of_sequence_N = torch.tensor([0, 5, 7, 10])
    plain = Case(ReverseKLConfig(discount=0.0))
    _, plain_grads, _ = plain.run(4 * case.V * 4)
    close(grads[0][last_of_sequence_N], plain_grads[0][last_of_sequence_N])
    others_N = torch.tensor([n for n in range(case.N) if n not in last_of_sequence_N.tolist()])
    assert ((grads[0] - plain_grads[0])[others_N].abs().amax(dim=1) > 1e-4).all()


def test_long_sequences_across_many_chunks() -> None:
    """One sequence of 1500 tokens, discount 0.99: chunks of any size agree with the plain recursion."""
    count, vocabulary = 1500, 4
    z_NV, logq_N = randn(10, count, vocabulary), -randn(11, count).abs()
    sampled_N = torch.arange(count) % vocabulary
    behaviour_N = at(log_softmax(z_NV), sampled_N)
    tokens = Tokens(sampled_N, torch.zeros(count, dtype=torch.long), behaviour_N)
    objective = ReverseKLConfig(support="sampled", discount=0.99)
    estimates = (behaviour_N - logq_N).tolist()
    returns, future = [0.0] * count, 0.0
    for n in reversed(range(count)):
        future = estimates[n] + 0.99 * future
        returns[n] = future
    score_NV = torch.nn.functional.one_hot(sampled_N, vocabulary) - log_softmax(z_NV).exp()
    wanted_NV = torch.tensor(returns)[:, None] * score_NV
    for chunk in (64, 700, 10**6):
        hidden_NV = z_NV.clone().requires_grad_()
        loss, _ = distillation_loss(
            objective,
            1.0,
            hidden_NV,
            Head(torch.eye(vocabulary)),
            tokens,
            Sampled(logq_N),
            1.0,
            chunk_bytes=4 * vocabulary * chunk,
        )
        close(torch.autograd.grad(loss, hidden_NV)[0], wanted_NV)


# --- Memory -------------------------------------------------------------------------------------------

N, V, WIDTH, CHUNK = 512, 4096, 4, 8


MEMORY_CASES: list[tuple[ObjectiveConfig, str]] = [
    (ReverseKLConfig(), "dense"),
    (ReverseKLConfig(discount=1.0, reference=ReferenceConfig(weight=0.1)), "dense"),
    (ForwardKLConfig(), "dense"),
    (JSDConfig(), "dense"),
    *[
        (objective, teacher)
        for teacher in ("dense", "compact")
        for objective in (
            ReverseKLConfig(support="sampled"),
            ReverseKLConfig(support=20),
            ReverseKLConfig(support=20, discount=0.9, reference=ReferenceConfig(weight=0.1)),
            JSDConfig(support=20, discount=0.9),
        )
    ],
]


@pytest.mark.parametrize(
    ("objective", "served"), MEMORY_CASES, ids=[f"{name(o)}-{served}" for o, served in MEMORY_CASES]
)
def test_nothing_as_large_as_tokens_times_vocabulary(objective: ObjectiveConfig, served: str) -> None:
    """Every operator's output, forward and backward, views included, stays at a chunk of logits."""
    hidden_Nd = randn(20, N, WIDTH, dtype=torch.float32).requires_grad_()
    weight_Vd = randn(21, V, WIDTH, dtype=torch.float32).requires_grad_()
    policy = Dense(randn(22, N, WIDTH, dtype=torch.float32), Head(randn(23, V, WIDTH, dtype=torch.float32)))
    sampled_N = torch.arange(N)
    tokens = Tokens(sampled_N, torch.arange(N) // 100, torch.zeros(N, dtype=torch.float32), torch.ones(N).float())
    teacher: Target = policy
    if served == "compact":
        logprobs_NK = log_softmax(randn(24, N, 20, dtype=torch.float32))
        ids_NK = torch.arange(20).expand(N, -1).contiguous()
        teacher = Sampled(logprobs_NK[:, 0])
        if objective.support == 20:
            teacher = TopK(ids_NK, logprobs_NK, logprobs_NK[:, 0])
    reference = policy if objective.reference else None
    with LargestTensor() as largest:
        loss, _ = distillation_loss(
            objective,
            0.7,
            hidden_Nd,
            Head(weight_Vd),
            tokens,
            teacher,
            float(N),
            reference,
            chunk_bytes=4 * V * CHUNK,
        )
        loss.backward()
    assert hidden_Nd.grad is not None
    assert weight_Vd.grad is not None
    assert largest.numel < N * V
    assert largest.numel <= max(CHUNK * V, V * WIDTH), largest.where


def test_the_watch_sees_a_materialised_loss() -> None:
    """The control of the test above: plain autograd makes a [tokens, vocabulary] tensor and is caught."""
    hidden_Nd = randn(25, N, WIDTH).requires_grad_()
    weight_Vd = randn(26, V, WIDTH).requires_grad_()
    with LargestTensor() as largest:
        torch.logsumexp(hidden_Nd @ weight_Vd.T, dim=-1).sum().backward()
    assert largest.numel >= N * V


def test_a_chunk_is_used_for_the_teacher_as_well() -> None:
    """A compact target and a dense teacher give one loss, whatever the chunks."""
    z_NV, u_NV, sampled_N = randn(27, 9, 6), randn(28, 9, 6), torch.arange(9) % 6
    tokens = alone(sampled_N, at(log_softmax(z_NV, 0.7), sampled_N))
    eye = Head(torch.eye(6))
    for support in ("sampled", 3):
        compact = target(support, log_softmax(u_NV, 0.7), sampled_N)
        grads = []
        for teacher in (compact, Dense(u_NV, eye)):
            for chunk in (2, 100):
                hidden_NV = z_NV.clone().requires_grad_()
                loss, _ = distillation_loss(
                    ReverseKLConfig(support=support), 0.7, hidden_NV, eye, tokens, teacher, 1.0,
                    chunk_bytes=24 * chunk,
                )  # fmt: skip
                grads.append(torch.autograd.grad(loss, hidden_NV)[0])
        for other in grads[1:]:
            close(grads[0], other)
