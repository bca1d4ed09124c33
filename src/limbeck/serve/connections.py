"""Connections cost a client nothing to open, so how long one may wait for it, and how many there may be, is bounded.

    limit          what happens
    LONGEST_HEAD   a head is longer: 431, before its headers are looked at one by one
    no chunks      a body comes in chunks: 411, before one of them is read, for each takes h11 as long as a request
    HEAD seconds   a request's head has not come by then (after connecting, or after the last answer): closed
    most           there are more: of those that wait for their clients, to write or to read, the ones that have waited
                   longest are closed, a moment later: a client that is not slow has been heard by then

How fast bodies must come and be read is in `face`; it closes a connection by the function that it finds in its scope.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from limbeck.serve.answers import dumped
from limbeck.serve.face import DROP, JSON
from limbeck.serve.logs import Refusals

HEAD = 20.0
MOMENT = 0.05  # seconds
LONGEST_HEAD = 2**14  # bytes
LINGER = 1.0  # seconds in which a client that is refused may read why, while what it sends is thrown away
END_OF_HEAD = re.compile(rb"\n\r?\n")  # as h11 has it


class RefusedHeadError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Parser(h11.Connection):
    """h11's, which refuses such heads wherever they come: also behind another request in the same packet."""

    def next_event(self) -> Any:
        """Raises `RefusedHeadError`."""
        if self.their_state is h11.IDLE:
            data, _ = self.trailing_data
            if len(data) > LONGEST_HEAD and not END_OF_HEAD.search(data, 0, LONGEST_HEAD):
                raise RefusedHeadError(431, f"the head is longer than {LONGEST_HEAD >> 10} kB")
        try:
            event = super().next_event()
            chunked = isinstance(event, h11.Request) and any(name == b"transfer-encoding" for name, _ in event.headers)
        except h11.RemoteProtocolError as error:
            chunked = error.error_status_hint == 501  # an encoding that h11 does not know
            if not chunked:
                raise
        if chunked:
            raise RefusedHeadError(411, "Transfer-Encoding is not taken: send the body with a Content-Length")
        return event


def protocol(most: int) -> type[H11Protocol]:
    """uvicorn's protocol with these limits. Its parser is h11, which bounds a head; httptools does not."""
    waiting: dict[Bounded, None] = {}  # the one that has waited longest is first
    connections: set[Bounded] = set()
    refusals = Refusals()

    def trim() -> None:
        while waiting and len(connections) > most:
            next(iter(waiting)).drop()

    class Bounded(H11Protocol):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            self._inner, self.app = self.app, self._answer
            self.conn = Parser(h11.SERVER, LONGEST_HEAD)
            self._timer: asyncio.TimerHandle | None = None
            self._refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            connections.add(self)
            self._await_head()
            if len(connections) > most:
                self.loop.call_later(MOMENT, trim)

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)

        def handle_events(self) -> None:
            try:
                super().handle_events()
            except RefusedHeadError as error:
                self._refuse(error)

        def _refuse(self, error: RefusedHeadError) -> None:
            self._refused = True
            refusals.write("a request", error.status, str(error))
            body = dumped({"error": {"message": str(error), "code": error.status}})
            headers = [("content-type", JSON), ("content-length", str(len(body))), ("connection", "close")]
            for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.write_eof()  # closed at once, what it still sends would reset the answer away
            self.loop.call_later(LINGER, self.transport.close)

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
