"""The recipe's table of the model that is trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.config.base import ModelConfig


class StudentConfig(ModelConfig):
    """The model that is trained."""

    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="how the weights are held and sampled from; of bfloat16 ones the optimizer keeps float32 masters "
        "and states. `learner.precision` sets what float32 weights compute in",
    )
