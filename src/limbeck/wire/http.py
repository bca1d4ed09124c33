"""One pooled HTTP client for a scoring server and its replicas: bounded, patient, strict about answers.

    pool = Pool(["http://a:30000", "http://b:30000"], PoolSettings(concurrency=32))
    reply = await pool.post("/generate", lambda nonce: body, lambda answer, echo: sglang.read(answer, request, echo))

Every try has a nonce of its own, for the body and the digests of `binding`. An answer is parsed once it is known to
belong to this try, and to come from the weights that answered before. Parsing runs inside the retry: an answer that
does not parse is as good as none. A replica that is away rests for a moment while the others are asked. What is worth
waiting for (no connection, 429, 5xx) is tried until `patience` seconds have passed, with growing waits or a server's
own Retry-After; an answer that is wrong a few times, a refusal twice, at once. Waiting does not use up tries, and is
jittered.

A stock server sends no digests, and plain HTTP has no checksum: there a changed digit can be another valid number.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random, wait_random_exponential

from limbeck.wire import binding
from limbeck.wire.bearer import bearer_token
from limbeck.wire.binding import Echo, Known, Stamp
from limbeck.wire.score import AWAY, REFUSALS, WireError

T = TypeVar("T")

SENT: ContextVar[Callable[[], None] | None] = ContextVar("what is called once a request is on its way", default=None)

_log = logging.getLogger(__name__)

REST = 1.0  # seconds a replica is passed over after it was away
SHOWN = 300  # characters of a server's error text
WAITING = (408, 425, 429)  # as 5xx: of whoever answers, worth waiting for
MAX_ERROR = 2**20  # bytes of an error's body
TIED = ("unbound", "other_model")
CONTRADICTIONS = ("inconsistent", "unnormalised", "clamped")  # a digit that was damaged may be one; a server repeats it
CONTRADICTED = 3  # tries of such an answer
PINNED_TRIES = 3  # of one replica of several that is away
LOG_EVERY = 30.0  # seconds between log lines about a server that is waited for, or answers wrongly
MAX_ANSWER = 2**30  # bytes: hidden states of 64k tokens, 4096 wide


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """`patience` and `timeout` in seconds; `token_env` names the variable that holds a bearer token."""

    concurrency: int = 32
    timeout: float = 120.0
    patience: float = 300.0
    tries: int = 10  # of an answer that is wrong: what the server does wrong it does again, damage on the way does not
    first_wait: float = 0.2
    longest_wait: float = 20.0
    token_env: str | None = None
    table: str = "teacher"  # of the recipe, for messages
    binds: bool = False  # whether this kind of server binds every answer, from the first one on


@dataclass
class Counts:
    """What happened on the wire, for metrics."""

    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    wrong: Counter[str] = field(default_factory=Counter)  # answers that were not taken, by the kind of `WireError`


# Proxies are those of the environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY), but never on the way to this machine itself.
DIRECT: Mapping[str, None] = {f"all://{name}": None for name in ("localhost", "127.0.0.1", "[::1]")}


class Pool:
    """Asks replicas in turn. Raises `RecipeError` for a token that is not in the environment."""

    def __init__(self, urls: Sequence[str], settings: PoolSettings, transport: httpx.AsyncBaseTransport | None = None):
        assert urls
        self.urls, self.settings, self.counts = tuple(url.rstrip("/") for url in urls), settings, Counts()
        token = bearer_token(settings.token_env, f"{settings.table}.token_env") if settings.token_env else ""
        self._key = token.encode()
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **({"authorization": f"Bearer {token}"} if token else {})},
            timeout=httpx.Timeout(settings.timeout, connect=min(10.0, settings.timeout)),
            limits=httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency),
            transport=transport,
            mounts=DIRECT,
        )
        self.known = {url: Known(settings.binds) for url in self.urls}
        self._places = asyncio.Semaphore(settings.concurrency)
        self._turn = itertools.count()
        self._resting: dict[str, float] = {}  # url -> when it may be asked again
        self._logged = -LOG_EVERY  # when the last of them was written
        self._gave_up = -1.0  # when one request's patience ran out: those it waited with need not lose theirs too

    async def post(
        self,
        path: str,
        write: Callable[[str], bytes],
        parse: Callable[[bytes, Echo], T],
        media: str = "application/json",
        url: str | None = None,
    ) -> T:
        """The parsed answer. `write` makes the body of a try from its nonce; `parse` compares the answer with it.

        `url` pins one replica, which of several gets no patience. Raises `WireError` where there is none to be got.
        """
        return await self._retry(lambda at: self._once(at, path, "POST", write, media, parse), url)

    async def get(self, path: str, parse: Callable[[bytes, Echo], T], url: str | None = None) -> T:
        """As `post`, without a body."""
        return await self._retry(lambda at: self._once(at, path, "GET", None, None, parse), url)

    async def close(self) -> None:
        await self._client.aclose()

    async def _retry(self, ask: Callable[[str], Awaitable[T]], url: str | None) -> T:
        tries = _Tries(self, patient=url is None or len(self.urls) == 1)
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, WireError) and not error.final),
            wait=tries.waiting,
            stop=tries.enough,
            reraise=True,
        )
        async for attempt in retrying:
            with attempt:
                at = url or self._next()
                self.counts.retries += attempt.retry_state.attempt_number > 1
                try:
                    async with self._places:
                        return await ask(at)
                except WireError as error:
                    if error.kind in AWAY:
                        self._resting[at] = time.monotonic() + REST
                    else:
                        self._count_wrong(error)
                    raise
        raise AssertionError("a retry ends with an answer or an error")

    def waits(self, error: WireError, since: float, began: float) -> bool:
        """Whether a request that began then is to go on waiting for a server that is away since then."""
        now = time.monotonic()
        if now - since >= self.settings.patience:
            self._gave_up = now
        elif now - self._logged >= LOG_EVERY:
            self._logged = now
            _log.warning("%s; trying again for up to %g s", error, self.settings.patience)
        return began > self._gave_up

    def _count_wrong(self, error: WireError) -> None:
        self.counts.wrong[error.kind] += 1
        now = time.monotonic()
        if error.kind in TIED and now - self._logged >= LOG_EVERY:  # of others, what becomes of them is said
            self._logged = now
            _log.warning("%s; not used, and asked for again", error)

    def _next(self) -> str:
        """The replica whose turn it is, passing over those that rest while another does not."""
        now = time.monotonic()
        awake = [url for url in self.urls if self._resting.get(url, 0.0) <= now] or list(self.urls)
        return awake[next(self._turn) % len(awake)]

    async def _once(
        self,
        at: str,
        path: str,
        method: str,
        write: Callable[[str], bytes] | None,
        media: str | None,
        parse: Callable[[bytes, Echo], T],
    ) -> T:
        address, nonce = at + path, binding.new_nonce()
        body = write(nonce) if write else b""
        headers = binding.request_headers(self._key, method, path, body, nonce)
        self.counts.requests += 1
        self.counts.bytes_sent += len(body)
        status, answer, received = await self._exchange(
            method, address, body, {**headers, **({"content-type": media} if media else {})}
        )
        self.counts.bytes_received += len(answer)
        try:
            stamp = self._verify(at, headers[binding.REQUEST], status, answer, received)
            if status != 200:
                _raise_for(status, answer, received, self.settings.table)
            return parse(answer, Echo(nonce, self.known[at], stamp))
        except WireError as error:
            error.args = (f"{address}: {error}",)
            raise
        except (ValueError, ArithmeticError, RecursionError) as error:
            raise WireError("malformed", f"{address}: the answer cannot be read: {error}") from None

    async def _exchange(
        self, method: str, address: str, body: bytes, headers: Mapping[str, str]
    ) -> tuple[int, bytes, httpx.Headers]:
        """Status, body and headers of the complete answer."""
        parts, size = [], 0
        extensions = {} if SENT.get() is None else {"trace": _tell_sent}
        try:
            async with (
                asyncio.timeout(self.settings.timeout),  # of the complete answer: httpx's own is between bytes
                self._client.stream(method, address, content=body, headers=headers, extensions=extensions) as response,
            ):
                most = MAX_ANSWER if response.status_code == 200 else MAX_ERROR
                async for part in response.aiter_bytes():
                    parts.append(part)
                    if (size := size + len(part)) > most:
                        raise WireError("malformed", f"{address}: the answer is longer than {most} bytes")
        except (httpx.TimeoutException, TimeoutError) as error:
            raise WireError(
                "timeout", f"{address} did not answer within {self.settings.timeout:g} s ({type(error).__name__})"
            ) from None
        except httpx.HTTPError as error:
            raise WireError("unreachable", f"{address} cannot be reached: {type(error).__name__}: {error}") from None
        except httpx.InvalidURL as error:
            raise WireError("refused", f"{address} is not an address: {error}") from None
        return response.status_code, b"".join(parts), response.headers

    def _verify(self, at: str, request: str, status: int, body: bytes, headers: httpx.Headers) -> Stamp | None:
        """What the server says of its answer. Raises `WireError` for one that is not to this request.

        Errors need no digest where a gateway may have made them, or where they end in waiting anyway; a refusal does,
        for it ends the asking. Who has another token than the server has another key too.
        """
        if status in (401, 403):
            return None
        if headers.get(binding.PROBLEM) == "request":
            raise WireError(
                "unbound", "the server says that the request does not fit its digest: it was damaged on the way"
            )
        stamp = binding.verified_answer(self._key, request, status, body, headers)
        if stamp is None and self.known[at].binds and 300 <= status < 500 and status not in WAITING:
            raise WireError(
                "unbound",
                f"answered {status} without a digest, so by something else than `limbeck serve` (look at the address "
                f"and at the kind of server): {_text(body)}",
            )
        if status == 200 or stamp is not None:
            self.known[at].check_stamp(stamp)
        return stamp


class _Tries:
    """What became of one request so far. `patient`: being away is counted by the clock, not by the tries."""

    def __init__(self, pool: Pool, patient: bool) -> None:
        self.pool, self.settings, self.patient, self.began = pool, pool.settings, patient, time.monotonic()
        self.away_since: float | None = None  # when the first try failed: not `began`, it may have waited for its place
        self.kinds: list[str] = []
        self._longer = wait_random_exponential(multiplier=self.settings.first_wait, max=self.settings.longest_wait)
        self._shortly = wait_random(self.settings.first_wait / 4, self.settings.first_wait)

    def waiting(self, state: RetryCallState) -> float:
        error = _error(state)
        if error.kind not in AWAY:
            return float(self._shortly(state))
        seconds = (
            self._longer(state)
            if error.retry_after is None
            else max(min(error.retry_after, self.settings.longest_wait), self._shortly(state))  # 0 would be a loop
        )
        if self.away_since is None:
            return float(seconds)
        return min(seconds, max(0.0, self.away_since + self.settings.patience - time.monotonic()))

    def enough(self, state: RetryCallState) -> bool:
        error = _error(state)
        if error.kind in AWAY and self.patient:
            self.away_since = self.away_since or time.monotonic()
            return not self.pool.waits(error, self.away_since, self.began)
        self.kinds.append(error.kind)
        refused, away = (sum(kind in which for kind in self.kinds) for which in (REFUSALS, AWAY))
        wrong = sum(kind in CONTRADICTIONS for kind in self.kinds)
        return len(self.kinds) >= self.settings.tries or wrong >= CONTRADICTED or refused >= 2 or away >= PINNED_TRIES


async def _tell_sent(event: str, info: Any) -> None:
    if event.endswith("send_request_body.complete") and (sent := SENT.get()) is not None:
        sent()


def _error(state: RetryCallState) -> WireError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, WireError)  # nothing else is retried
    return error


def _raise_for(status: int, body: bytes, headers: httpx.Headers, table: str) -> NoReturn:
    """What a status other than 200 means."""
    message = f"answered {status}: {_text(body)}"
    if status in (429, 503):
        raise WireError("busy", message, _retry_after(headers))
    if status in WAITING or status >= 500:
        raise WireError("server", message)
    if not 300 <= status < 500:
        raise WireError("malformed", message)
    if status in (401, 403):
        raise WireError(
            "refused", f"{message}. Give the server's token in a variable and name it in {table}.token_env."
        )
    if status in (404, 405):
        raise WireError("refused", f"{message}. It has no such route: look at the address and at the kind of server")
    raise WireError("refused", message)


def _text(body: bytes) -> str:
    return body[: 4 * SHOWN].decode("utf-8", "replace").strip()[:SHOWN]


def _retry_after(headers: httpx.Headers) -> float | None:
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:  # absent, or a date: then our own waits serve
        return None
