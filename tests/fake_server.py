"""A scoring server on loopback that speaks SGLang's and vLLM's schemas over real HTTP, and can misbehave.

    async with FakeServer(ignores_temperature=True) as server:
        ... server.url ...

Its "model" is a table of logits by the previous token, and a little of the mean of another by all before, so every true
value is known exactly. Lies change its answers; faults change how the bytes travel. Both are switched by attributes,
also while it runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from limbeck.wire import binding
from limbeck.wire.score import WireError

BOUND: ContextVar[str] = ContextVar("the digest of the request at hand", default="")


def log_softmax(x: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    x = x / temperature
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@dataclass
class FakeServer:
    vocabulary: int = 99
    seed: int = 0
    model: str = "teacher-v1"
    scale: float = 3.0
    temperature: float = 1.0  # of a server that does not know the field, such as one with baked weights
    # lies
    knows_temperature: bool = False  # takes and acknowledges a scoring temperature
    ignores_temperature: bool = False  # acknowledges it, and answers at its own all the same
    shift: int = 0  # every value so many positions late
    shifts_tops: bool = False  # the lists of top tokens with it
    truncates: int = 0  # entries missing at the end
    other_ids: bool = False  # echoes another tokenizer's ids
    clamps: bool = False  # a cut distribution, -9999 outside
    nan: bool = False
    drifts_after: int | None = None  # requests after which the weights are others
    renamed_after: int | None = None
    noise: float = 0.0
    tokenizer: Any = None  # str -> list[int]
    token: str | None = None
    # faults, each with a probability a request
    drop: float = 0.0
    delay: float = 0.0
    drip: float = 0.0  # seconds between the bytes of every answer
    cut: float = 0.0
    corrupt: float = 0.0  # a byte becomes any other: found where there is a digest
    garble: float = 0.0  # what comes is no JSON
    fail: float = 0.0
    busy: float = 0.0
    binds: bool = False  # verifies requests and sends digests, as `limbeck serve` does
    echoes: bool = True  # repeats the request's id and tokens
    # bookkeeping
    requests: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    port: int = 0

    routes: ClassVar[tuple[str, ...]] = ("/generate", "/v1/completions", "/tokenize")

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.set_weights(self.seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def set_weights(self, seed: int) -> None:
        size = (self.vocabulary, self.vocabulary)
        self.logits_VV = self.scale * np.random.default_rng(seed).standard_normal(size)
        self.far_VV = self.scale * np.random.default_rng(seed + 1000).standard_normal(size)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def truth(self, ids: list[int] | np.ndarray, start: int, temperature: float) -> np.ndarray:
        """[n, V] log q_T at each position from `start`."""
        before = np.asarray(ids)[:-1]
        means_LV = np.cumsum(self.far_VV[before], axis=0) / np.arange(1, len(before) + 1)[:, None]
        return log_softmax((self.logits_VV[before] + means_LV)[start - 1 :], temperature)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, as clients do, or the server is stopped
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *headers = head.split("\r\n")
        fields = {k.lower(): v.strip() for k, _, v in (h.partition(":") for h in headers) if k}
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        method, path = line.split()[:2]
        if self.binds:
            try:
                BOUND.set(binding.verified_request(b"", method, path, body, fields))
            except WireError as error:
                return await self._send(writer, 400, str(error).encode(), [f"{binding.PROBLEM}: request"])
        if self.token is not None and fields.get("authorization") != f"Bearer {self.token}":
            return await self._send(writer, 401, b'{"error": "no"}')
        if path in ("/get_model_info", "/v1/models"):
            name = self.model if self.renamed_after is None or self.requests <= self.renamed_after else "teacher-v2"
            return await self._send(writer, 200, json.dumps({"model_path": name, "data": [{"id": name}]}).encode())
        if path not in self.routes:
            return await self._send(writer, 404, b'{"detail": "Not Found"}')
        self.requests += 1
        if self.drifts_after is not None and self.requests > self.drifts_after:
            self.set_weights(self.seed + 1)
        return await self._answer(writer, path, json.loads(body))

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        self.bodies.append(body)
        if self.rng.random() < self.drop:
            writer.transport.abort()
            return False
        if self.rng.random() < self.delay:
            await asyncio.sleep(60)
        if self.rng.random() < self.fail:
            return await self._send(writer, 500, b"boom")
        if self.rng.random() < self.busy:
            return await self._send(writer, 429, b"later", ["retry-after: 0.01"])
        if (
            "text" in body
            or path == "/tokenize"
            or isinstance(body["prompt" if "prompt" in body else "input_ids"], str)
        ):
            return await self._tokenize(writer, path, body)
        answer = self._sglang(body) if path == "/generate" else self._vllm(body)
        return await self._send(writer, 200, json.dumps(answer).encode(), faulty=True)

    async def _tokenize(self, writer: asyncio.StreamWriter, path: str, body: dict[str, Any]) -> bool:
        if self.tokenizer is None:
            return await self._send(writer, 404, b"no route")
        ids = self.tokenizer(body["text"] if path == "/generate" else body["prompt"])
        meta = {"input_token_logprobs": [[None, i, None] for i in ids]}
        answer = {"/tokenize": {"tokens": ids}, "/generate": {"meta_info": meta}}
        by_text = {"choices": [{"prompt_token_ids": ids}]}
        return await self._send(writer, 200, json.dumps(answer.get(path, by_text)).encode())

    async def _send(
        self,
        writer: asyncio.StreamWriter,
        status: int,
        body: bytes,
        headers: list[str] | None = None,
        faulty: bool = False,
    ) -> bool:
        length, headers = len(body), list(headers or [])
        if self.binds:
            weights = hashlib.sha256(self.logits_VV.tobytes()).hexdigest()[:32]
            bound = binding.answer_headers(b"", BOUND.get(), status, weights, None, body)
            headers += [f"{name}: {value}" for name, value in bound.items()]
        if faulty and self.rng.random() < self.corrupt:
            at = self.rng.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ (1 + self.rng.randrange(255))]) + body[at + 1 :]
        if faulty and self.rng.random() < self.garble:
            body = b"!" + body[1:]
        cut = faulty and self.rng.random() < self.cut
        lines = [f"HTTP/1.1 {status} X", f"content-length: {length}", "content-type: application/json", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        for part in (
            [body[i : i + 1] for i in range(len(body))] if self.drip else [body[: len(body) // 2 if cut else None]]
        ):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(self.drip)
        if cut:
            writer.transport.close()
        return not cut

    # --- what it answers ------------------------------------------------------------------------------

    def _scores(self, ids: list[int], start: int, top: int, asked: float | None) -> tuple[list[Any], list[Any]]:
        """[n] (log-prob, id) and [n][K] of the same, from `start` on, with every lie applied."""
        used = self.temperature if asked is None or self.ignores_temperature or not self.knows_temperature else asked
        rows = self.truth(ids, start, used)
        if self.noise:
            rows = log_softmax(rows + self.noise * np.random.default_rng(self.requests).standard_normal(rows.shape))
        if self.clamps:
            rows = np.where(rows < np.sort(rows, axis=1)[:, -5:-4], -9999.0, rows)
        if self.nan and len(rows):
            rows = np.where(np.arange(len(rows))[:, None] == len(rows) - 1, np.nan, rows)
        sampled = np.array(ids[start:])
        values = rows[np.arange(len(rows)), sampled]
        if self.shift:
            values = np.roll(values, self.shift)
        echoed = (sampled + 1) % self.vocabulary if self.other_ids else sampled
        single = [[float(np.float32(v)), int(i)] for v, i in zip(values, echoed, strict=True)]
        tops = []
        for row in rows:
            order = np.argsort(-row, kind="stable")[:top]
            tops.append([[float(np.float32(row[i])), int(i)] for i in order])
        if self.shifts_tops:
            tops = tops[-self.shift :] + tops[: -self.shift]
        keep = len(single) - self.truncates
        return single[:keep], tops[:keep]

    def _sglang(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, start, top = body["input_ids"], body["logprob_start_len"] + 1, body.get("top_logprobs_num", 0)
        if top > self.vocabulary:
            raise ConnectionError("the real one dies here")
        asked = body.get("input_logprob_temperature")
        single, tops = self._scores(ids, start, top, asked)
        meta: dict[str, Any] = {
            "input_token_logprobs": [
                [None, ids[start - 1], None],
                # As the real one: the last id of the vocabulary is echoed as 0.
                *([v, i if i < self.vocabulary - 1 else 0, None] for v, i in single),
            ]
        }
        if top:
            meta["input_top_logprobs"] = [None, *([[v, i, None] for v, i in row] for row in tops)]
        if given := body.get("token_ids_logprob"):
            used = self.temperature if asked is None or not self.knows_temperature else asked
            rows = self.truth(ids, start, used)[:, given]
            lists = [[[float(np.float32(v)), i, None] for v, i in zip(row, given, strict=True)] for row in rows]
            meta["input_token_ids_logprobs"] = [None, *lists]
        if self.knows_temperature and asked is not None:
            meta["input_logprob_temperature"] = asked
        if not self.echoes:
            return {"text": "", "meta_info": meta}
        meta |= {"id": body["rid"], "prompt_tokens": len(ids)}
        return {"text": "", "prompt_token_ids": ids, "meta_info": meta}

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, top = body["prompt"], body["prompt_logprobs"]
        asked = body.get("prompt_logprobs_temperature")
        single, tops = self._scores(ids, 1, top, asked)
        rows: list[Any] = [None]
        for (value, i), row in zip(single, tops, strict=True):
            rows.append(
                {str(j): {"logprob": v, "rank": n + 1} for n, (v, j) in enumerate(row)} | {str(i): {"logprob": value}}
            )
        answer: dict[str, Any] = {"choices": [{"prompt_logprobs": rows}]}
        if self.echoes:
            answer |= {"id": f"cmpl-{body['request_id']}", "model": body["model"]}
            answer["choices"][0]["prompt_token_ids"] = ids
        if self.knows_temperature and asked is not None:
            answer["prompt_logprobs_temperature"] = asked
        return answer


class Stoppable(Protocol):
    """A server, or a proxy before one."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


S = TypeVar("S", bound=Stoppable)


async def _stop_all(server: Stoppable) -> None:
    await server.stop()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


@contextmanager
def in_thread(server: S) -> Iterator[S]:
    """The server on a loop of its own, for code that runs one itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(30)
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_stop_all(server), loop).result(30)  # nothing may be left on a closed loop
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()
