"""Where a step's sequences come from: the student, a data set, the teacher. And what would be biased of it.

[rollout]
sources = [
    {from = "student", share = 0.7},
    {from = "dataset", share = 0.2, path = "rows.jsonl"},
    {from = "teacher", share = 0.1},
]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from limbeck.config.base import Config
from limbeck.config.task import ColumnsConfig
from limbeck.config.teacher import DatasetTeacherConfig, LocalTeacherConfig, RoutedTeacherConfig
from limbeck.config.values import Line, Name, Place, Text
from limbeck.formatting import shown

if TYPE_CHECKING:
    from limbeck.config.recipe import Recipe

UNCAPPED = 1e6  # an importance cap that no ratio reaches in practice
SUM_OF_SHARES = 1e-6  # how far from 1


class CompletionColumnsConfig(ColumnsConfig):
    """Which columns of a source's rows mean what."""

    completion: Line = Field(
        "completion", description="what is to be said after `prompt`; absent: `messages` end with the assistant's"
    )


class _SourceConfig(Config):
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        1.0, description="of a step's sequences; the shares of all sources are 1 together"
    )


class StudentSourceConfig(_SourceConfig):
    """The student's own samples."""

    origin: Literal["student"] = Field("student", alias="from")

    @property
    def label(self) -> str:
        """Its name in metrics: `source/NAME/...`."""
        return self.origin


class TeacherSourceConfig(_SourceConfig):
    """Samples of the teacher, at the rollout temperature, to prompts of the task."""

    origin: Literal["teacher"] = Field("teacher", alias="from")

    @property
    def label(self) -> str:
        """Its name in metrics: `source/NAME/...`."""
        return self.origin


