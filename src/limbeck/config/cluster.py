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
from limbeck.config.engine import SGLangEngineConfig, VLLMEngineConfig
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Line, PositiveInt
from limbeck.formatting import shown

ADDRESS = re.compile(r"local|auto|(ray://)?[\w.-]+:(?P<port>\d{1,5})", re.ASCII)
PORTS = range(1, 2**16)


def _address(text: str) -> str:
    found = ADDRESS.fullmatch(text)
    if found is None or int(found["port"] or 1) not in PORTS:
        raise ValueError(
            f"{shown(text)} is no address of a Ray cluster, expected 'local' (one of the run's own), 'auto' (the one "
            "this machine is a node of), 'HOST:PORT', or 'ray://HOST:PORT', with a port from 1 to 65535"
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
    state_mb: PositiveInt = Field(
        512, description="MB of hidden states that a teacher's process computes ahead of the learner"
    )


def refuse_with_cluster(cluster: ClusterConfig, learner: object, engine: object, device: str) -> None:
    """Raises `ValueError` for what a fleet cannot do, by the recipe's other tables."""
    if isinstance(learner, PythonPartConfig):
        raise ValueError(
            "[cluster] shares the student among processes, which learner.kind = 'local' does and a learner of your own "
            "(kind = 'python') cannot. Remove one of the two tables."
        )
    if isinstance(engine, SGLangEngineConfig | VLLMEngineConfig | PythonPartConfig) and cluster.samplers > 1:
        raise ValueError(
            f"cluster.samplers = {cluster.samplers}, but engine.kind = {engine.kind!r} samples by itself. Remove "
            "cluster.samplers; several servers are several addresses in engine.url."
        )
    if ":" in device:
        raise ValueError(
            f"device = {device!r} names one device, but with [cluster] each process is given its own. Set device = "
            f"{device.partition(':')[0]!r}."
        )
