"""Tracker `wandb`: Weights & Biases, online or offline (`wandb sync` sends an offline run later)."""

from __future__ import annotations

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from limbeck.config.recipe import Recipe
from limbeck.config.tracker import WandbTrackerConfig
from limbeck.errors import RecipeError
from limbeck.trackers.samples import COLUMNS, recorded_samples

ID_FILE = "wandb-id"  # in the run's folder, so that a resumed run goes on in the same W&B run
LOGIN_SECONDS = 60


class WandbSink:
    """Raises `RecipeError` where an online run has no key to log in with."""

    def __init__(self, section: WandbTrackerConfig, recipe: Recipe, folder: Path) -> None:
        import wandb

        self.wandb, self.section, self.recipe, self.folder = wandb, section, recipe, folder
        self.run: Any = None
        if section.mode == "online" and not _has_key():  # wandb would ask for one in the middle of the run
            raise RecipeError(
                "trackers: wandb has no key to log in with. Run `wandb login`, set WANDB_API_KEY, or mode = 'offline'."
            )

    def open(self, start: int) -> None:
        self.run = self.wandb.init(
            project=self.section.project,
            entity=self.section.entity,
            name=self.recipe.name,
            group=self.section.group,
            id=self._id(),
            resume="allow",
            mode=self.section.mode,
            dir=str(self.folder),
            config=self.recipe.model_dump(mode="json"),
            settings=self.wandb.Settings(silent=True, console="off", init_timeout=LOGIN_SECONDS),
        )
        # W&B's own step may only grow, but a resumed run makes some steps again: ours is a metric.
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        self.run.log({"step": step, **values, **self._samples(step, values)})
        for alarm in alarms:
            self.run.alert(title=alarm.partition(":")[0], text=f"step {step}: {alarm}", wait_duration=300)

    def close(self) -> None:
        self.run.finish()

    def _samples(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """A table of what was recorded of a step, which is on the disk before the step's line is written."""
        if not self.section.samples or not any(name.startswith("train/") for name in values):
            return {}
        rows = recorded_samples(self.folder, step)
        return {} if rows is None else {"samples": self.wandb.Table(columns=list(COLUMNS), data=rows)}

    def _id(self) -> str:
        path = self.folder / ID_FILE
        if not path.exists():
            path.write_text(secrets.token_hex(6), encoding="utf-8")
        return path.read_text(encoding="utf-8").strip()


def _has_key() -> bool:
    """Whether there is something to log in with, in the places that W&B documents."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (Path(os.environ.get("NETRC", "~/.netrc")).expanduser(), Path("~/_netrc").expanduser()):
        try:
            if path.exists() and netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            return True  # wandb may read it otherwise; it is not for us to refuse
    return False
