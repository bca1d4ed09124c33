"""What the loss receives of the teacher and of the sampled tokens, and what it measures on the way.

Shape legend: N tokens, K support size, G groups of tokens, d hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.models.head import Head, at_least_float32
from limbeck.objectives.divergences import ReverseKL
from limbeck.objectives.loss import Loss


@dataclass(frozen=True, eq=False)
class Dense:
    """The teacher's whole distribution, as hidden states and a head."""

    hidden_Nd: Tensor
    head: Head


@dataclass(frozen=True, eq=False)
class TopK:
    """The teacher's log-probs of K listed tokens and of the sampled one, already at temperature T.

    Whose list it is does not matter: the teacher's top K, or the student's by rank when it sampled. It must be a
    function of the prefix only, of K different tokens: a list to which the sampled token was added biases the gradient.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    logprobs_N: Tensor  # of the sampled token, listed or not


@dataclass(frozen=True, eq=False)
class Sampled:
    """The teacher's log-prob of the sampled token, already at temperature T."""

    logprobs_N: Tensor


@dataclass(frozen=True, eq=False)
class Grouped:
    """The teacher's log-prob of each group of sampled tokens: a text that it says in tokens of its own."""

    logprobs_G: Tensor  # sums over the teacher's tokens of each group
    group_N: Tensor  # int64, non-decreasing, from 0 and without gaps: which group a sampled token belongs to


Target: TypeAlias = Dense | TopK | Sampled | Grouped


@dataclass(frozen=True, eq=False)
class Tokens:
    """The sampled tokens of one micro-batch, sequence after sequence, each in order."""

    sampled_N: Tensor  # int64 ids
    sequence_N: Tensor  # int64, non-decreasing: which sequence a token belongs to
    behaviour_N: Tensor  # log mu(y_t); NaN where nobody knows it: such tokens have a gradient on full support alone
    advantage_N: Tensor | None = None  # task reward, normalised; None: not trained on


@dataclass(eq=False)
class Measured:
    """Per-token numbers of one micro-batch, each [N], detached. None where the target does not carry it."""

    student_logprob: Tensor  # log p(y_t)
    teacher_logprob: Tensor  # log q(y_t); of a group of tokens, an equal share of its log q
    student_entropy: Tensor
    objective: Tensor  # the estimate of the divergence that was minimised
    support_student: Tensor | None = None  # what of p is on the support: the rest is the sampled token's; K > 0 only
    support_teacher: Tensor | None = None  # what of q
    support_sampled: Tensor | None = None  # 1 where the sampled token is on it: as often as p says, or S follows y
    teacher_entropy: Tensor | None = None
    reverse_kl: Tensor | None = None  # exact, over the whole vocabulary
    overlap: Tensor | None = None  # share of the student's top tokens among the teacher's
    reference_kl: Tensor | None = None


def empty_measurements(loss: Loss, hidden_Nd: Tensor, teacher: Target, reference: Dense | None) -> Measured:
    """Memory for what can be measured of these targets."""
    like = at_least_float32(hidden_Nd[:0])

    def empty() -> Tensor:
        return torch.empty(len(hidden_Nd), dtype=like.dtype, device=like.device)

    dense = isinstance(teacher, Dense)
    return Measured(
        student_logprob=empty(),
        teacher_logprob=empty(),
        student_entropy=empty(),
        objective=empty(),
        support_student=empty() if loss.size else None,
        support_teacher=empty() if loss.size else None,
        support_sampled=empty() if loss.size else None,
        teacher_entropy=empty() if dense else None,
        reverse_kl=empty() if dense else None,
        overlap=empty() if dense else None,
        reference_kl=empty() if reference else None,
    )


def check_target(loss: Loss, vocabulary: int, teacher: Target, reference: Dense | None) -> None:
    """A target must carry at least what the loss's support asks for. Raises `ValueError`."""
    wanted, k = loss.support, loss.size
    if isinstance(teacher, Grouped):
        _check_grouped(loss, wanted)
    asked = f"objective.support = {wanted!r}" + (f" with k = {k}" if loss.k else "")
    if wanted == "full" and not isinstance(teacher, Dense):
        raise ValueError(
            f"{loss.name or type(loss.objective).__name__} on the whole vocabulary needs the teacher's hidden states "
            f"and head, but the teacher gave {type(teacher).__name__}. Use a teacher that serves hidden states, or "
            "objective.support = 'sampled' or a top-K."
        )
    if k and not isinstance(teacher, Dense | TopK):
        raise ValueError(f"{asked} needs the teacher's scores of {k} tokens, but it gave the sampled token only")
    if k and isinstance(teacher, TopK) and teacher.ids_NK.shape[1] != k:
        gave = teacher.ids_NK.shape[1]
        raise ValueError(f"{asked}, but the teacher gave " + (f"scores of {gave}" if loss.k else f"its top {gave}"))
    if wanted == "student_top" and k > vocabulary:
        raise ValueError(f"{asked}, but the student has {vocabulary} tokens. Lower objective.k.")
    if (loss.reference_weight > 0) != (reference is not None):
        raise ValueError("objective.reference and the reference's hidden states must be given together")


def _check_grouped(loss: Loss, wanted: object) -> None:
    if not isinstance(loss.objective, ReverseKL):
        raise ValueError(
            f"{loss.name or type(loss.objective).__name__} is asked for of a teacher with another tokenizer, of which "
            "only the log-ratio of a span of text is known. Set objective.divergence = 'reverse_kl'."
        )
    if wanted != "sampled":
        raise ValueError(
            f"objective.support = {wanted!r} of a teacher with another tokenizer: which tokens have one of the "
            "teacher's opposite them follows from what was sampled, so any support but the sampled tokens would be "
            "biased. Set objective.support = 'sampled'."
        )
