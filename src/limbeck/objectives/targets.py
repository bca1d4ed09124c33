"""What the loss is given of the teacher and of the sampled tokens, and what it measures on the way.

Shape legend: N tokens, K support size, d hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from limbeck.config.objective import ObjectiveConfig, ReverseKLConfig
from limbeck.models.head import Head


@dataclass(frozen=True, eq=False)
class Dense:
    """The teacher's whole distribution, as hidden states and a head."""

    hidden_Nd: Tensor
    head: Head


@dataclass(frozen=True, eq=False)
class TopK:
    """The teacher's K most likely tokens and the sampled one, already at temperature T."""

    ids_NK: Tensor
    logprobs_NK: Tensor
    logprobs_N: Tensor


@dataclass(frozen=True, eq=False)
class Sampled:
    """The teacher's log-prob of the sampled token, already at temperature T."""

    logprobs_N: Tensor


Target: TypeAlias = Dense | TopK | Sampled


@dataclass(frozen=True, eq=False)
class Tokens:
    """The sampled tokens of one micro-batch, sequence after sequence, each in order."""

    sampled_N: Tensor  # int64 ids
    sequence_N: Tensor  # int64, non-decreasing: which sequence a token belongs to
    behaviour_N: Tensor  # log mu(y_t)
    advantage_N: Tensor | None = None  # task reward, normalised; None: not trained on


@dataclass(eq=False)
class Measured:
    """Per-token numbers of one micro-batch, each [N], detached. None where the target cannot say."""

    student_logprob: Tensor  # log p(y_t)
    teacher_logprob: Tensor  # log q(y_t)
    student_entropy: Tensor
    objective: Tensor  # the estimate of the divergence that was minimised
    teacher_entropy: Tensor | None = None
    reverse_kl: Tensor | None = None  # exact, over the whole vocabulary
    overlap: Tensor | None = None  # share of the student's top tokens among the teacher's
    reference_kl: Tensor | None = None


def check_target(objective: ObjectiveConfig, teacher: Target, reference: Dense | None) -> None:
    """A target must carry at least what the objective's support asks for."""
    wanted = objective.support if isinstance(objective, ReverseKLConfig) else "full"
    if wanted == "full" and not isinstance(teacher, Dense):
        raise ValueError(
            f"{objective.divergence} on the whole vocabulary needs the teacher's hidden states and head, "
            f"but the teacher gave {type(teacher).__name__}. Use a teacher that serves hidden states, or "
            "objective.support = 'sampled' or a top-K."
        )
    if isinstance(wanted, int) and not isinstance(teacher, Dense | TopK):
        raise ValueError(f"objective.support = {wanted} needs the teacher's top-K, but it gave the sampled token only")
    if isinstance(wanted, int) and isinstance(teacher, TopK) and teacher.ids_NK.shape[1] != wanted:
        raise ValueError(f"objective.support = {wanted}, but the teacher gave its top {teacher.ids_NK.shape[1]}")
    if (objective.reference is None) != (reference is None):
        raise ValueError("objective.reference and the reference's hidden states must be given together")
