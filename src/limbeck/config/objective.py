"""The objective table of a recipe: which divergence is minimised, on which support."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config, Fraction, Positive, PositiveInt


class ReferenceConfig(Config):
    """A frozen policy the student is also pulled towards by a reverse KL."""

    model: str | None = Field(None, description="folder or hub name; the initial student where absent")
    weight: Positive = Field(description="nats of KL-to-reference per nat of KL-to-teacher")


class TaskRewardConfig(Config):
    """The grader's reward as an advantage, group-normalised, added to the distillation signal."""

    weight: Positive = 1.0
    normalise: Literal["mean_std", "mean"] = Field(
        "mean_std", description="subtract the group's mean; `mean_std` also divides by its deviation"
    )


class _ObjectiveConfig(Config):
    discount: Fraction = Field(
        0.0, description="weight of how a token changes later divergences; 0 is the per-token loss"
    )
    importance_cap: Annotated[float, Field(ge=1)] = Field(
        2.0, description="truncation of p(y)/mu(y) on the sampled terms"
    )
    reference: ReferenceConfig | None = None
    task_reward: TaskRewardConfig | None = None
    overlap_k: PositiveInt = Field(8, description="K of the top-K overlap metric")


class ReverseKLConfig(_ObjectiveConfig):
    """KL(p || q), student against teacher: the on-policy distillation loss."""

    divergence: Literal["reverse_kl"] = "reverse_kl"
    support: Literal["sampled", "full"] | PositiveInt = Field(
        "full", description="`sampled`, the teacher's top K, or `full`: same expected gradient, less noise"
    )


class ForwardKLConfig(_ObjectiveConfig):
    """KL(q || p) over the whole vocabulary."""

    divergence: Literal["forward_kl"] = "forward_kl"


class JSDConfig(_ObjectiveConfig):
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 3)."""

    divergence: Literal["jsd"] = "jsd"
    beta: Fraction = Field(0.5, description="0 is forward KL, 1 is reverse KL, by GKD's convention")


ObjectiveConfig: TypeAlias = Annotated[ReverseKLConfig | ForwardKLConfig | JSDConfig, Field(discriminator="divergence")]
