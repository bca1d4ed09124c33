"""Packages that only some tables of a recipe need: what is missing is named before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from pydantic import BaseModel

from limbeck.config.cluster import ClusterConfig
from limbeck.config.environment import AgentEnvironmentConfig, GatewayEnvironmentConfig
from limbeck.config.learner import LoraConfig
from limbeck.config.recipe import Recipe
from limbeck.config.sources import DatasetSourceConfig
from limbeck.config.task import DatasetTaskConfig, EvalDatasetConfig, MathVerifyGraderConfig, ReasoningGymTaskConfig
from limbeck.config.tracker import TensorBoardTrackerConfig, TrackioTrackerConfig, WandbTrackerConfig
from limbeck.errors import RecipeError

NEEDS: Mapping[type[BaseModel], tuple[str, str]] = {  # of each table that needs one: the package, and the extra with it
    AgentEnvironmentConfig: ("fastapi", "gateway"),
    ClusterConfig: ("ray", "cluster"),
    DatasetSourceConfig: ("datasets", "data"),  # where it has a `hub`
    DatasetTaskConfig: ("datasets", "data"),
    EvalDatasetConfig: ("datasets", "data"),
    GatewayEnvironmentConfig: ("fastapi", "gateway"),
    LoraConfig: ("peft", "lora"),
    MathVerifyGraderConfig: ("math_verify", "math"),
    ReasoningGymTaskConfig: ("reasoning_gym", "gym"),
    TensorBoardTrackerConfig: ("tensorboard", "tensorboard"),
    TrackioTrackerConfig: ("trackio", "trackio"),
    WandbTrackerConfig: ("wandb", "wandb"),
}


def require_extras(recipe: Recipe, unused: Collection[str] = ()) -> None:
    """Raises `RecipeError` naming each package that is not installed, the table that needs it, and one command.

    `unused` are top-level keys that are not looked at, such as `task` where a task is given as an object.
    """
    missing = {
        where: needed
        for where, table in _tables(recipe, "")
        if (needed := _needed(table)) and where.partition(".")[0] not in unused and find_spec(needed[0]) is None
    }
    if missing:
        needs = "; ".join(f"{where} needs the package {package!r}" for where, (package, _) in missing.items())
        extras = ",".join(sorted({extra for _, extra in missing.values()}))
        raise RecipeError(f"{needs}, which is not installed. Install it: pip install 'limbeck[{extras}]'")


def _needed(table: BaseModel) -> tuple[str, str] | None:
    if isinstance(table, DatasetSourceConfig) and table.hub is None:
        return None
    return NEEDS.get(type(table))


def _tables(value: Any, where: str) -> Iterator[tuple[str, BaseModel]]:
    """Every table of a recipe, with its dotted key: `task.grader`, `trackers.0`."""
    if isinstance(value, BaseModel):
        if where:
            yield where, value
        parts = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(number), part) for number, part in enumerate(value)]
    else:
        return
    for name, part in parts:
        yield from _tables(part, f"{where}.{name}" if where else name)
