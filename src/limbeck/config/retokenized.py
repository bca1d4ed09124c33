"""What cannot be had of a teacher that reads the response in tokens of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.objective import ReverseKLConfig
from limbeck.config.teacher import RemoteTeacherConfig, RoutedTeacherConfig, SeeingConfig
from limbeck.config.view import RetokenizedViewConfig

if TYPE_CHECKING:
    from limbeck.config.recipe import Recipe


def refuse_with_retokenized(recipe: Recipe) -> None:
    """Raises `ValueError` naming the first key that a view of kind `retokenized` cannot go with."""
    objective, teacher = recipe.objective, recipe.teacher
    members = dict(teacher.teachers) if isinstance(teacher, RoutedTeacherConfig) else {"teacher": teacher}
    for name, section in members.items():
        if not isinstance(section, SeeingConfig) or not isinstance(section.view, RetokenizedViewConfig):
            continue
        who = f"view.kind = 'retokenized' of {name}"
        if not isinstance(objective, ReverseKLConfig):
            raise ValueError(
                f"objective.divergence = {objective.divergence!r}, but with {who} only the log-ratio of a span of text "
                "is known. Set objective.divergence = 'reverse_kl'."
            )
        if objective.support != "sampled":
            raise ValueError(
                f"objective.support = {objective.support!r}, but with {who} which of the student's tokens has one of "
                "the teacher's opposite it follows from what was sampled: any support but the sampled tokens would be "
                "biased. Set objective.support = 'sampled', or leave it out."
            )
        temperatures = recipe.eval.temperatures(recipe.rollout.temperature)
        other = next((key for key, temperature in temperatures.items() if temperature != 1), None)
        if other is not None and not section.view.accept_temperature:
            raise ValueError(
                f"{other}.temperature = {temperatures[other]}, but with {who} the two sides have different "
                "tokens: dividing their logits gives no two distributions over the same texts. Set "
                f"{other}.temperature = 1, or view.accept_temperature = true to compare them at another one all the "
                "same."
            )
        if isinstance(section, RemoteTeacherConfig) and section.tokenizer is None:
            raise ValueError(
                f"{who} needs the teacher's tokenizer here. Set its `tokenizer` to the teacher's model folder or hub "
                "name."
            )
        if any(source.origin == "teacher" for source in recipe.rollout.sources):
            raise ValueError(
                f"rollout.sources takes sequences from the teacher, but with {who} its tokens are not the student's. "
                "Take 'student' alone."
            )
