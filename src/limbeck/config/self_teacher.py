"""The teacher `self` beside the rest of a recipe: what it is in it, and what it cannot go with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.teacher import (
    DatasetTeacherConfig,
    LocalTeacherConfig,
    OneTeacherConfig,
    RoutedTeacherConfig,
    SelfTeacherConfig,
)

if TYPE_CHECKING:
    from limbeck.config.recipe import Recipe

ONLY = "teacher"  # the name of a teacher that has none


def members_of(recipe: Recipe) -> dict[str, OneTeacherConfig | DatasetTeacherConfig]:
    """The teachers by name, a `self` that has a copy of its own as the local model that it is.

    The student as it began has one, unless adapters alone are trained in this process: then it is the base without.
    """
    section = recipe.teacher
    members = dict(section.teachers) if isinstance(section, RoutedTeacherConfig) else {ONLY: section}
    return {name: _as_local(recipe, member) for name, member in members.items()}


def _as_local(
    recipe: Recipe, member: OneTeacherConfig | DatasetTeacherConfig
) -> OneTeacherConfig | DatasetTeacherConfig:
    if not isinstance(member, SelfTeacherConfig) or member.of != "start":
        return member
    learner, student = recipe.learner, recipe.student
    if isinstance(learner, LocalLearnerConfig) and learner.lora is not None and recipe.cluster is None:
        return member
    return LocalTeacherConfig(model=student.model, dtype=student.dtype, attention=student.attention, view=member.view)


def refuse_with_self(recipe: Recipe) -> None:
    """Raises `ValueError` for what a teacher that follows the student cannot go with."""
    for name, member in members_of(recipe).items():
        if not isinstance(member, SelfTeacherConfig) or member.of == "start":
            continue
        what = f"{name} is the student's own past (kind = 'self', of = {member.of!r})"
        if recipe.cluster is not None:
            raise ValueError(
                f"{what}, which the learner of one process keeps and those of a fleet do not. Set of = 'start', or "
                "remove [cluster]."
            )
        if not isinstance(recipe.learner, LocalLearnerConfig):
            raise ValueError(
                f"{what}, which learner.kind = 'local' keeps and a learner of your own does not. Set of = 'start', or "
                "learner.kind = 'local'."
            )
        if recipe.rollout.lag:
            raise ValueError(
                f"{what}: it changes with every update, and with rollout.lag = {recipe.rollout.lag} later steps are "
                "scored before. Set rollout.lag = 0, or of = 'start'."
            )
