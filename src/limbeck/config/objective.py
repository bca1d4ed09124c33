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
    of: Literal["episode", "turn"] = Field(
        "episode",
        description="whose reward: one for all tokens of an episode, or for each turn the sum of its reward and those "
        "of later turns",
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

    support: Literal["sampled", "student_top", "full"] | PositiveInt = Field(
        "full",
        description="`sampled`, a number K of the teacher's top tokens, `student_top` (the student's own top `k`), or "
        "`full`: same expected gradient, less and less noise",
    )
    k: PositiveInt | None = Field(None, description="of `student_top`: how many of the student's most likely tokens")

    @model_validator(mode="after")
    def _k_belongs_to_student_top(self) -> Self:
        if self.support == "student_top" and self.k is None:
            raise ValueError(
                "support = 'student_top' needs k, how many of the student's most likely tokens: set objective.k = 20"
            )
        if self.support != "student_top" and self.k is not None:
            raise ValueError(
                f"k = {self.k} is of support = 'student_top', but support = {self.support!r}. Set objective.support = "
                "'student_top', or remove objective.k; the teacher's top K is objective.support = K."
            )
        return self


class ReverseKLConfig(_ObjectiveConfig):
    """KL(p || q), student against teacher: the on-policy distillation loss."""

    divergence: Literal["reverse_kl"] = "reverse_kl"


class ForwardKLConfig(_ObjectiveConfig):
    """KL(q || p). On the teacher's top tokens or all: a sampled token's gradient is q/p, which has no bound."""

    divergence: Literal["forward_kl"] = "forward_kl"

    @model_validator(mode="after")
    def _needs_the_teachers_top(self) -> Self:
        _refuse_the_students_choice(self, "divergence = 'forward_kl'")
        return self


class JSDConfig(_ObjectiveConfig):
    """Generalised Jensen-Shannon divergence of GKD (Agarwal et al. 2024, eq. 3)."""

    divergence: Literal["jsd"] = "jsd"
    beta: Fraction = Field(0.5, description="0 is forward KL, 1 is reverse KL, by GKD's convention")

    @model_validator(mode="after")
    def _needs_the_teachers_top(self) -> Self:
        if self.beta == 0:
            _refuse_the_students_choice(self, "divergence = 'jsd' with beta = 0, the forward KL,")
        return self


class PythonObjectiveConfig(_ObjectiveConfig, PythonPartConfig):
    """An objective of your own: the factory returns an object with `pull`, `gain`, `value` (`protocols.Objective`)."""

    divergence: Literal["python"] = "python"


ObjectiveConfig: TypeAlias = Annotated[
    ReverseKLConfig | ForwardKLConfig | JSDConfig | PythonObjectiveConfig, Field(discriminator="divergence")
]


def _refuse_the_students_choice(config: _ObjectiveConfig, what: str) -> None:
    """The student's top tokens leave out just those of which it thinks too little: there q/p is large."""
    if config.support in ("sampled", "student_top"):
        raise ValueError(
            f"{what} cannot have support = {config.support!r}: its gradient at a sampled token is q/p, which has no "
            "bound where the student thinks little of what the teacher expects. Set support to a number of the "
            "teacher's top tokens, such as 20, or to 'full'."
        )
