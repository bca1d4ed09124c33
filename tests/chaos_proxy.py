"""A proxy on loopback that does to answers what bad networks do: drops, delays, cuts and corrupts them, at random.

It knows nothing of HTTP: a corrupted byte may be one of the status line, a header, a digit or a brace.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

CHUNK = 1 << 16


@dataclass
class ChaosProxy:
    """Each probability is of one chunk of an answer."""

    target: int  # the server's port
    seed: int = 0
    drop: float = 0.0
    delay: float = 0.0
    cut: float = 0.0
    corrupt: float = 0.0
    seconds: float = 0.2  # of a delay
    port: int = 0
    faults: dict[str, int] = field(default_factory=dict)

    async def start(self) -> None:
        self.dice = random.Random(self.seed)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            await asyncio.gather(self._requests(reader, ours), self._answers(theirs, writer))
        except (ConnectionError, asyncio.CancelledError):
            pass  # one of the two ends went away
        finally:
            writer.transport.abort()
            ours.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, ours: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            ours.write(data)
            await ours.drain()
        raise ConnectionError("the client is done")

    async def _answers(self, theirs: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await theirs.read(CHUNK):
            if self._happens("drop"):
                break
            if self._happens("delay"):
                await asyncio.sleep(self.seconds)
            if self._happens("corrupt"):
                at = self.dice.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ (1 + self.dice.randrange(255))]) + data[at + 1 :]
            if self._happens("cut"):
                writer.write(data[: self.dice.randrange(len(data))])
                await writer.drain()
                break
            writer.write(data)
            await writer.drain()
        raise ConnectionError("the answer is over")

    def _happens(self, fault: str) -> bool:
        happens = self.dice.random() < getattr(self, fault)
        self.faults[fault] = self.faults.get(fault, 0) + happens
        return happens
