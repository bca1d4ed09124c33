"""The environment table of a recipe: what happens around the student's turns, and how long it may take."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Concurrency, Fraction, PositiveInt, Seconds


class EpisodesConfig(Config):
    """Limits of episodes of several turns. What ends at one is a failure of that episode alone, and counted."""

    timeout: Seconds = Field(
        600.0, description="seconds that an episode may take; those in which it waits for the student do not count"
    )
    max_turns: PositiveInt = Field(64, description="turns of the student in one episode")
    concurrency: Concurrency | None = Field(None, description="episodes that run at once; absent: all of a step")
    min_completed_fraction: Fraction = Field(
        0.5, description="share of a step's episodes that must be completed, or it stops; failed ones are left out"
    )


class SingleTurnConfig(Config):
    """One prompt gets one response. One that cannot be sampled stops the step."""

    kind: Literal["single_turn"] = "single_turn"


class PythonEnvironmentConfig(EpisodesConfig, PythonPartConfig):
    """An environment of your own: the factory returns an object with `run` (`protocols.Environment`)."""


EnvironmentConfig: TypeAlias = Annotated[SingleTurnConfig | PythonEnvironmentConfig, Field(discriminator="kind")]
