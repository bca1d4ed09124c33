"""Servers: `limbeck serve` as processes, forked from one that has imported all of it; and one like a stock server."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.fake_server import FakeServer, log_softmax

TOKEN_ENV = "LIMBECK_CHAOS_TOKEN"  # of the clients and servers that have a token
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.chaos.preloaded"])


class Served:
    """`limbeck serve FOLDER --batch-invariant` at one port: what else is asked does not show in the last bit.

    `off` names a protection that this process does without.
    """

    def __init__(self, folder: str, log: Path, token: str = "", off: str = "") -> None:
        self.folder, self.log, self.token, self.off = folder, log, token, off
        self.port = _free_port()
        self.process: BaseProcess | None = None
        self.start()

    def start(self, folder: str | None = None) -> None:
        arguments = (folder or self.folder, self.port, str(self.log), self.token, self.off)
        self.process = _context.Process(target=_run, args=arguments, daemon=True)
        self.process.start()
        self.wait()

    def wait(self) -> None:
        """Until it answers."""
        assert self.process is not None
        give_up = time.monotonic() + 60
        while time.monotonic() < give_up and self.process.is_alive():
            with suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{self.port}/health", timeout=5).status_code == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.join()

    def restart(self, folder: str | None = None) -> None:
        self.kill()
        self.start(folder)


class StockServer(FakeServer):
    """Its scores follow from the whole prefix, not from the token before alone. What it cannot read is refused."""

    def truth(self, ids: list[int] | np.ndarray, start: int, temperature: float) -> np.ndarray:
        before = np.cumsum(np.asarray(ids) + 1)[start - 1 : -1] % self.vocabulary
        return log_softmax(self.logits_VV[np.asarray(ids)[start - 1 : -1]] + self.logits_VV[before] / 2, temperature)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            return await super()._one(reader, writer)
        except (LookupError, TypeError, ValueError) as error:
            return await self._send(writer, 400, type(error).__name__.encode())

    def _vllm(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["model"] != self.model:
            raise LookupError(body["model"])
        return super()._vllm(body)


@contextmanager
def serving(folder: str, log: Path, token: str = "", off: str = "") -> Iterator[Served]:
    server = Served(folder, log, token, off)
    try:
        yield server
    finally:
        server.kill()


def _run(folder: str, port: int, log: str, token: str, off: str) -> None:
    """In the process of its own."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    from limbeck.cli.main import main
    from tests.chaos.protections import switch_off

    torch.set_num_threads(1)
    if off:
        switch_off(off)
    command = ["serve", folder, "--batch-invariant", "--port", str(port)]
    if token:
        os.environ[TOKEN_ENV] = token
        command += ["--token-env", TOKEN_ENV]
    sys.exit(main(command))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as place:
        return int(place.getsockname()[1])
