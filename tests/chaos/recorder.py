"""What a client took and what it refused: every try over HTTP gets a name, which the proxy sees in a header."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpx
import pytest

from limbeck.wire.http import Pool

NAME = "x-chaos-try"
_now: ContextVar[str] = ContextVar("_now", default="")
_numbers = itertools.count()


@contextmanager
def recorded() -> Iterator[set[str]]:
    """The names of tries whose answers were taken."""
    taken: set[str] = set()
    once, send = Pool._once, httpx.AsyncClient.send

    async def named_once(pool: Pool, *args: Any, **more: Any) -> Any:
        name = f"try-{next(_numbers)}"
        _now.set(name)
        answer = await once(pool, *args, **more)
        taken.add(name)
        return answer

    async def named_send(client: httpx.AsyncClient, request: httpx.Request, **more: Any) -> httpx.Response:
        request.headers[NAME] = _now.get()
        return await send(client, request, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "_once", named_once)
        patch.setattr(httpx.AsyncClient, "send", named_send)
        yield taken
