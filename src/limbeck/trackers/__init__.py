"""Trackers people already use, one module each, behind `protocols.Observer`.

A tracker works in a thread of its own (`background.py`), so that a run never waits for one and never
fails with one. Its package is imported only when a recipe names it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from limbeck.config.factory import Build, PythonPartConfig, build_part
from limbeck.config.recipe import Recipe
from limbeck.config.tracker import (
    TensorBoardTrackerConfig,
    TrackerConfig,
    TrackioTrackerConfig,
    WandbTrackerConfig,
)
from limbeck.errors import RecipeError
from limbeck.protocols import Observer
from limbeck.trackers.background import BackgroundTracker, Sink


def make_trackers(recipe: Recipe, folder: Path) -> list[Observer]:
    """The trackers that the recipe names, for a run in `folder`.

    Raises `RecipeError` where a tracker's package is not installed, cannot be imported or cannot log in.
    """
    return [_tracker(section, recipe, folder) for section in recipe.trackers]


def _tracker(section: TrackerConfig, recipe: Recipe, folder: Path) -> Observer:
    if isinstance(section, PythonPartConfig):  # nothing is loaded yet
        observer: Observer = build_part(section, "trackers", Build(recipe, None, None, None, recipe.seed, folder))
        return observer
    if importlib.util.find_spec(section.kind) is None:
        raise RecipeError(
            f"trackers: {section.kind!r} is not installed. pip install 'limbeck[{section.kind}]', or take it out of "
            "the recipe."
        )
    try:
        return BackgroundTracker(section.kind, SINKS[type(section)](section, recipe, folder))
    except ImportError as error:
        raise RecipeError(
            f"trackers: {section.kind!r} is installed but cannot be imported: {error}. pip install --upgrade "
            f"'limbeck[{section.kind}]', or take it out of the recipe."
        ) from error


# The packages are imported here, once, before the first step: some take seconds.
def _tensorboard(section: TensorBoardTrackerConfig, recipe: Recipe, folder: Path) -> Sink:
    from limbeck.trackers.tensorboard import TensorBoardSink

    return TensorBoardSink(Path(section.folder) if section.folder else folder / "tensorboard", recipe, folder)


def _trackio(section: TrackioTrackerConfig, recipe: Recipe, folder: Path) -> Sink:
    from limbeck.trackers.trackio import TrackioSink

    return TrackioSink(section, recipe)


def _wandb(section: WandbTrackerConfig, recipe: Recipe, folder: Path) -> Sink:
    from limbeck.trackers.wandb import WandbSink

    return WandbSink(section, recipe, folder)


SINKS: Mapping[type, Callable[[Any, Recipe, Path], Sink]] = {
    TensorBoardTrackerConfig: _tensorboard,
    TrackioTrackerConfig: _trackio,
    WandbTrackerConfig: _wandb,
}
