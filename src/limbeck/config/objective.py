"""The objective table of a recipe: which divergence is minimised, on which support."""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Fraction, Place, Positive, PositiveInt


class ReferenceConfig(Config):
    """A frozen policy the student is also pulled towards by a reverse KL."""

    model: Place | None = Field(None, description="folder or hub name; the initial student where absent")
    weight: Positive = Field(description="nats of KL-to-reference per nat of KL-to-teacher")


class TaskRewardConfig(Config):
    """The grader's reward as an advantage, group-normalised, added to the distillation signal."""

    weight: Positive = Field(1.0, description="of the reward's advantage beside the distillation loss")
    normalise: Literal["mean_std", "mean"] = Field(
        "mean_std", description="subtract the group's mean; `mean_std` also divides by its deviation"
    )


class _ObjectiveConfig(Config):
    discount: Fraction = Field(
        0.0, description="weight of how a token changes later divergences; 0 is the per-token loss"
    )
    importance_cap: Annotated[float, Field(ge=1, le=1e30, allow_inf_nan=False)] = Field(
        2.0, description="truncation of p(y)/mu(y) on the sampled terms"
    )
    reference: ReferenceConfig | None = None
    task_reward: TaskRewardConfig | None = None
    overlap_k: PositiveInt = Field(8, description="K of the top-K overlap metric")

    support: Literal["sampled", "full"] | PositiveInt = Field(
        "full", description="`sampled`, the teacher's top K, or `full`: same expected gradient, less noise"
    )


class ReverseKLConfig(_ObjectiveConfig):
    """KL(p || q), student against teacher: the on-policy distillation loss."""

    divergence: Literal["reverse_kl"] = "reverse_kl"


class ForwardKLConfig(_ObjectiveConfig):
    """KL(q || p). Not from the sampled token alone: its gradient there is q/p, which has no bound."""

    divergence: Literal["forward_kl"] = "forward_kl"

    @model_validator(mode="after")
    def _needs_more_than_the_sampled_token(self) -> Self:
        _refuse_sampled(self, "divergence = 'forward_kl'")
        return self


class JSDConfig(_ObjectiveConfig):
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 3)."""

    divergence: Literal["jsd"] = "jsd"
    beta: Fraction = Field(0.5, description="0 is forward KL, 1 is reverse KL, by GKD's convention")

    @model_validator(mode="after")
    def _needs_more_than_the_sampled_token(self) -> Self:
        if self.beta == 0:
            _refuse_sampled(self, "divergence = 'jsd' with beta = 0, the forward KL,")
        return self


class PythonObjectiveConfig(_ObjectiveConfig, PythonPartConfig):
    """An objective of your own: the factory returns an object with `pull`, `gain`, `value` (`protocols.Objective`)."""

    divergence: Literal["python"] = "python"


ObjectiveConfig: TypeAlias = Annotated[
    ReverseKLConfig | ForwardKLConfig | JSDConfig | PythonObjectiveConfig, Field(discriminator="divergence")
]


def _refuse_sampled(config: _ObjectiveConfig, what: str) -> None:
    if config.support == "sampled":
        raise ValueError(
            f"{what} cannot have support = 'sampled': its gradient at the sampled token is q/p, which has no bound. "
            "Set support to a number of the teacher's top tokens, such as 20, or to 'full'."
        )
