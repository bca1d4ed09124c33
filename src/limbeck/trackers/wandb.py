"""Tracker `wandb`: Weights & Biases, online or offline (`wandb sync` sends an offline run later)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.config import Recipe, WandbTracker
from limbeck.errors import RecipeError

ID_FILE = "wandb-id"  # in the run's folder, so that a resumed run goes on in the same W&B run
LOGIN_SECONDS = 60


class WandbSink:
    """Raises `RecipeError` where an online run has no key to log in with."""

    def __init__(self, section: WandbTracker, recipe: Recipe, folder: Path) -> None:
        import wandb

        self.section, self.recipe, self.folder = section, recipe, folder
        self.run: Any = None
        if section.mode == "online" and not wandb.api.api_key:
            raise RecipeError(
                "trackers: wandb has no key to log in with. Run `wandb login`, set WANDB_API_KEY, or mode = 'offline'."
            )

    def open(self, start: int) -> None:
        import wandb

        self.run = wandb.init(
            project=self.section.project,
            entity=self.section.entity,
            name=self.recipe.name,
            id=self._id(),
            resume="allow",
            mode=self.section.mode,
            dir=str(self.folder),
            config=self.recipe.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off", init_timeout=LOGIN_SECONDS),
        )
        # W&B's own step may only grow, but a resumed run makes some steps again: ours is a metric.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        self.run.log({"step": step, **values})
        for alarm in alarms:
            self.run.alert(title=alarm.partition(":")[0], text=f"step {step}: {alarm}", wait_duration=300)

    def close(self) -> None:
        self.run.finish()

    def _id(self) -> str:
        path = self.folder / ID_FILE
        if not path.exists():
            path.write_text(secrets.token_hex(6), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()
