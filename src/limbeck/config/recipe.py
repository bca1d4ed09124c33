"""Recipes: TOML read into strict, frozen models; an unknown key is an error that names the right one.

    recipe = load_recipe("recipes/demo.toml", ["rollout.temperature=0.7", "steps=50"])

The tagged unions (`teacher.kind`, `task.kind`, `objective.divergence`, ...) make states that cannot
work impossible to write: there is, say, no forward KL on a sampled support to ask for.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, TypeAlias

from pydantic import Field, ValidationError, model_validator

from limbeck.config.base import Config, keys_of
from limbeck.config.cluster import ClusterConfig, refuse_with_cluster
from limbeck.config.engine import EngineConfig, HFEngineConfig, complete_engine
from limbeck.config.environment import (
    EnvironmentConfig,
    SingleTurnConfig,
    complete_environment,
    refuse_agent_without_gateway,
)
from limbeck.config.evaluation import EvalConfig
from limbeck.config.learner import LearnerConfig, LocalLearnerConfig, complete_learner
from limbeck.config.mistakes import explain
from limbeck.config.objective import ObjectiveConfig, ReverseKLConfig
from limbeck.config.recipe_file import read_table, recipe_file
from limbeck.config.retokenized import refuse_with_retokenized
from limbeck.config.self_teacher import refuse_with_self
from limbeck.config.sources import SourceConfig, refuse_biased_sources
from limbeck.config.student import StudentConfig
from limbeck.config.task import TaskConfig
from limbeck.config.teacher import (
    LimbeckTeacherConfig,
    RemoteTeacherConfig,
    RoutedTeacherConfig,
    StatesTeacherConfig,
    TeacherConfig,
    complete_teacher,
)
from limbeck.config.tracker import TrackerConfig
from limbeck.config.values import DEEPEST, Count, Line, Name, Place, PositiveInt, Seed, Temperature, TokenId, fault_of
from limbeck.errors import RecipeError
from limbeck.files.digests import RECIPE_FILE
from limbeck.formatting import shown

Change: TypeAlias = Callable[[Mapping[str, Any]], dict[str, Any]]
MOST_RESPONSES = 2**20  # of one step or evaluation: they are in memory together


class RolloutConfig(Config):
    """How the student samples. The teacher scores at the same temperature."""

    temperature: Temperature = Field(1.0, description="T of sampler, student loss and teacher alike; > 0")
    max_tokens: Annotated[int, Field(ge=1, le=2**24)] = Field(256, description="longest response")
    prompts_per_step: Annotated[int, Field(ge=1, le=2**20)] = Field(64, description="prompts of one update")
    samples_per_prompt: Annotated[int, Field(ge=1, le=2**14)] = Field(1, description="responses to each prompt")
    top_p: Annotated[float, Field(ge=1e-6, le=1, allow_inf_nan=False)] = Field(
        1.0, description='1: off; below it, `support = "full"` only'
    )
    top_k: Count = Field(0, description="0: off")
    min_p: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(0.0, description="0: off")
    stop_ids: tuple[TokenId, ...] = Field(
        (), max_length=1000, description="stop tokens besides those of the generation config and the tokenizer"
    )
    lag: Annotated[int, Field(ge=0, le=64)] = Field(
        0, description="step n is sampled with the weights of update max(0, n - 1 - lag), while updates are made"
    )
    sources: tuple[SourceConfig, ...] = Field(
        (), max_length=100, description="who writes what a step trains on; absent: the student everything"
    )


class CheckpointConfig(Config):
    """When to save, and how many to keep."""

    every: Count = Field(50, description="steps between checkpoints; 0: only at the end")
    keep_last: PositiveInt = Field(2, description="older checkpoints are removed")


class RecordConfig(Config):
    """Rollouts kept for people to look at, in `rollouts/`. Changes nothing about the training."""

    every: Count = Field(10, description="steps between recorded ones, besides the first and the last; 0: none at all")
    rollouts_per_step: Count = Field(8, description="of the step's own rollouts, spread evenly over them")
    watch: Count = Field(4, description="held-out prompts sampled with the same random numbers at every recorded step")
    top: Annotated[int, Field(ge=1, le=64)] = Field(5, description="most likely tokens kept for each position")
    max_mb: PositiveInt = Field(
        256, description="size of `rollouts/`; over it every second recorded step is dropped, and again"
    )


class Recipe(Config):
    """One run. `name` and `output` are where it goes; the tables below are what it does."""

    name: Name = Field("run", description="the run's folder")
    output: Place = Field("runs", description="folder of run folders")
    seed: Seed = Field(0, description="all randomness follows from it")
    steps: PositiveInt = Field(100, description="updates")
    device: Line = Field("auto", description="`auto`, `cpu`, `cuda`, `cuda:1`, ...")
    threads: Annotated[int, Field(ge=1, le=1024)] | None = Field(None, description="CPU threads; absent: all cores")
    student: StudentConfig
    teacher: TeacherConfig
    task: TaskConfig
    environment: EnvironmentConfig = SingleTurnConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = HFEngineConfig()
    objective: ObjectiveConfig = ReverseKLConfig()
    learner: LearnerConfig = LocalLearnerConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cluster: ClusterConfig | None = None
    record: RecordConfig = RecordConfig()
    trackers: tuple[TrackerConfig, ...] = Field(
        (), max_length=100, description='trackers, besides `metrics.jsonl`: `[{kind = "tensorboard"}]`'
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """A divergence that is not named is the reverse KL, and a support the teacher can give."""
        if isinstance(given, Mapping) and isinstance(given.get("objective"), Mapping):
            given = {**given, "objective": {"divergence": "reverse_kl", **given["objective"]}}
        return complete_teacher(complete_engine(complete_learner(complete_environment(given))))

    @model_validator(mode="after")
    def _combinations_that_cannot_work(self) -> Self:
        rollout, objective = self.rollout, self.objective
        refuse_agent_without_gateway(self.task, self.environment)
        if self.cluster is not None:
            refuse_with_cluster(self.cluster, self.learner, self.engine, self.device)
        _refuse_what_the_teacher_cannot_give(self)
        refuse_with_retokenized(self)
        refuse_with_self(self)
        refuse_biased_sources(self)
        for table, prompts, samples in (
            ("rollout", rollout.prompts_per_step, rollout.samples_per_prompt),
            ("eval", self.eval.prompts, self.eval.samples_per_prompt),
            *((f"eval.sets.{name}", *self.eval.responses_of(name)) for name in self.eval.sets),
        ):
            if prompts * samples > MOST_RESPONSES:
                raise ValueError(
                    f"[{table}] asks for {prompts} prompts times {samples} samples_per_prompt, expected at most "
                    f"{MOST_RESPONSES:,} responses at once. Lower one of the two."
                )
        truncated = rollout.top_p < 1 or rollout.top_k > 0 or rollout.min_p > 0
        if truncated and objective.support != "full":
            raise ValueError(
                f"rollout.top_p/top_k/min_p cut the student's distribution, but objective.support = "
                f"{objective.support!r} estimates a divergence from its samples, which would be biased. Set "
                "objective.support = 'full', or remove the truncation."
            )
        if truncated and (objective.discount > 0 or objective.task_reward):
            raise ValueError(
                "rollout.top_p/top_k/min_p cut the student's distribution, but objective.discount and "
                "objective.task_reward weigh sampled tokens as if it were whole. Remove one of the two."
            )
        if objective.task_reward and rollout.samples_per_prompt < 2:
            raise ValueError(
                "objective.task_reward compares the samples of one prompt, but "
                f"rollout.samples_per_prompt = {rollout.samples_per_prompt}. Set it to 2 or more."
            )
        return self

    def to_toml(self) -> str:
        """The resolved recipe, every default written out."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


