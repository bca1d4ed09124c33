"""The recipe's table of the model that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.config.base import ModelConfig


class StudentConfig(ModelConfig):
    """The model that is trained."""

    dtype: Literal["float32"] = Field(
        "float32", description="master weights; `learner.precision` sets what they compute in"
    )
