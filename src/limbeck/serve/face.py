"""What happens to every request, whatever its route: who may ask, what is read, how the answer is tied to its incoming.

    host, origin    a page of another site reads nothing, and makes no work           400, 403
    route, method   what is not there                                                 404, 405
    token           where one is set, for everything but /health                      401
    media type      a web page could send the others without asking                   415
    body            as long as is allowed, as fast as is fair, as there is room for   413, 408, 429
    digest          a request that was damaged on the way (`wire.binding`)            400, Limbeck-Problem: request
    the route's own handler
    digest          of the answer, errors too, where the request had one

Errors are JSON objects with a message; what they quote of a request is cut and made printable.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from limbeck.sanitize import printable
from limbeck.serve.answers import dumped
from limbeck.serve.codec import SMALL
from limbeck.serve.logs import Refusals
from limbeck.serve.queue import ClosedError, QueueFullError
from limbeck.wire import binding
from limbeck.wire.hosts import Hosts
from limbeck.wire.score import WireError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

T = TypeVar("T")

JSON = "application/json"
DROP = "limbeck.drop"  # in a scope's extensions: what closes the connection at once, see `connections`
GRACE, PACE = 30.0, 1e5  # a body may take that many seconds, and one more for each 100 kB, in either direction
CHUNK = 2**16  # bytes handed to the transport at a time: it holds no more of an answer than two
SHOWN = 500  # characters of an error

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Answer:
    body: bytes
    status: int = 200
    media: str = JSON
    temperature: float | None = None  # what the logits were divided by; None where nothing was
    tokens: int = 0  # of the sequences that were scored
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """An answer that says why there is none."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class LeftError(Exception):
    """The client went away."""


