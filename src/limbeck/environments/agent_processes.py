"""Runs an agent's function, each rollout in a process of its own.

    processes = AgentProcesses("my_agent:run")
    await processes.start()                     the module is imported, once
    ended = await processes.run({"row": row, "base_url": url}, environment, seed)
    ended.kind, ended.value                     "returned", {"reward": 1.0}

A function that hangs, crashes, exits, prints without end or takes all memory costs that one rollout. See
`agent_worker.py` for what runs on the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from limbeck.errors import RecipeError

WORKER = Path(__file__).with_name("agent_worker.py")
LONGEST_LINE = 2**24  # bytes of a reply
START_WITHIN = 600.0  # seconds for the import of the agent's module
KILL_WITHIN = 0.5  # seconds that a killed call has to be reported
END_WITHIN = 2.0  # seconds in which what a killed worker left behind is looked for
VARIABLE = "LIMBECK_AGENT_WORKER"  # in the environment of a worker and all that it starts
SHOWN_OUTPUT = 600  # characters of what a rollout printed, for a message

How = Literal["returned", "raised", "exited"]


@dataclass(frozen=True)
class Ended:
    """How one call ended."""

    kind: How
    value: Any  # of "returned" the reward; else a text that says what happened
    output: str  # the last that it printed

    @property
    def message(self) -> str:
        """What happened and the end of what was printed."""
        return f"{self.value}. {self.last_words}"

    @property
    def last_words(self) -> str:
        printed = self.output.strip()[-SHOWN_OUTPUT:]
        return f"The last it printed: {printed}" if printed else "It printed nothing."


class AgentProcesses:
    """`function` is `package.module:name`, found from the working folder and PYTHONPATH, in the interpreter `python`.

    `memory_mb` is the most that one rollout may have.
    """

    def __init__(self, function: str, python: str = sys.executable, memory_mb: int = 4096) -> None:
        self.function, self.python, self.memory_mb = function, python, memory_mb
        self._server: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._calls: dict[int, asyncio.Future[Ended]] = {}
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._id = uuid4().hex

    async def start(self) -> None:
        """Raises `RecipeError` where the interpreter, the module or the function is not there."""
        async with self._starting:
            if self._reader is None or self._reader.done():
                await self._start()

    async def _start(self) -> None:
        setting = f"task.function = {self.function!r}"
        module, _, name = self.function.partition(":")
        if not module or not name or module.startswith("."):
            raise RecipeError(f"{setting} is not of the form package.module:name, such as my_agent:run")
        try:
            # -P keeps this folder off the path; of a session of its own, so that Ctrl-C is the parent's alone.
            server = await asyncio.create_subprocess_exec(
                self.python, "-P", str(WORKER), self.function, str(self.memory_mb),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LONGEST_LINE,
                start_new_session=True, env={**os.environ, VARIABLE: self._id},
            )  # fmt: skip
        except OSError as error:
            raise RecipeError(f"task.interpreter = {self.python!r} cannot be started: {error}") from error
        self._server = server
        try:
            async with asyncio.timeout(START_WITHIN):
                first = await _reply(server)
        except TimeoutError:
            first = {"error": f"its import takes longer than {START_WITHIN:g} s"}
        if "ready" not in first:
            await self.close()
            why = first.get("error", "the process ended before it was ready; its error output says why")
            raise RecipeError(
                f"{setting} cannot be used ({why}). It is imported by {self.python}, with {Path.cwd()} and PYTHONPATH "
                "on the path; task.interpreter names another interpreter, such as that of a virtual environment."
            )
        self._reader = asyncio.create_task(self._read(server))

    async def run(self, arguments: Mapping[str, Any], environment: Mapping[str, str], seed: int) -> Ended:
        """Call the function in a new process, with these variables set. Cancelled, it kills what the call started.

        Raises `RecipeError` where the agent's module can no longer be imported after a crash.
        """
        await self.start()
        assert self._server is not None
        assert self._server.stdin is not None
        number = next(self._numbers)
        ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._calls[number] = ended
        request = {"id": number, "arguments": dict(arguments), "environment": dict(environment), "seed": seed}
        try:
            self._say(request)
            return await ended
        except asyncio.CancelledError:
            self._say({"kill": number})
            killed = await self._ended_within(number, KILL_WITHIN)
            raise asyncio.CancelledError(killed.last_words if killed is not None else "") from None
        finally:
            self._calls.pop(number, None)

    async def _ended_within(self, number: int, seconds: float) -> Ended | None:
        ended = self._calls[number] = asyncio.get_running_loop().create_future()  # the other one was cancelled
        await asyncio.wait([ended], timeout=seconds)
        return ended.result() if ended.done() else None

    def _say(self, request: Mapping[str, Any]) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        if not self._server.stdin.is_closing():  # else the reader says that it ended
            self._server.stdin.write(json.dumps(request, default=str).encode() + b"\n")

    async def _read(self, server: asyncio.subprocess.Process) -> None:
        """Answers until the process ends; what it had not answered then is answered here."""
        while reply := await _reply(server):
            call = self._calls.get(reply["id"])
            kind: How = next(kind for kind in ("returned", "raised", "exited") if kind in reply)
            if call is not None and not call.done():
                call.set_result(Ended(kind, reply[kind], reply["output"]))
        code = await server.wait()
        if code:
            await _end_started_by(self._id)
        for call in self._calls.values():
            if not call.done():
                call.set_result(Ended("exited", f"the process that starts rollouts ended with exit code {code}", ""))

    async def close(self) -> None:
        """End every process; may be called again."""
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None
        server.stdin.close()  # it kills its rollouts and ends
        try:
            async with asyncio.timeout(5):
                await server.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                server.kill()
            await server.wait()
            await _end_started_by(self._id)
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)  # a run that ends has cancelled it already
            self._reader = None


async def _reply(server: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next line; empty where there is none, or where it is none of the worker's."""
    assert server.stdout is not None
    try:
        line = await server.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {}
    except (ValueError, ConnectionError):
        return {}
    return reply


async def _end_started_by(id_: str) -> None:
    """What a worker that was killed left behind, where the system says with which environment a process began.

    One that is found may have started another meanwhile, and one that is just becoming another program has, for a
    moment, no environment: until a look finds neither, or for `END_WITHIN`.
    """
    name = f"{VARIABLE}={id_}".encode()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_WITHIN):
            while sum(_ended_or_unclear(each, name) for each in Path("/proc").glob("[0-9]*")):  # at all of them
                await asyncio.sleep(0.01)


def _ended_or_unclear(process: Path, name: bytes) -> bool:
    with contextlib.suppress(OSError):  # it ended, or is another user's
        environment = (process / "environ").read_bytes()
        if name in environment.split(b"\0"):
            os.kill(int(process.name), signal.SIGKILL)
            return True
        return not environment and bool((process / "exe").readlink())  # the system's own have no program
    return False
