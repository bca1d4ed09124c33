"""Clients that are slow, many, or do not read: what they can take of the server is bounded, and /health is answered."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from limbeck.models.causal_lm import CausalLM
from limbeck.serve import connections, face, logs
from limbeck.serve.app import make_app
from limbeck.serve.connections import protocol
from limbeck.serve.face import Room
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from tests import tiny

BODY = json.dumps(
    {"input_ids": [[5] * 60] * 200, "sampling_params": {"max_new_tokens": 0}, "return_hidden_states": True}
).encode()  # its answer has eight megabytes, more than the kernel takes for a client that does not read
HEAD = f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


@asynccontextmanager
async def server(lm: CausalLM, most: int = 1000) -> AsyncIterator[int]:
    """The port of a server as `limbeck serve` runs it."""
    app = make_app(Scorer(lm), ServeSettings(), "tiny 123")
    config = uvicorn.Config(
        app, loop="asyncio", http=protocol(most), ws="none", log_level="error", timeout_graceful_shutdown=1
    )
    running = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        yield listener.getsockname()[1]
        running.should_exit = True
        await serving


async def health(port: int) -> bool:
    async with httpx.AsyncClient(timeout=5) as http:
        return (await http.get(f"http://127.0.0.1:{port}/health")).json() == {"status": "ok"}


async def closed(reader: asyncio.StreamReader, within: float = 10.0) -> bytes:
    """What came before the server closed the connection."""
    async with asyncio.timeout(within):
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""


@pytest.mark.parametrize("first", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /he"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    lm: CausalLM, first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the second one of a connection whose first was answered: a byte of it must not make it immortal."""
    monkeypatch.setattr(connections, "HEAD", 0.3)
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        assert (b'{"status":"ok"}' in await closed(reader)) == first.endswith(b"/he")
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face, "GRACE", 0.3)
    monkeypatch.setattr(connections, "HEAD", 0.3)
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + BODY[:-1])
        assert b"408" in (await closed(reader)).partition(b"\r\n")[0]
        writer.close()


async def test_an_answer_that_is_not_read_is_dropped_and_its_room_given_back(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rooms: list[Room] = []
    real = Room.__init__

    def kept(self: Room, most: int, option: str) -> None:
        real(self, most, option)
        rooms.append(self)

    def held() -> int:
        return sum(room.held for room in rooms)

    monkeypatch.setattr(Room, "__init__", kept)
    monkeypatch.setattr(face, "GRACE", 0.3)
    monkeypatch.setattr(face, "PACE", 1e9)
    async with server(lm) as port:
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", port))
            body = BODY.replace(b"[5,", b"[6,")
            deaf.sendall(HEAD + body)
            async with asyncio.timeout(20):
                while held() < 8_000_000:
                    await asyncio.sleep(0.005)
                while held():
                    await asyncio.sleep(0.02)
            assert await health(port)
            deaf.settimeout(5)
            assert await asyncio.to_thread(everything, deaf) < 6_000_000
    assert held() == 0
    assert not caplog.records  # such a client is nobody's fault


async def test_what_is_under_way_at_the_end_of_the_grace_is_dropped_without_a_trace(
    lm: CausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD)
        await asyncio.sleep(0.1)
    assert await closed(reader) == b""
    writer.close()
    assert not [record for record in caplog.records if record.exc_info]


def everything(one: socket.socket) -> int:
    """How many bytes still come."""
    count = 0
    try:
        while part := one.recv(2**16):
            count += len(part)
    except ConnectionError:
        pass
    return count


@pytest.mark.parametrize("first", [b"", HEAD])
async def test_connections_beyond_the_limit_close_those_that_wait_longest_and_health_is_answered(
    lm: CausalLM, first: bytes
) -> None:
    async with server(lm, most=20) as port:
        opened = []
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first)
            opened.append((reader, writer))
            await asyncio.sleep(0)
        assert await health(port)
        gone = [await closed(reader) for reader, _ in opened[:40]]
        assert gone == [b""] * 40
        assert not opened[-1][0].at_eof()
        for _, writer in opened:
            writer.close()


async def test_a_request_that_is_worked_on_is_not_closed_for_newer_ones(lm: CausalLM) -> None:
    async with server(lm, most=5) as port, httpx.AsyncClient(timeout=60) as http:
        asked = asyncio.create_task(http.post(f"http://127.0.0.1:{port}/generate", content=BODY))
        await asyncio.sleep(0.02)
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        assert (await asked).status_code == 200
        for _, writer in opened:
            writer.close()


CHUNKED = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTRANSFER-encoding: %s\r\n\r\n"


@pytest.mark.parametrize(
    "first",
    [CHUNKED % b"chunked", CHUNKED % b"gzip", (CHUNKED % b"chunked").replace(b"\r", b""),
     b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + CHUNKED % b"chunked"],
)  # fmt: skip
async def test_chunks_are_refused_before_they_are_read(lm: CausalLM, first: bytes) -> None:
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        start = asyncio.get_running_loop().time()
        writer.write(first + b"1\r\nx\r\n" * 200_000)
        assert await health(port)
        head, _, body = (await closed(reader)).rpartition(b"\r\n\r\n")
        assert asyncio.get_running_loop().time() - start < 1
        assert b"HTTP/1.1 411" in head
        assert b"connection: close" in head.lower()
        assert "Transfer-Encoding" in json.loads(body)["error"]["message"]
        writer.close()


async def test_a_content_length_above_the_limit_is_refused_before_the_body_has_come(lm: CausalLM) -> None:
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000000\r\n\r\n{")
        assert b"413" in await asyncio.wait_for(reader.readline(), 5)
        writer.close()


async def test_a_long_head_is_refused_though_it_comes_whole(lm: CausalLM) -> None:
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"a:b\r\n" * 12_900 + b"\r\n")
        assert b" 431 " in (await closed(reader)).partition(b"\r\n")[0]
        writer.close()


def test_lines_that_clients_cause_are_written_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logs.bound_lines_of_clients()
    try:
        for name, line in (
            ("uvicorn.error", "Invalid HTTP request received."), ("asyncio", "socket.send() raised exception.")
        ):  # fmt: skip
            logger = logging.getLogger(name)
            caplog.set_level(logging.WARNING, logger=name)
            logger.addHandler(caplog.handler)
            caplog.clear()
            monkeypatch.setattr(logs, "PAUSE", 30.0)
            logger.propagate = False
            for _ in range(1000):
                logger.warning(line)
            logger.warning("another")
            logger.warning("another")
            assert caplog.messages == [line, "another", "another"]
            monkeypatch.setattr(logs, "PAUSE", 0.0)
            logger.warning(line)
            assert caplog.messages[3:] == [f"{line} (999 more since the last such line)"]
    finally:
        for name in logs.LOGGERS:
            logger = logging.getLogger(name)
            logger.filters.clear()
            logger.removeHandler(caplog.handler)
            logger.propagate = True


@pytest.mark.parametrize(
    "junk",
    [b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"GET / HTTP/9.9\r\n\r\n",
     b"GET /" + b"a" * 100_000,
     b"GET / HTTP/1.1\r\n\r\n", b"GET /%ff%00 HTTP/1.1\r\nHost: [\r\n\r\n",
     b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
     b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"],
)  # fmt: skip
async def test_what_is_no_http_harms_nothing(lm: CausalLM, junk: bytes, caplog: Any) -> None:
    async with server(lm) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(junk)
        writer.write_eof()
        answer = (await closed(reader)).partition(b"\r\n")[0]
        assert not answer or b" 4" in answer
        assert await health(port)
        writer.close()
    assert "Traceback" not in caplog.text
