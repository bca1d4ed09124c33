"""Agents that run elsewhere: they ask for work, talk to the student, and say how it went.

    POST /sessions?wait=30      the next rollout: its row, address and key; 204: none now; 410: the run is over
    POST /sessions/ID/end       {"reward": 1.0}, {"answer": "46"} or {"error": "what went wrong"}
    GET  /sessions              {"waiting": 12, "running": 4}

Work that nobody asks for waits. A session that is not ended within the time limit is a failure of its rollout.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.environments.agent import Grade, RowOf, episode_of, graded
from limbeck.gateway import Address, Gateway, SessionReport
from limbeck.protocols import Generate
from limbeck.records import Episode, Failure, Key, Prompt
from limbeck.wire.hosts import hosts_of

logger = logging.getLogger("limbeck")

LONGEST_WAIT = 300.0  # seconds that a request for work may wait
Number = Annotated[float, Field(allow_inf_nan=False)]


class End(BaseModel):
    """How a session ended: one of the three."""

    model_config = ConfigDict(extra="forbid")

    reward: Number | None = None  # None: the task's grader decides
    turn_rewards: tuple[Number, ...] = ()
    answer: str | None = None  # a text for the task's grader
    error: str | None = None  # the rollout failed: it is counted and not trained on

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.reward, self.answer, self.error)) > 1:
            raise ValueError("give one of reward, answer and error")
        return self


@dataclass
class _Work:
    """One rollout that waits for an agent, or that one is at."""

    prompt: Prompt
    key: Key
    generate: Generate
    address: Address | None = None  # once one has taken it
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Future[End] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class OutsideAgents:
    """`timeout`: seconds from the moment that an agent takes a rollout. `token`: what requests for work must bear."""

    def __init__(
        self, gateway: Gateway, model: str, row_of: RowOf, grade: Grade, timeout: float, token: str | None = None
    ) -> None:
        self.gateway, self.model, self.row_of, self.grade = gateway, model, row_of, grade
        self.timeout, self.token = timeout, token
        self._waiting: deque[_Work] = deque()
        self._running: dict[str, _Work] = {}
        self._arrived = asyncio.Condition()

    async def start(self) -> None:
        """Raises `RecipeError` where the address cannot be had."""
        app = self.gateway.app
        app.add_api_route("/sessions", self._take, methods=["POST"])
        app.add_api_route("/sessions", self._count, methods=["GET"])
        app.add_api_route("/sessions/{id}/end", self._end, methods=["POST"])
        await self.gateway.__aenter__()
        logger.warning("agents ask for work at %s/sessions", self.gateway.url)  # whatever else is printed

    async def close(self) -> None:
        await self.gateway.__aexit__(None, None, None)

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        work = _Work(prompt, key, generate)
        async with self._arrived:
            self._waiting.append(work)
            self._arrived.notify()
        try:
            await work.taken.wait()
            async with asyncio.timeout(self.timeout):
                end, kind = await work.ended, "agent_error"
        except TimeoutError:
            end = End(error=f"it was not ended within environment.timeout = {self.timeout:g} seconds of being taken")
            kind = "timeout"
        finally:
            report = self._closed(work)
        if end.error is not None:
            return Failure(prompt.id, "run", kind, end.error)
        assert report is not None
        value = {"answer": end.answer} if end.answer is not None else end.model_dump(include={"reward", "turn_rewards"})
        return episode_of(prompt, generate, report, *graded(prompt, value, self.grade))

    def _closed(self, work: _Work) -> SessionReport | None:
        """Of a session that was opened."""
        if work.address is None:
            self._waiting.remove(work)
            return None
        del self._running[work.address.id]
        return self.gateway.close(work.address.id)

    async def _take(self, request: Request, wait: float = 30.0) -> Response:
        if refusal := self._refused(request):
            return refusal
        if not 0 <= wait <= LONGEST_WAIT:
            return _error(400, f"wait is {wait}, expected a number of seconds from 0 to {LONGEST_WAIT:g}")
        async with self._arrived:
            try:
                async with asyncio.timeout(wait):
                    await self._arrived.wait_for(lambda: self._waiting)
            except TimeoutError:
                return _answer(204)
            except asyncio.CancelledError:  # so a run that ends lets go of whoever waits
                return _error(410, "the run is over")
            if await request.is_disconnected():  # else the work would be taken by nobody
                return _answer(204)
            work = self._waiting.popleft()
        work.address = address = self.gateway.open(work.generate, work.prompt.id)
        self._running[address.id] = work
        work.taken.set()
        return _answer(200, self._offered(work, address))

    def _offered(self, work: _Work, address: Address) -> dict[str, Any]:
        return {
            "id": address.id,
            "base_url": address.base_url,
            "api_key": address.api_key,
            "model": self.model,
            "row": dict(self.row_of(work.prompt)),
            "prompt_id": work.prompt.id,
            "sample": work.key.sample,
            "timeout": self.timeout,
        }

    async def _count(self, request: Request) -> Response:
        if refusal := self._refused(request):
            return refusal
        return _answer(200, {"waiting": len(self._waiting), "running": len(self._running)})

    async def _end(self, id: str, request: Request) -> Response:
        work = self._running.get(id)
        if work is None or work.ended.done():
            return _error(410 if work else 404, f"session {id!r} is not running: it ended, by a call or its time limit")
        assert work.address is not None
        if _bearer(request) != work.address.api_key and (refusal := self._refused(request)):
            return refusal
        try:
            end = End.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            return _error(400, f"{where + ': ' if where else ''}{first['msg']}; the session is still open")
        work.ended.set_result(end)
        return _answer(200, {"id": id, "ended": True})

    def _refused(self, request: Request) -> Response | None:
        if self.token is None:  # then only this machine reaches the address, and so may a web page in its browser
            return _refused_page(request)
        if hmac.compare_digest(_bearer(request).encode(), self.token.encode()):
            return None
        return _error(401, "the bearer token is not the one that this run was started with")


def _refused_page(request: Request) -> Response | None:
    """A page of another site would take work, or read it under a name that resolves to here (DNS rebinding)."""
    if "origin" in request.headers:
        return _error(403, "a web page asks, and this address answers programs only")
    host = request.headers.get("host", "")
    if not hosts_of("127.0.0.1").knows(host):
        return _error(
            400, f"this address is not known as {host[:100]!r}: call it 127.0.0.1 or localhost, or set --token-env"
        )
    return None


def _bearer(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _answer(status: int, body: Mapping[str, Any] | None = None) -> Response:
    if body is None:
        return Response(status_code=status, headers={"Retry-After": "1"})
    return Response(json.dumps(body, default=str), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _answer(status, {"error": {"message": message, "type": "invalid_request_error", "code": None}})
