"""What the builders of a run's parts have at hand."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from limbeck.config.factory import Build
from limbeck.config.recipe import Recipe
from limbeck.errors import RecipeError
from limbeck.models.causal_lm import CausalLM
from limbeck.protocols import Engine, Environment, Learner, Objective, Task, Teacher
from limbeck.training.run_folder import RunFolder

if TYPE_CHECKING:
    from limbeck.assemble.fleet import Fleet


@dataclass(frozen=True)
class Given:
    """Parts that the caller made; where one is None, the recipe says."""

    teacher: Teacher | None = None
    task: Task | None = None
    engine: Engine | None = None
    objective: Objective | None = None
    learner: Learner | None = None
    environment: Environment | None = None


@dataclass(frozen=True)
class Site:
    """The recipe, the loaded student, and where parts leave what has to be let go of."""

    recipe: Recipe
    student: CausalLM
    device: torch.device
    build: Build  # for factories of the user's own
    folder: RunFolder
    given: Given
    resources: AsyncExitStack
    resumed: bool
    fleet: Fleet | None = None  # where other processes do the work: then `student` has no weights


def pick_device(name: str) -> torch.device:
    """The device a recipe names. Raises `RecipeError` where this machine does not have it."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except Exception as error:  # of each kind of device its own
        remedy = "Did you mean 'cuda'?" if name.lower().startswith("gpu") else "Try 'auto' or 'cpu'."
        raise RecipeError(f"device = {name!r} cannot be used: {str(error).splitlines()[0]}. {remedy}") from None
    return device
