"""Trackers people already use, one module each, behind `protocols.Observer`.

A tracker works in a thread of its own (`background.py`), so that a run never waits for one and never
fails with one. Its package is imported only when a recipe names it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from limbeck.config.recipe import Recipe
from limbeck.config.tracker import TensorBoardTrackerConfig, TrackerConfig, TrackioTrackerConfig
from limbeck.errors import RecipeError
from limbeck.trackers.background import BackgroundTracker, Sink


def make_trackers(recipe: Recipe, folder: Path) -> list[BackgroundTracker]:
    """The trackers that the recipe names, for a run in `folder`.

    Raises `RecipeError` where a tracker's package is not installed, cannot be imported or cannot log in.
    """
    made = []
    for section in recipe.trackers:
        try:
            made.append(BackgroundTracker(section.kind, _sink(section, recipe, folder)))
        except ImportError as error:
            raise RecipeError(
                f"trackers: {section.kind!r} is installed but cannot be imported: {error}. pip install --upgrade "
                f"'limbeck[{section.kind}]', or take it out of the recipe."
            ) from error
    return made


def _sink(section: TrackerConfig, recipe: Recipe, folder: Path) -> Sink:
    if importlib.util.find_spec(section.kind) is None:
        raise RecipeError(
            f"trackers: {section.kind!r} is not installed. pip install 'limbeck[{section.kind}]', or take it out of "
            "the recipe."
        )
    # The packages are imported here, once, before the first step: some take seconds.
    if isinstance(section, TensorBoardTrackerConfig):
        from limbeck.trackers.tensorboard import TensorBoardSink

        return TensorBoardSink(Path(section.folder) if section.folder else folder / "tensorboard")
    if isinstance(section, TrackioTrackerConfig):
        from limbeck.trackers.trackio import TrackioSink

        return TrackioSink(section, recipe)
    from limbeck.trackers.wandb import WandbSink

    return WandbSink(section, recipe, folder)
