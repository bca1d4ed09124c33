"""The recipe's tables of trackers: who else receives the metrics."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Line, Place


class TensorBoardTrackerConfig(Config):
    """Event files for TensorBoard (extra `tensorboard`)."""

    kind: Literal["tensorboard"] = "tensorboard"
    folder: Place | None = Field(None, description="`tensorboard/` in the run's folder where absent")


class WandbTrackerConfig(Config):
    """Weights & Biases (extra `wandb`)."""

    kind: Literal["wandb"] = "wandb"
    project: Line = Field("limbeck", description="where its runs are listed")
    entity: Line | None = Field(None, description="user or team; your own where absent")
    group: Line | None = Field(
        None, description="runs with the same one are shown together, such as the seeds of a setting"
    )
    samples: bool = Field(
        True, description="send the recorded rollouts too, a table each recorded step: prompts and responses"
    )
    mode: Literal["online", "offline"] = Field("online", description="offline: written down, for `wandb sync`")


class TrackioTrackerConfig(Config):
    """Trackio (extra `trackio`)."""

    kind: Literal["trackio"] = "trackio"
    project: Line = Field("limbeck", description="where its runs are listed")
    space: Line | None = Field(None, description="hub space to log to; this machine where absent")


class PythonTrackerConfig(PythonPartConfig):
    """A tracker of your own: the factory returns a `protocols.Observer`. Nothing is loaded yet when it is called."""


TrackerConfig: TypeAlias = Annotated[
    TensorBoardTrackerConfig | WandbTrackerConfig | TrackioTrackerConfig | PythonTrackerConfig,
    Field(discriminator="kind"),
]