class Room:
    """How many bytes the requests under way may hold together; `option` of the server decides it."""

    def __init__(self, most: int, option: str) -> None:
        self.most, self.option, self.held = most, option, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """What one request takes of it, until the end of the block."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held
            self._let_in()

    def _let_in(self) -> None:
        """In the order they came: one that needs much is not overtaken for ever."""
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.done():
                if self.held + count > self.most:
                    return
                self.held += count
                turn.set_result(None)
            self._waiting.popleft()


class Share:
    """Of one request."""

    def __init__(self, room: Room) -> None:
        self.room, self.held = room, 0

    def take(self, count: int) -> None:
        """Raises `QueueFullError` where there is no room."""
        room = self.room
        if room.held + count > room.most:
            raise QueueFullError(
                1.0, f"the requests under way hold {room.held >> 20} MB, there is room for no more ({room.option})"
            )
        room.held += count
        self.held += count

    async def wait(self, count: int) -> None:
        """Until there is room. What is more than all of it waits until nothing else is there."""
        count, turn = min(count, self.room.most), asyncio.get_running_loop().create_future()
        self.room._waiting.append((count, turn))
        self.room._let_in()
        try:
            await turn
        finally:
            if turn.done() and not turn.cancelled():
                self.held += count
            self.room._let_in()


class Incoming:
    """One request."""

    def __init__(self, scope: Scope, receive: Receive, body: Share, held: ExitStack) -> None:
        self.method, self.path, self.receive = scope["method"], scope["path"], receive
        self._body, self._held = body, held
        self.client = (scope.get("client") or (None,))[0]
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        self.key = token.strip().encode() if scheme.lower() == "bearer" else b""
        self.body = b""

    async def read(self, most: int) -> None:
        """Raises `RefusedError` for a body that is too long or too slow: before it has filled the memory."""
        with suppress(ValueError):  # a wrong one is found as the body comes
            if int(self.headers.get("content-length", "0")) > most:
                raise _too_long(most)
        parts, size, start = [], 0, asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout_at(start + GRACE + size / PACE):
                    message = await self.receive()
            except TimeoutError:
                raise RefusedError(
                    408, f"the body came too slowly: {size} bytes in {GRACE + size / PACE:.0f} s"
                ) from None
            if message["type"] == "http.disconnect":
                raise LeftError
            part = message.get("body", b"")
            size += len(part)
            if size > most:
                raise _too_long(most)
            self._body.take(len(part))
            parts.append(part)
            if not message.get("more_body"):
                break
        self.body = b"".join(parts)

    async def wait_for_room(self, room: Room, count: int) -> None:
        """Until there is room for so many bytes of results and answer, which are held until it is sent."""
        await self._held.enter_context(room.share()).wait(count)

    async def while_connected(self, work: Awaitable[T]) -> T:
        """What `work` gives; cancelled when the client goes away, so that nothing is scored for nobody.

        Raises `LeftError`, and what `work` raises.
        """
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(self._disconnected())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise LeftError
        finally:
            task.cancel()
            gone.cancel()

    async def _disconnected(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    media: str  # of its body
    handle: Callable[[Incoming], Awaitable[Answer]]
    public: bool = False  # answered without the token


class Face:
    """An ASGI application. `observe` gets route, status, tokens and seconds of each answer."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        bodies: Room,
        longest_body: int,
        weights: str,
        token: str | None,
        hosts: Hosts | None,
        observe: Callable[[str, int, int, float], None],
    ) -> None:
        self.routes, self.bodies, self.longest_body, self.weights = routes, bodies, longest_body, weights
        self.token, self.hosts, self.observe = token, hosts, observe
        self._refusals = Refusals()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start = time.perf_counter()
        with self.bodies.share() as body, ExitStack() as held, suppress(LeftError):
            incoming = Incoming(scope, receive, body, held)
            answer = await self._answer(incoming)
            name = incoming.path if incoming.path in self.routes else "other"
            self.observe(name, answer.status, answer.tokens, time.perf_counter() - start)
            await self._bind(incoming, answer)
            try:
                await _send(send, answer)
            except TimeoutError:  # it does not read: whatever would be sent now is for nobody
                scope.get("extensions", {}).get(DROP, lambda: None)()

    async def _answer(self, incoming: Incoming) -> Answer:
        """The answer to one request, whatever happens. Raises `LeftError`."""
        try:
            route = self._admit(incoming)
            await incoming.read(self.longest_body)
            work = binding.verified_request, incoming.key, incoming.method, incoming.path, incoming.body
            await _off_loop(len(incoming.body), *work, incoming.headers)
            return await route.handle(incoming)
        except LeftError:
            raise
        except RefusedError as error:
            return self._refused(incoming, error.status, str(error), error.headers)
        except WireError as error:
            damaged = {binding.PROBLEM: "request"} if error.kind == "unbound" else {}
            return self._refused(incoming, 400, str(error), damaged)
        except QueueFullError as error:
            seconds = f"{error.retry_after:.0f}"
            message = f"{error}: ask again in {seconds} s"
            return self._refused(incoming, 429, message, {"retry-after": seconds})
        except ClosedError:
            return _problem(503, "the server is shutting down")
        except Exception as error:  # a fault of the model or of ours: answered, logged and counted like any other
            _log.exception("a request could not be answered")
            return _problem(500, f"scoring failed: {type(error).__name__}: {error}")

    def _refused(self, incoming: Incoming, status: int, message: str, headers: Mapping[str, str]) -> Answer:
        what = f"{incoming.method} {incoming.path}" if incoming.path in self.routes else "another route"
        self._refusals.write(what, status, _shown(message), incoming.client)
        return _problem(status, message, headers)

    def _admit(self, incoming: Incoming) -> Route:
        """Raises `RefusedError` for whoever may not ask that, before anything is read."""
        headers = incoming.headers
        if self.token is None:  # with a token, a page that has none is refused whatever its name
            host = headers.get("host", "")
            if self.hosts is not None and not self.hosts.knows(host):
                raise RefusedError(
                    400,
                    f"this server is not known as {host[:100]!r}: start it with --allow-host NAME, or with --token-env",
                )
            if "origin" in headers:
                raise RefusedError(403, "a web page asks, and this server answers programs only")
        route = self.routes.get(incoming.path)
        if route is None:
            raise RefusedError(404, f"there is no {incoming.path[:100]!r} here, but {', '.join(sorted(self.routes))}")
        if incoming.method != route.method and (incoming.method, route.method) != ("HEAD", "GET"):
            raise RefusedError(405, f"{incoming.path} takes {route.method} only", {"allow": route.method})
        if self.token is not None and not route.public and not hmac.compare_digest(incoming.key, self.token.encode()):
            raise RefusedError(401, "the bearer token is missing or wrong", {"www-authenticate": "Bearer"})
        media = headers.get("content-type", route.media).partition(";")[0].strip().lower()
        if route.method == "POST" and media != route.media:
            raise RefusedError(415, f"the content type is {media[:100]!r}, expected {route.media}")
        return route

    async def _bind(self, incoming: Incoming, answer: Answer) -> None:
        request = incoming.headers.get(binding.REQUEST)
        if request is None:
            return
        body = b"" if incoming.method == "HEAD" else answer.body
        work = binding.answer_headers, incoming.key, request, answer.status, self.weights, answer.temperature, body
        answer.headers |= await _off_loop(len(body), *work)


async def _send(send: Send, answer: Answer) -> None:
    """Raises `TimeoutError` for a client that does not read, or reads too slowly."""
    headers = {"content-type": answer.media, "content-length": str(len(answer.body)), **answer.headers}
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    start = asyncio.get_running_loop().time()
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    for place in range(0, max(1, len(answer.body)), CHUNK):
        part, more = answer.body[place : place + CHUNK], place + CHUNK < len(answer.body)
        async with asyncio.timeout_at(start + GRACE + place / PACE):
            await send({"type": "http.response.body", "body": part, "more_body": more})


async def _off_loop(size: int, job: Callable[..., T], *args: Any) -> T:
    return job(*args) if size <= SMALL else await asyncio.to_thread(job, *args)


def _too_long(most: int) -> RefusedError:
    return RefusedError(413, f"the body is longer than {most >> 20} MB (--body-mb): send fewer sequences at a time")


def _shown(message: str) -> str:
    return printable(message if len(message) <= SHOWN else f"{message[:SHOWN]}...")


def _problem(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    error = {"message": _shown(message), "code": status}
    return Answer(dumped({"error": error}), status, headers=dict(headers or {}))