Config.root = Recipe


def _refuse_what_the_teacher_cannot_give(recipe: Recipe) -> None:
    """A divergence over the whole vocabulary needs hidden states and their head; left-out tokens have no future."""
    objective, teacher = recipe.objective, recipe.teacher
    members = dict(teacher.teachers) if isinstance(teacher, RoutedTeacherConfig) else {"teacher": teacher}
    for name, section in members.items():
        if not isinstance(section, RemoteTeacherConfig):
            continue
        states = isinstance(section, StatesTeacherConfig) and section.head
        if objective.support == "student_top" and not states:
            _refuse_given_ids(f"{name} ({section.kind})", section)
        if objective.support == "full" and not states:
            raise ValueError(
                f"{objective.divergence} is asked for over the whole vocabulary, but {name} ({section.kind}) answers "
                "with its top log-probs. Set objective.support = 20 (same expected gradient, a little more "
                "noise), or use kind = 'limbeck' or 'sglang' with head = its model folder."
            )
        if objective.discount > 0 and section.max_rescale_dropped > 0:
            raise ValueError(
                f"objective.discount = {objective.discount} sums the divergences of later tokens, but {name} may leave "
                "some out. Set max_rescale_dropped = 0 in its table, or objective.discount = 0."
            )


def _refuse_given_ids(who: str, section: RemoteTeacherConfig) -> None:
    """The student's top tokens are asked about by their ids, other ones at each position."""
    remedy = (
        "Serve the teacher with `limbeck serve` (kind = 'limbeck'), give head = its model folder where it sends hidden "
        "states, or set objective.support = 20, the teacher's own top tokens."
    )
    if not isinstance(section, LimbeckTeacherConfig):
        raise ValueError(
            f"objective.support = 'student_top', but {who} answers with its own top log-probs, and "
            f"cannot be asked about other ids at each position. {remedy}"
        )
    if section.temperature_method == "rescale":
        raise ValueError(
            f"objective.support = 'student_top', but {who} has temperature_method = 'rescale', which works from the "
            "teacher's own top log-probs. Set temperature_method = 'auto', or objective.support = 20."
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = (), change: Change | None = None) -> Recipe:
    """Read a TOML recipe, or that of a run's folder, and apply dotted `key=value` overrides, in order.

    `change` as in `parse_recipe`.

    Raises `RecipeError` for a missing file, a TOML mistake, an unknown key or a wrong value.
    """
    if not isinstance(path, str | Path):
        raise RecipeError(
            f"the recipe is {shown(path)} ({type(path).__name__}); expected the path of a TOML file or of a run's "
            "folder, a dict of a recipe's tables, or a Recipe"
        )
    file, folder = recipe_file(Path(path))
    recipe = parse_recipe(read_table(file), overrides, str(file), change)
    if folder is not None and change is None and not any(one.startswith(("name=", "output=")) for one in overrides):
        _refuse_moved(recipe, folder)
    return recipe


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises `RecipeError` for what is no list: the letters of a text and the keys of a dict are a sequence too."""
    if isinstance(overrides, list | tuple) and all(isinstance(one, str) for one in overrides):
        return
    what = f"a {type(overrides).__name__}" if not isinstance(overrides, list | tuple) else "not all text"
    raise RecipeError(f"overrides is {what} ({shown(overrides)}), expected a list of 'key=value': ['steps=50']")


def _refuse_moved(recipe: Recipe, folder: Path) -> None:
    """A run's folder that was copied, renamed or named from elsewhere would begin, or go on with, another run."""
    goes_to = Path(recipe.output) / recipe.name
    if goes_to.resolve() != folder.resolve():
        raise RecipeError(
            f"the recipe in {folder} is of the run in {goes_to}, which is not that folder. Add output={folder.parent} "
            f"name={folder.name} for the run in {folder}, or give {folder / RECIPE_FILE} for the run in {goes_to}."
        )


