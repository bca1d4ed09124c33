"""Connections cost a client nothing to open, so how long one may wait for it, and how many there may be, is bounded.

    limit          what happens
    HEAD seconds   a request's head has not come by then (after connecting, or after the last answer): closed
    most           there are more: of those that wait for their clients, to write or to read, the ones that have waited
                   longest are closed, a moment later: a client that is not slow has been heard by then

How fast bodies must come and be read is in `face`; it closes a connection by the function that it finds in its scope.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from limbeck.serve.face import DROP

HEAD = 20.0
MOMENT = 0.05  # seconds


def protocol(most: int) -> type[H11Protocol]:
    """uvicorn's protocol with these limits. Its parser is h11, which bounds a head at 64 kB; httptools does not."""
    waiting: dict[Bounded, None] = {}  # the one that has waited longest is first
    connections: set[Bounded] = set()

    def trim() -> None:
        while waiting and len(connections) > most:
            next(iter(waiting)).drop()

    class Bounded(H11Protocol):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self._inner, self.app = self.app, self._answer
            self._timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.add(self)
            self._await_head()
            if len(connections) > most:
                self.loop.call_later(MOMENT, trim)

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def drop(self) -> None:
            self._forget()
            if self.cycle is not None:
                self.cycle.disconnected = True  # or uvicorn would report an answer that was not completed
            self.transport.abort()

        def _forget(self) -> None:
            self._stop_timer()
            waiting.pop(self, None)
            connections.discard(self)

        def _await_head(self) -> None:
            self._stop_timer()
            waiting.pop(self, None)
            waiting[self] = None
            self._timer = self.loop.call_later(HEAD, self.drop)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
            """The application, between a head that has come and an answer that was handed over."""
            self._stop_timer()

            async def received() -> Any:
                message = await receive()
                if not message.get("more_body"):
                    waiting.pop(self, None)
                return message

            async def sent(message: Any) -> None:
                if self in connections:
                    waiting[self] = None
                await send(message)

            scope["extensions"] = {DROP: self.drop}
            try:
                await self._inner(scope, received, sent)
            except asyncio.CancelledError:  # the grace that requests have at the end is over
                self.drop()
            finally:
                if self in connections:
                    self._await_head()

    return Bounded
