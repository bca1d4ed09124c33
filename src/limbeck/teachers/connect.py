"""Which servers there are, and how each is asked. A backend is one entry in `BACKENDS`. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.config.teacher import LimbeckTeacherConfig, RemoteTeacherConfig, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.teachers.client import RemoteClient
from limbeck.wire import sglang, vllm
from limbeck.wire.dialects import BinaryDialect, Dialect, JsonDialect
from limbeck.wire.http import Pool, PoolSettings


@dataclass(frozen=True, slots=True)
class Backend:
    """A kind of server: its table in a recipe, and what it speaks."""

    config: type[RemoteTeacherConfig]
    dialect: Callable[[Any], Dialect]  # of such a table
    binds: bool = False  # whether each of its answers is bound to its request: see `wire.binding`


BACKENDS: Mapping[str, Backend] = {
    "sglang": Backend(SGLangTeacherConfig, lambda _: JsonDialect("sglang", sglang)),
    "vllm": Backend(VLLMTeacherConfig, lambda _: JsonDialect("vllm", vllm, names_model=True)),
    "limbeck": Backend(LimbeckTeacherConfig, lambda section: BinaryDialect(section.hidden_dtype), binds=True),
}


def connect(
    name: str, section: RemoteTeacherConfig, vocabulary: int, largest_k: int, counted: bool = True
) -> RemoteClient:
    """A client for the servers of a recipe's table, of which nothing is proven yet. See `RemoteClient`."""
    (backend,) = (backend for backend in BACKENDS.values() if type(section) is backend.config)
    settings = PoolSettings(
        concurrency=section.max_concurrency,
        timeout=section.timeout,
        patience=section.retry_seconds,
        token_env=section.token_env,
        binds=backend.binds,
    )
    pool = Pool(section.urls, settings)
    return RemoteClient(name, section, backend.dialect(section), pool, vocabulary, largest_k, counted)
