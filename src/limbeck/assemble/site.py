"""What the builders of a run's parts have at hand."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import torch

from limbeck.config.factory import Build
from limbeck.config.recipe import Recipe
from limbeck.models.causal_lm import CausalLM
from limbeck.protocols import Engine, Learner, Objective, Task, Teacher
from limbeck.training.run_folder import RunFolder


@dataclass(frozen=True)
class Given:
    """Parts that the caller made; where one is None, the recipe says."""

    teacher: Teacher | None = None
    task: Task | None = None
    engine: Engine | None = None
    objective: Objective | None = None
    learner: Learner | None = None


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
