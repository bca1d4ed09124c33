"""Bodies are read and written off the event loop, and large ones off this process too.

Reading JSON holds the interpreter's lock for as long as it takes, in whatever thread: a body of 16 MB would stop every
answer, `/health` too, for a second. So a large one goes to a second process (`worker`), one at a time; its memory is
bounded there. Small ones take a thread of this process, and texts are tokenized in another, which holds no lock.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from limbeck.serve import worker
from limbeck.wire.score import WireError

T = TypeVar("T")

SMALL = 2**14  # bytes of a body or an answer that are a matter of a millisecond: a hundred clients may send such


class Codec:
    """Runs functions of `questions` and `answers`. `memory` bounds the second process, in bytes."""

    def __init__(self, memory: int) -> None:
        self._here = ThreadPoolExecutor(1, "limbeck-codec")
        self._tokenizing = ThreadPoolExecutor(1, "limbeck-tokenizer")
        self._there = ThreadPoolExecutor(1, "limbeck-worker")
        self._worker = _Worker(memory)

    async def run(self, size: int, job: Callable[..., T], *args: Any) -> T:
        """`job` on data of so many bytes. Large ones must be of `worker.JOBS`. Raises what the job raises."""
        if size <= SMALL:
            return await self.here(job, *args)
        return await asyncio.get_running_loop().run_in_executor(self._there, self._worker.run, job.__name__, args)

    async def here(self, job: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._here, job, *args)

    async def tokenizing(self, job: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, job, *args)

    def close(self) -> None:
        for threads in (self._here, self._tokenizing, self._there):
            threads.shutdown()
        self._worker.close()


class _Worker:
    """The second process. It starts with the first large body, and again should it end."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, name: str, args: tuple[Any, ...]) -> Any:
        """Raises `WireError` as the job does, `RuntimeError` where it failed or the process ended."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            worker.send(process.stdin, pickle.dumps((name, args), pickle.HIGHEST_PROTOCOL))
            outcome, value = pickle.loads(worker.receive(process.stdout))
        except (OSError, EOFError):
            self.close()
            raise RuntimeError(f"the process that reads large bodies ended (status {process.returncode})") from None
        if outcome == "refused":
            raise WireError(*value)
        if outcome == "failed":
            raise RuntimeError(value)
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", worker.__name__, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},  # each would reserve memory
        )
        return self._process

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
