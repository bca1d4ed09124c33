"""The table of a teacher that reads the response in tokens of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from limbeck.config.base import Config


class RetokenizedViewConfig(Config):
    """The same text in the teacher's own tokens: spans that begin and end on the same bytes are compared."""

    kind: Literal["retokenized"] = "retokenized"
    accept_temperature: bool = Field(
        False,
        description="train at another temperature than 1 all the same: tempered processes over different tokens are no "
        "distributions over the same texts, so there is no divergence that this minimises",
    )
