"""Recipe table of a fleet: how many processes do each kind of work, and in which Ray cluster.

[cluster]
learners = 2
samplers = 2
"""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

from limbeck.config.base import Config
from limbeck.config.values import Line
from limbeck.formatting import shown

ADDRESS = re.compile(r"local|auto|(ray://)?[\w.-]+:\d{1,5}", re.ASCII)


def _address(text: str) -> str:
    if not ADDRESS.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is no address of a Ray cluster, expected 'local' (one of the run's own), 'auto' (the one "
            "this machine is a node of), 'HOST:PORT', or 'ray://HOST:PORT'"
        )
    return text


Processes: TypeAlias = Annotated[int, Field(ge=1, le=4096)]


class ClusterConfig(Config):
    """Processes that share the work, started by Ray (extra `cluster`). Without this table there is one, and no Ray."""

    address: Annotated[Line, AfterValidator(_address)] = Field(
        "local",
        description="`local`: a Ray of the run's own, on this machine; `auto`: the Ray cluster that this machine is a "
        "node of; `HOST:PORT`, `ray://HOST:PORT`",
    )
    learners: Processes = Field(1, description="processes that share the student's weights and its optimizer (FSDP2)")
    samplers: Processes = Field(1, description="processes that sample; their number changes no bit of the weights")
    teachers: Processes = Field(1, description="processes of each local teacher; a served one has its URLs")
