"""What `limbeck serve` answers.

    POST /generate          SGLang's schema        POST /limbeck/score   ours, msgpack
    POST /v1/completions    vLLM's schema          POST /tokenize        vLLM's schema
    GET  /get_model_info    GET /v1/models         GET  /health          GET /metrics        GET /openapi.json

Nothing a client sends is unpickled, and nothing but /health is answered without the token where one is set. Whatever
takes more than a moment is done off the event loop (`codec`, `queue`), after what is asked was judged (`limits`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.routing import Mount

from limbeck.serve import answers, questions
from limbeck.serve.codec import Codec
from limbeck.serve.face import JSON, Answer, Face, Incoming, Room, Route
from limbeck.serve.limits import MB, ROOM, Limits
from limbeck.serve.openapi import describe
from limbeck.serve.queue import ScoringQueue
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire import binary
from limbeck.wire.bearer import bearer_token
from limbeck.wire.binary import Result
from limbeck.wire.hosts import Hosts

WORKER = 256 * MB  # of the process that reads large bodies, with nothing to read
SHARE = 64  # of its room is the most that an answer takes which counts as small
OBJECTS = 6  # times its bytes: what a body or an answer is as Python's objects


def make_app(scorer: Scorer, settings: ServeSettings, identity: str, hosts: Hosts | None = None) -> Starlette:
    """The application. `identity` ends with the fingerprint of the weights; without `hosts` any name is answered to.

    Raises `RecipeError` for a token variable that is not set, or that no header could carry.
    """
    token = None if settings.token_env is None else bearer_token(settings.token_env, "--token-env")
    server = _Server(scorer, settings, identity)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.open()
        yield
        await server.close()

    weights = identity.rpartition(" ")[2]
    bodies = Room(ROOM * server.limits.body, "--body-mb")
    face = Face(server.routes(), bodies, server.limits.body, weights, token, hosts, server.metrics.observe)
    return Starlette(routes=[Mount("/", face)], lifespan=lifespan)


class _Metrics:
    """Prometheus series of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("limbeck_requests", "Requests", ["route", "status"], registry=self.registry)
        self.tokens = Counter("limbeck_tokens", "Tokens of scored sequences", registry=self.registry)
        self.seconds = Histogram("limbeck_request_seconds", "From request to answer", registry=self.registry)
        self.depth = Gauge("limbeck_queue_sequences", "Sequences that wait or are being scored", registry=self.registry)

    def observe(self, path: str, status: int, tokens: int, seconds: float) -> None:
        self.requests.labels(path.rpartition("/")[2], str(status)).inc()
        if tokens or path in (binary.PATH, "/generate", "/v1/completions"):
            self.tokens.inc(tokens)
            self.seconds.observe(seconds)


class _Server:
    """The handlers of the routes."""

    def __init__(self, scorer: Scorer, settings: ServeSettings, identity: str) -> None:
        self.scorer, self.settings, self.identity = scorer, settings, identity
        head = scorer.head
        self.limits = Limits(settings, head.vocabulary, scorer.lm.context, head.weight_Vd.shape[1], identity)
        self.metrics = _Metrics()
        self._large, self._small = (Room(n * self.limits.answer, "--answer-mb") for n in (ROOM, ROOM // 4))
        self._queue: ScoringQueue | None = None
        self._codec: Codec | None = None

    def open(self) -> None:
        queue = self._queue = ScoringQueue(self.scorer.score, self.settings.max_queue, self.settings.batch_tokens)
        self._codec = Codec(WORKER + OBJECTS * (self.limits.body + self.limits.answer))
        self.metrics.depth.set_function(lambda: queue.depth)

    async def close(self) -> None:
        """Requests that wait are answered before the process ends."""
        assert self._queue is not None
        assert self._codec is not None
        await self._queue.close()
        self._codec.close()

    def routes(self) -> dict[str, Route]:
        def scoring(schema: questions.Schema, media: str = JSON) -> Route:
            return Route("POST", media, lambda incoming: self._score(schema, incoming))

        facts = {
            "/health": {"status": "ok"},
            "/openapi.json": describe(self.limits),
            "/get_model_info": {
                "model_path": self.identity, "is_generation": False, "vocab_size": self.limits.vocabulary,
                "scoring_temperature": self.settings.temperature,
            },
            "/v1/models": {"object": "list", "data": [
                {"id": self.settings.name, "object": "model", "root": self.identity,
                 "max_model_len": self.limits.context}
            ]},
        }  # fmt: skip
        return {
            "/generate": scoring("sglang"),
            "/v1/completions": scoring("vllm"),
            binary.PATH: scoring("binary", binary.MEDIA_TYPE),
            "/tokenize": Route("POST", JSON, self._tokenized),
            "/metrics": Route("GET", JSON, self._prometheus),
            **{path: _fact(answers.dumped(value), path == "/health") for path, value in facts.items()},
        }

    async def _score(self, schema: questions.Schema, incoming: Incoming) -> Answer:
        assert self._queue is not None
        assert self._codec is not None
        codec, body = self._codec, incoming.body
        question = await codec.run(len(body), questions.read, schema, body, self.limits)
        prepared = codec.tokenizing if question.has_text else codec.here
        asked, cost = await prepared(questions.prepare, question, self._tokenize, self.limits)
        results = await incoming.while_connected(
            self._queue.score(asked, lambda: self._wait_for_room(incoming, cost.held))
        )
        work = (answers.write, question, asked, results)
        # The binary answer is a copy of arrays, which is as fast as to hand them to another process.
        answer = await (codec.here(*work) if schema == "binary" else codec.run(cost.answer, *work))
        divided = any(
            one.request.scored.any() and not _is_plain(result) for one, result in zip(asked, results, strict=True)
        )
        return Answer(
            answer,
            media=binary.MEDIA_TYPE if schema == "binary" else JSON,
            temperature=results[0].temperature if divided else None,
            tokens=sum(len(one.request.token_ids) for one in asked),
        )

    async def _tokenized(self, incoming: Incoming) -> Answer:
        assert self._codec is not None
        question = await self._codec.run(len(incoming.body), questions.read, "tokenize", incoming.body, self.limits)
        ids = await self._codec.tokenizing(self._tokenize, question.rows[0][0], question.special_tokens)
        size = 12 * len(ids)
        await incoming.while_connected(self._wait_for_room(incoming, 2 * size))
        return Answer(await self._codec.run(size, answers.write_tokenized, ids, self.limits))

    async def _wait_for_room(self, incoming: Incoming, count: int) -> None:
        """Small answers have a room of their own: large ones that nobody reads keep no others waiting."""
        room = self._small if count <= self._small.most // SHARE else self._large
        await incoming.wait_for_room(room, count)

    async def _prometheus(self, _: Incoming) -> Answer:
        return Answer(generate_latest(self.metrics.registry), media="text/plain; version=0.0.4")

    def _tokenize(self, text: str, special_tokens: bool) -> list[int]:
        ids: list[int] = self.scorer.lm.tokenizer(
            text, add_special_tokens=special_tokens, return_attention_mask=False, return_token_type_ids=False
        ).input_ids
        return ids


def _is_plain(result: Result) -> bool:
    """Whether nothing in it was divided by a temperature."""
    return result.logprobs is None and result.rounded is None


def _fact(body: bytes, public: bool) -> Route:
    async def handle(_: Incoming) -> Answer:
        return Answer(body)

    return Route("GET", JSON, handle, public)
