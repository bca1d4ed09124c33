"""HTTP of the gateway: who asks, what is answered, and errors in OpenAI's shape. The only file that needs the extra."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from limbeck.gateway.api_errors import ApiError
from limbeck.gateway.session import GatewaySession

if TYPE_CHECKING:
    from limbeck.gateway.server import Gateway

logger = logging.getLogger("limbeck")
BODY = 64 * 2**20  # bytes of one request
KEEP_ALIVE = 3600  # seconds: while the student is sampled or trained, connections are idle, and none is to be dropped


def make_app(gateway: Gateway) -> FastAPI:
    """The routes, at the root and under each session's own address."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _answered(gateway, request, GatewaySession.chat)

    @router.post("/inference/v1/generate")
    @router.post("/v1/inference/v1/generate")  # of a client that puts it behind its base URL
    async def generate(request: Request) -> Response:
        return await _answered(gateway, request, GatewaySession.tokens)

    @router.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [gateway.model_card()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        card = gateway.model_card()
        if name != card["id"]:
            raise ApiError(
                404, "model_not_found", f"The model {name!r} does not exist; there is {card['id']!r}.", "model"
            )
        return JSONResponse(card)

    @router.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok"})

    app.include_router(router)
    app.include_router(router, prefix="/sessions/{session}")
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    return app


async def _answered(
    gateway: Gateway, request: Request, handle: Callable[[GatewaySession, bytes], Awaitable[Any]]
) -> Response:
    session = gateway.find(request.path_params.get("session"), request.headers.get("authorization"))

    async def work() -> Any:
        return await handle(session, await _body(request))

    answer = await session.answer(work())
    if isinstance(answer, Iterator):
        return StreamingResponse(_here(answer), media_type="text/event-stream", headers={"cache-control": "no-cache"})
    return JSONResponse(answer)


async def _here(events: Iterator[bytes]) -> AsyncIterator[bytes]:
    """All of it is there already: Starlette would hand each event to another thread."""
    for event in events:
        yield event


async def _body(request: Request) -> bytes:
    """Raises `ApiError` for one that is too large, before all of it has come, and for one that does not come."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > BODY:
                what = f"the body is larger than {BODY >> 20} MB: send shorter messages"
                raise ApiError(413, "request_too_large", what)
            parts.append(part)
    except ClientDisconnect:  # nothing was asked for yet: nobody reads this, and the client may ask again
        raise ApiError(400, "client_disconnected", "the client left before all was sent", limit=True) from None
    return b"".join(parts)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    # A client of OpenAI's asks again after some errors by itself: here it would sample again.
    return JSONResponse(error.body(), error.status, {"x-should-retry": "false"})


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path} is not served here: use POST /v1/chat/completions"
    return await _refused(request, ApiError(error.status_code, "unknown_url", what))


def make_server(app: FastAPI, grace: int) -> uvicorn.Server:
    """A server that leaves signals to the run."""

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        app, loop="none", http="h11", ws="none", lifespan="off", log_level="warning", access_log=False,
        server_header=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=grace,
    )  # fmt: skip
    return Server(config)
