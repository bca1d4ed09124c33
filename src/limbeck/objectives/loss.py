"""What is minimised, as the loss takes it: an objective, the support it is estimated on, and what is added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from limbeck.config.factory import Build, build_part
from limbeck.config.objective import (
    ForwardKLConfig,
    JSDConfig,
    ObjectiveConfig,
    PythonObjectiveConfig,
    ReverseKLConfig,
)
from limbeck.errors import RecipeError
from limbeck.objectives.check import check_objective
from limbeck.objectives.divergences import ForwardKL, ReverseKL, jsd
from limbeck.protocols import Objective

LossSupport: TypeAlias = Literal["sampled", "student_top", "full"] | int


@dataclass(frozen=True)
class Loss:
    """An objective and how it is estimated. The fields are those of the recipe's table.

    >>> from limbeck.objectives import JSD, Loss
    >>> Loss(JSD(0.3), support=20).importance_cap
    2.0

    Raises `ValueError` for a number out of its range.
    """

    objective: Objective
    support: LossSupport = "full"  # all tokens; the sampled one; or K of them, and the sampled one for the rest
    discount: float = 0.0  # of later divergences in a token's coefficient
    importance_cap: float = 2.0  # of p(y) / mu(y) on the sampled terms
    reference_weight: float = 0.0  # of a reverse KL to a frozen policy; 0: there is none
    overlap_k: int = 8  # K of the overlap metric
    name: str = ""  # of the objective in messages; the class's where empty
    k: int | None = None  # of "student_top": so many of the student's own, where a number is the teacher's

    def __post_init__(self) -> None:
        tokens = isinstance(self.support, int) and self.support >= 1
        ranges = {
            "support": (
                tokens or self.support in ("sampled", "student_top", "full"),
                "'sampled', 'student_top', 'full' or a number of tokens",
            ),
            "k": (
                self.k is None if self.support != "student_top" else self.k is not None and self.k >= 1,
                "a number of tokens where support is 'student_top', and None elsewhere",
            ),
            "discount": (0 <= self.discount <= 1, "between 0 and 1"),
            "importance_cap": (self.importance_cap >= 1, "at least 1"),
            "reference_weight": (self.reference_weight >= 0, "at least 0"),
            "overlap_k": (self.overlap_k >= 1, "at least 1"),
        }
        for field, (holds, wanted) in ranges.items():
            if not holds:
                raise ValueError(f"{field} of a loss must be {wanted}, got {getattr(self, field)!r}")

    @property
    def size(self) -> int:
        """K, the tokens of a partial support; 0 for the sampled one alone, and for the whole vocabulary."""
        return self.support if isinstance(self.support, int) else self.k or 0


def loss_of(config: ObjectiveConfig, custom: Objective | None = None, build: Build | None = None) -> Loss:
    """The loss of a recipe's table.

    `custom` takes the place of the table's divergence; the rest of the table holds for it too. `build` is what the
    factory of `divergence = "python"` receives. Either way an objective of your own is checked here, once.

    Raises `RecipeError` for a factory that cannot be found or fails, and for an objective that breaks its promises.
    """
    if custom is None and isinstance(config, PythonObjectiveConfig):
        if build is None:
            raise RecipeError(f"the objective of {config.factory!r} has to be built: give loss_of `build` or `custom`")
        custom = build_part(config, "objective", build)
        check_objective(custom)  # None too, which a factory returns that forgets to
    elif custom is not None:
        check_objective(custom)
    return Loss(
        objective=_BUILT[type(config)](config) if custom is None else custom,
        support=config.support,
        k=config.k,
        discount=config.discount,
        importance_cap=config.importance_cap,
        reference_weight=config.reference.weight if config.reference else 0.0,
        overlap_k=config.overlap_k,
        name=config.divergence if custom is None else type(custom).__name__,
    )


_BUILT: dict[type[Any], Callable[[Any], Objective]] = {
    ReverseKLConfig: lambda config: ReverseKL(),
    ForwardKLConfig: lambda config: ForwardKL(),
    JSDConfig: lambda config: jsd(config.beta),
}
