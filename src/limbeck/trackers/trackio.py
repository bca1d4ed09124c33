"""Tracker `trackio`: a local dashboard (`trackio show`), or a hub space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.config.recipe import Recipe
from limbeck.config.tracker import TrackioTrackerConfig


class TrackioSink:
    """Logs under the recipe's name; a resumed run goes on in the same trackio run."""

    def __init__(self, section: TrackioTrackerConfig, recipe: Recipe) -> None:
        import trackio

        self.trackio, self.section, self.recipe = trackio, section, recipe
        self.run: Any = None

    def open(self, start: int) -> None:
        self.run = self.trackio.init(
            project=self.section.project,
            name=self.recipe.name,
            space_id=self.section.space,
            config=self.recipe.model_dump(mode="json"),
            resume="allow" if start else "never",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        # The run object, not `trackio.log`: what is current there belongs to the thread that began it.
        self.run.log({**values, **({"alarms": "\n".join(alarms)} if alarms else {})}, step=step)

    def close(self) -> None:
        self.run.finish()
