"""Recipe tables of engines: in this process, or a server of the student's weights.

[engine]
kind = "sglang"
url = ["http://10.0.0.1:30000", "http://10.0.0.2:30000"]   # or one address
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from limbeck.config.base import Config
from limbeck.config.factory import PythonPartConfig
from limbeck.config.values import Concurrency, Line, Place, Positive, PositiveInt, Seconds, Urls
from limbeck.formatting import shown


class HFEngineConfig(Config):
    """Samples in this process with the learner's own weights: no copy, no server."""

    kind: Literal["hf"] = "hf"
    max_rows: PositiveInt = Field(256, description="responses decoded at once; bounds the KV cache")


class ServedEngineConfig(Config):
    """A server that gets the student's weights after every update, and is compared with the learner."""

    url: Urls = Field(
        description="`http://host:port` of a server that was started with the student's model, or a list of several"
    )
    token_env: Line | None = Field(None, description="environment variable that holds the bearer token")
    weights_folder: Place | None = Field(
        None,
        description="where weights are put for the servers, which see it under the same path; absent: in the memory of "
        "this machine (/dev/shm) for servers at loopback addresses, else in the run",
    )
    max_rows: PositiveInt = Field(16, description="responses that one server is asked for before it is checked again")
    tolerance: Positive = Field(
        0.02, description="nats a token between server and learner on a fixed text, on average; raise it for bfloat16"
    )
    max_concurrency: Concurrency = Field(64, description="requests under way at once, at each server")
    timeout: Seconds = Field(600.0, description="seconds for one response, or for one update of the weights")
    retry_seconds: Seconds = Field(300.0, description="how long to wait for a server that is away or busy")

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url,) if isinstance(self.url, str) else self.url

    @field_validator("url")
    @classmethod
    def _each_once(cls, url: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """Two engines at one server would overwrite each other's weights."""
        bare = [one.rstrip("/") for one in ([url] if isinstance(url, str) else url)]
        if twice := next((one for one in bare if bare.count(one) > 1), None):
            raise ValueError(f"{shown(twice)} is given twice; expected each server once")
        return url


class SGLangEngineConfig(ServedEngineConfig):
    """SGLang, by `/generate`."""

    kind: Literal["sglang"] = "sglang"
    weights: Literal["disk", "tensors"] = Field(
        "disk", description="how they travel: a folder both sides see, or in the request (one GPU a server)"
    )


class VLLMEngineConfig(ServedEngineConfig):
    """vLLM in development mode, by `/v1/completions`."""

    kind: Literal["vllm"] = "vllm"


class PythonEngineConfig(PythonPartConfig):
    """An engine of your own: the factory returns a `protocols.Engine`."""


EngineConfig: TypeAlias = Annotated[
    HFEngineConfig | SGLangEngineConfig | VLLMEngineConfig | PythonEngineConfig, Field(discriminator="kind")
]


def complete_engine(given: Any) -> Any:
    """Kind `hf` for an engine table that names neither a kind nor a server."""
    engine = given.get("engine") if isinstance(given, Mapping) else None
    if isinstance(engine, Mapping) and "kind" not in engine and "url" not in engine:
        return {**given, "engine": {"kind": "hf", **engine}}
    return given