def parse_recipe(
    table: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe", change: Change | None = None
) -> Recipe:
    """Validate a nested mapping as a recipe, after dotted `key=value` overrides.

    `change` makes another recipe of it first, such as `sft_table`.

    Raises `RecipeError` for an unknown key or a wrong value.
    """
    check_overrides(overrides)
    if fault := fault_of(table):
        raise RecipeError(f"{source} is not a valid recipe: {fault}")
    merged = json.loads(json.dumps(table, default=str))  # a deep copy of plain TOML values, which are small by now
    for override in overrides:
        _apply_override(merged, override)
    return _validated(merged if change is None else change(merged), source)


def checked_again(recipe: Recipe) -> Recipe:
    """`recipe` as it is, proven: `model_copy(update=...)` checks nothing. Raises `RecipeError`."""
    return _validated(recipe.model_dump(warnings=False), "the given recipe")


def _validated(table: Mapping[str, Any], source: str) -> Recipe:
    if fault := fault_of(table):
        raise RecipeError(f"{source} is not a valid recipe: {fault}")
    try:
        return Recipe.model_validate(table)
    except ValidationError as error:
        raise RecipeError(explain(error, source)) from None


def dotted_keys(section: type[Config] | None = None, prefix: str = "") -> Iterator[str]:
    """Every key a recipe may have, such as `rollout.temperature`, tables included."""
    return keys_of(section or Recipe, prefix)


def _apply_override(table: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts) or len(parts) > DEEPEST:
        raise RecipeError(
            f"override {shown(override)} is not of the form table.key=value, such as rollout.temperature=0.7"
        )
    for depth, part in enumerate(parts[:-1]):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {shown(override)}: {'.'.join(parts[: depth + 1])} is a value, not a table")
    table[parts[-1]] = _value_of(text)


def _value_of(text: str) -> Any:
    """A TOML value, or a bare word: model=path/to/model needs no quotes. Raises `RecipeError`."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError) as error:
        if not isinstance(error, tomllib.TOMLDecodeError):  # a number of thousands of digits, a thousand brackets
            raise RecipeError(f"the override's value {shown(text)} cannot be read: {error}") from None
        return text.strip()
    return found["value"] if len(found) == 1 else text.strip()  # more keys: a line break, and another line
