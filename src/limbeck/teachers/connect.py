"""From a recipe table to a teacher that is connected and not yet proven. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config.teacher import RemoteTeacherConfig
from limbeck.teachers.limbeck import limbeck_dialect
from limbeck.teachers.remote import RemoteTeacher
from limbeck.teachers.sglang import sglang_dialect
from limbeck.teachers.vllm import vllm_dialect
from limbeck.wire.dialects import Dialect
from limbeck.wire.http import Pool, PoolSettings

if TYPE_CHECKING:
    from limbeck.models.head import Head


def remote_teacher(
    name: str, section: RemoteTeacherConfig, vocabulary: int, largest_k: int, support: int, head: Head | None = None
) -> RemoteTeacher:
    """A connected but unproven teacher."""
    dialects: dict[str, Dialect] = {
        "sglang": sglang_dialect(),
        "vllm": vllm_dialect(),
        "limbeck": limbeck_dialect(),
    }
    settings = PoolSettings(
        concurrency=section.max_concurrency,
        timeout=section.timeout,
        patience=section.retry_seconds,
        token_env=section.token_env,
    )
    kind = str(getattr(section, "kind"))  # noqa: B009 (each table has one, their base has none)
    return RemoteTeacher(
        name, section, dialects[kind], Pool(section.urls, settings), vocabulary, largest_k, support, head
    )
