"""The HTTP face of `limbeck serve`.

    POST /generate          SGLang's schema        POST /limbeck/score   ours, msgpack
    POST /v1/completions    vLLM's schema          POST /tokenize        vLLM's schema
    GET  /get_model_info    GET /v1/models         GET  /health          GET /metrics

Every answer carries a digest of its body. Errors are JSON objects with a message; a full queue is 429 with
Retry-After. Nothing is unpickled, and nothing but /health is answered without the token where one is set.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import os
import time
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from limbeck.errors import ModelError
from limbeck.serve import schemas
from limbeck.serve.queue import ClosedError, QueueFullError, ScoringQueue
from limbeck.serve.scorer import Asked, Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire import binary
from limbeck.wire.score import WireError

T = TypeVar("T")

DIGEST_HEADER = "limbeck-digest"
_log = logging.getLogger(__name__)


class _Metrics:
    """Prometheus series of one server, in a registry of its own."""

    def __init__(self, queue_depth: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("limbeck_requests", "Requests", ["route", "status"], registry=self.registry)
        self.tokens = Counter("limbeck_tokens", "Tokens of scored sequences", registry=self.registry)
        self.seconds = Histogram("limbeck_request_seconds", "From request to answer", registry=self.registry)
        depth = Gauge("limbeck_queue_sequences", "Sequences that wait or are being scored", registry=self.registry)
        depth.set_function(queue_depth)


@dataclass
class _Server:
    scorer: Scorer
    settings: ServeSettings
    identity: str
    queue: ScoringQueue | None = None

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = self.scorer.lm.tokenizer(text).input_ids
        return ids

    async def score(self, asked: list[Asked]) -> list[binary.Result]:
        vocabulary, context = self.scorer.head.vocabulary, self.scorer.lm.context
        for one in asked:
            self.settings.check(one, vocabulary, context)
        if len(asked) > self.settings.queue:
            raise WireError("refused", f"{len(asked)} sequences in one request, this server's queue holds "
                            f"{self.settings.queue}: send fewer at a time")  # fmt: skip
        assert self.queue is not None
        results = await self.queue.score(asked)
        for values in (part for result in results for part in (result.logprobs, result.hidden)):
            if values is not None and not np.isfinite(values).all():
                raise ArithmeticError("a score is not finite: the model's weights or their dtype are at fault")
        return results

    async def sglang(self, body: bytes) -> tuple[Any, int]:
        fields = _json(body)
        asked = schemas.read_sglang(fields, self.tokenize, self.settings)
        given = fields.get("input_ids")
        many = schemas.is_many(fields.get("text") if given is None else given)
        return schemas.write_sglang(asked, await self.score(asked), many), _tokens(asked)

    async def vllm(self, body: bytes) -> tuple[Any, int]:
        fields = _json(body)
        schemas.check_model(fields.get("model"), (self.settings.name, self.identity.rpartition(" ")[0]))
        asked = schemas.read_vllm(fields, self.tokenize, self.settings)
        return schemas.write_vllm(asked, await self.score(asked), self.settings.name), _tokens(asked)

    async def binary(self, body: bytes) -> tuple[bytes, int]:
        requests = binary.read_requests(body, lambda sent: self.settings.pick_temperature(sent, None))
        if not requests:
            raise WireError("refused", "the request has no sequences")
        asked = [Asked(request) for request in requests]
        results = await self.score(asked)
        return binary.write_answer(requests, results, results[0].temperature, self.identity), _tokens(asked)


def make_app(scorer: Scorer, settings: ServeSettings, identity: str) -> FastAPI:
    """The application. Raises `ModelError` for a token variable that is not set."""
    server = _Server(scorer, settings, identity)
    token = _token(settings.token_env)
    metrics = _Metrics(lambda: server.queue.depth if server.queue else 0.0)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.queue = ScoringQueue(scorer.score, settings.queue, settings.batch)
        yield
        await server.queue.close()  # requests that wait are answered before the process ends

    app = FastAPI(title="limbeck serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    async def answered(
        request: Request, route: str, work: Callable[[bytes], Coroutine[Any, Any, tuple[Any, int]]]
    ) -> Response:
        start = time.perf_counter()
        response, tokens = await _respond(request, settings, token, work)
        metrics.requests.labels(route, str(response.status_code)).inc()
        metrics.tokens.inc(tokens)
        metrics.seconds.observe(time.perf_counter() - start)
        return response

    @app.post("/generate")
    async def generate(request: Request) -> Response:
        return await answered(request, "generate", server.sglang)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answered(request, "completions", server.vllm)

    @app.post(binary.PATH)
    async def score(request: Request) -> Response:
        return await answered(request, "score", server.binary)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        async def work(body: bytes) -> tuple[Any, int]:
            text = _json(body).get("prompt")
            if not isinstance(text, str):
                raise WireError("refused", "prompt must be text")
            ids = server.tokenize(text)
            return {"tokens": ids, "count": len(ids), "max_model_len": scorer.lm.context}, 0

        return await answered(request, "tokenize", work)

    _add_facts(app, server, token, metrics)
    return app


def _add_facts(app: FastAPI, server: _Server, token: str | None, metrics: _Metrics) -> None:
    """The routes that score nothing."""
    settings = server.settings

    @app.get("/health")
    async def health() -> Response:
        return _json_response({"status": "ok"})

    @app.get("/metrics")
    async def prometheus(request: Request) -> Response:
        if refusal := _unauthorised(request, token):
            return refusal
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/get_model_info")
    async def model_info(request: Request) -> Response:
        if refusal := _unauthorised(request, token):
            return refusal
        return _json_response(
            {"model_path": server.identity, "is_generation": False, "vocab_size": server.scorer.head.vocabulary,
             "scoring_temperature": settings.temperature}
        )  # fmt: skip

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        if refusal := _unauthorised(request, token):
            return refusal
        one = {
            "id": settings.name,
            "object": "model",
            "root": server.identity,
            "max_model_len": server.scorer.lm.context,
        }
        return _json_response({"object": "list", "data": [one]})


async def _respond(
    request: Request,
    settings: ServeSettings,
    token: str | None,
    work: Callable[[bytes], Coroutine[Any, Any, tuple[Any, int]]],
) -> tuple[Response, int]:
    """The answer to one request, whatever happens, and how many tokens it cost."""
    if refusal := _unauthorised(request, token):
        return refusal, 0
    try:
        body = await _read(request, settings.body_mb * 2**20)
        answer, tokens = await _while_connected(request, work(body))
    except WireError as error:
        return _problem(400, str(error)), 0
    except QueueFullError as error:
        full = _problem(429, f"{error}: ask again in {error.retry_after:.0f} s")
        full.headers["retry-after"] = f"{error.retry_after:.0f}"
        return full, 0
    except ClosedError:
        return _problem(503, "the server is shutting down"), 0
    except ClientDisconnect:
        return _problem(499, "the client went away"), 0
    except Exception as error:  # a fault of the model or of ours: answered, logged and counted like any other
        _log.exception("a request could not be answered")
        return _problem(500, f"scoring failed: {type(error).__name__}: {error}"), 0
    if isinstance(answer, bytes):
        return _with_digest(Response(answer, media_type=binary.MEDIA_TYPE)), tokens
    return _json_response(answer), tokens


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; cancelled when the client goes away, so that nothing is scored for nobody.

    Raises `ClientDisconnect`, and what `work` raises.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is too long: not after it has filled the memory."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise WireError("refused", f"the body is longer than {limit // 2**20} MB")
        parts.append(part)
    return b"".join(parts)


def _json(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError("malformed", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("malformed", "the body must be a JSON object")
    return value


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not os.environ.get(variable):
        raise ModelError(f"--token-env names {variable!r}, but the environment has no such variable. Set it.")
    return os.environ[variable]


def _unauthorised(request: Request, token: str | None) -> Response | None:
    given = request.headers.get("authorization", "")
    if token is None or hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return None
    return _problem(401, "the bearer token is missing or wrong")


def _problem(status: int, message: str) -> Response:
    response = _json_response({"error": {"message": message, "code": status}})
    response.status_code = status
    return response


def _json_response(value: Any) -> Response:
    """Raises `ValueError` for NaN: a score that is not finite is never sent."""
    data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
    return _with_digest(Response(data, media_type="application/json"))


def _with_digest(response: Response) -> Response:
    response.headers[DIGEST_HEADER] = f"{zlib.crc32(response.body):08x}"
    return response


def _tokens(asked: list[Asked]) -> int:
    return sum(len(one.request.token_ids) for one in asked)