class DatasetSourceConfig(_SourceConfig):
    """Prompts and completions that somebody wrote."""

    origin: Literal["dataset"] = Field("dataset", alias="from")
    name: Name | None = Field(None, description="in metrics: `source/NAME/...`; absent: that of the file or data set")
    path: Place | None = Field(None, description="`*.jsonl` or `*.parquet`")
    hub: Place | None = Field(
        None, description="in place of `path`: a name on the hub, or a folder written by `save_to_disk` (extra `data`)"
    )
    config: Line | None = Field(None, description="configuration of `hub`")
    split: Line | None = Field(None, description="of `hub`; absent: `train`")
    columns: CompletionColumnsConfig = CompletionColumnsConfig()
    chat: bool | None = Field(
        None, description="put `prompt` texts through the chat template; absent: as the task does"
    )
    system: Text | None = Field(None, description="system message put before each chat; absent: the task's")
    too_long: Literal["error", "drop"] = Field(
        "error", description="what to do with rows whose completion has more than max_tokens, or that leave the context"
    )

    @model_validator(mode="after")
    def _has_rows_and_a_name(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("from = 'dataset' needs its rows: give path (a file) or hub (a name), one of the two")
        if self.path is not None and (self.config is not None or self.split is not None):
            raise ValueError(f"config and split go with hub, but the rows are of path = {shown(self.path)}")
        if self.label in ("student", "teacher"):
            raise ValueError(f"a data set cannot be called {self.label!r} in metrics: give it a name of its own")
        return self

    @property
    def label(self) -> str:
        """Its name in metrics: `source/NAME/...`."""
        last = (self.path or self.hub or "").rstrip("/").rpartition("/")[2]
        return self.name or re.sub(r"[^A-Za-z0-9._-]", "-", last.partition(".")[0]) or "dataset"


def _tag_of(given: Any) -> str | None:
    """Tags are longer than the kinds: pydantic puts them into the place of an error, where `student` is a table."""
    kind = given.get("from") if isinstance(given, Mapping) else getattr(given, "origin", None)
    return f"from {kind}" if isinstance(kind, str) else None


SourceConfig: TypeAlias = Annotated[
    Annotated[StudentSourceConfig, Tag("from student")]
    | Annotated[DatasetSourceConfig, Tag("from dataset")]
    | Annotated[TeacherSourceConfig, Tag("from teacher")],
    Discriminator(
        _tag_of,
        custom_error_type="source_kind",
        custom_error_message="from is expected to be 'student', 'dataset' or 'teacher'",
    ),
]
SOURCE_TAGS = ("from student", "from dataset", "from teacher")


def refuse_biased_sources(recipe: Recipe) -> None:
    """Raises `ValueError` for sources that the rest of the recipe would train on with a bias, or cannot have."""
    sources, teacher = recipe.rollout.sources, recipe.teacher
    if isinstance(teacher, DatasetTeacherConfig):
        _refuse_beside_the_data_itself(recipe)
    if not sources:
        return
    total = sum(source.share for source in sources)
    if abs(total - 1) > SUM_OF_SHARES:
        raise ValueError(f"the shares of rollout.sources add up to {total:g}, expected 1")
    labels = [source.label for source in sources]
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(
            f"two of rollout.sources are called {twice!r}. Data sets take a name of their own (name = ...); student "
            "and teacher occur once"
        )
    if any(source.origin == "teacher" for source in sources):
        _refuse_what_cannot_sample(recipe)
    if any(source.origin == "dataset" for source in sources):
        _refuse_groups(recipe)
    if not isinstance(teacher, DatasetTeacherConfig):
        for source in sources:
            if source.origin != "student":
                _refuse_partial_support(recipe, source)
        _refuse_what_is_of_the_student_alone(recipe, sources)


def _refuse_beside_the_data_itself(recipe: Recipe) -> None:
    """Teacher `dataset`: the forward KL to the point mass on each token of the data, and nothing else."""
    objective, sources = recipe.objective, recipe.rollout.sources
    if not sources or any(source.origin != "dataset" for source in sources):
        raise ValueError(
            "teacher.kind = 'dataset' knows the tokens of a data set and nothing else: set rollout.sources = "
            "[{from = 'dataset', path = ...}], without student or teacher among them"
        )
    if objective.divergence != "forward_kl" or objective.support != 1:
        raise ValueError(
            f"teacher.kind = 'dataset' is a point mass on each token of the data, which has a forward KL and no other: "
            f"objective.divergence = {objective.divergence!r} with support = {objective.support!r} is expected to be "
            "'forward_kl' with support = 1. Remove [objective]"
        )
    for key, value in (
        ("reference", objective.reference),
        ("task_reward", objective.task_reward),
        ("discount", objective.discount or None),
    ):
        if value is not None:
            raise ValueError(
                f"objective.{key} needs what the student samples, but with teacher.kind = 'dataset' it samples nothing "
                f"to train on. Remove objective.{key}"
            )


def _refuse_partial_support(recipe: Recipe, source: SourceConfig) -> None:
    """What is left to the sampled token is weighted by p / mu: mu has to be known, and the ratio whole."""
    objective, cap = recipe.objective, recipe.objective.importance_cap
    if objective.support == "full":
        return
    asked = f"objective.support = {objective.support!r} leaves a part of the vocabulary to the token that was sampled"
    remedy = "Set objective.support = 'full' (with a teacher that has it), or remove the source"
    if source.origin == "dataset":
        raise ValueError(
            f"{asked}, but nobody knows with which probability the data set {source.label!r} has its tokens: the "
            f"estimate would be biased. {remedy}"
        )
    if objective.support == "student_top":
        raise ValueError(
            "objective.support = 'student_top' is the student's most likely tokens when it samples, but what the "
            f"teacher sampled has none. {remedy}, or set objective.support = 20"
        )
    if cap < UNCAPPED:
        raise ValueError(
            f"{asked}, with the weight p/q where the teacher sampled, and objective.importance_cap = {cap:g} would cut "
            f"it where the student differs from the teacher most: a bias. {remedy}, or set objective.importance_cap = "
            "1e30 (no bias, more noise)"
        )


def _refuse_what_is_of_the_student_alone(recipe: Recipe, sources: Sequence[SourceConfig]) -> None:
    """A discount and a reward say what the student's own token leads to."""
    objective, others = recipe.objective, [source.label for source in sources if source.origin != "student"]
    if others and objective.discount > 0:
        raise ValueError(
            f"objective.discount = {objective.discount} weighs what a token of the student leads to, but what follows "
            f"it in sequences of {', '.join(map(repr, others))} is not the student's. Set objective.discount = 0, or "
            "remove these sources"
        )
    if objective.task_reward and len(others) == len(sources):
        raise ValueError(
            "objective.task_reward compares samples of the student, but rollout.sources has none. Add {from = "
            "'student', share = ...}, or remove objective.task_reward"
        )


def _members(recipe: Recipe) -> dict[str, Any]:
    teacher = recipe.teacher
    return dict(teacher.teachers) if isinstance(teacher, RoutedTeacherConfig) else {"teacher": teacher}


def _refuse_groups(recipe: Recipe) -> None:
    for name, section in _members(recipe).items():
        if getattr(getattr(section, "view", None), "kind", "same") == "retokenized":
            raise ValueError(
                f"{name} scores groups of sampled tokens (view.kind = 'retokenized'), which weigh how likely they were "
                "when they were sampled, and of a data set nobody knows that. Remove the source, or the view"
            )


def _refuse_what_cannot_sample(recipe: Recipe) -> None:
    for name, section in _members(recipe).items():
        if section.kind not in ("local", "sglang", "vllm"):
            raise ValueError(
                f"rollout.sources has from = 'teacher', but {name} (kind = {section.kind!r}) scores and does not "
                "sample. Take kind = 'local', 'sglang' or 'vllm', or remove the source"
            )
        if (view := getattr(section, "view", None)) is not None and view.kind != "same":
            raise ValueError(
                f"rollout.sources has from = 'teacher', but {name} has a view of kind {view.kind!r}: it would sample "
                "after the student's prompt and be scored after another one. Remove the source, or the view"
            )
        if isinstance(section, LocalTeacherConfig) and section.devices > 1:
            raise ValueError(
                f"rollout.sources has from = 'teacher', but {name} spans {section.devices} devices and is not decoded "
                "there. Set devices = 1, or serve it with kind = 'sglang' or 'vllm'"
            )
