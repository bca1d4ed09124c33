"""Requests wait in a bounded queue and are scored together: what came while the model was busy is one batch.

    queue = ScoringQueue(scorer.score, capacity=256, most=64)
    results = await queue.score([Asked(...)])        # QueueFullError when there is no room

No timer: a lone request is scored at once, and a hundred that arrive during a forward pass share the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from limbeck.serve.limits import Asked
from limbeck.wire.binary import Result


class QueueFullError(Exception):
    """There is no room; `retry_after` seconds are a fair guess of when there will be."""

    def __init__(self, retry_after: float, message: str = "the queue is full") -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(Exception):
    """The server is shutting down and takes nothing new."""


@dataclass
class _Waiting:
    asked: Sequence[Asked]
    answer: asyncio.Future[list[Result]]


class ScoringQueue:
    """Holds at most `capacity` sequences; scores at most `most` at a time, in the order they came."""

    def __init__(self, score: Callable[[Sequence[Asked]], list[Result]], capacity: int, most: int) -> None:
        self._score, self.capacity, self.most = score, capacity, most
        self.depth = 0  # sequences that wait or are being scored
        self.batches = 0
        self.seconds_a_sequence = 0.05
        self._waiting: deque[_Waiting] = deque()
        self._alone: deque[_Waiting] = deque()  # scored each by itself: what they were scored with failed
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbeck-scorer")
        self._worker = asyncio.create_task(self._work())

    async def score(self, asked: Sequence[Asked]) -> list[Result]:
        """Results in order. Raises `QueueFullError` and `ClosedError`, and what scoring raises."""
        if self._closed:
            raise ClosedError
        if self.depth + len(asked) > self.capacity:
            raise QueueFullError(max(1.0, self.depth * self.seconds_a_sequence))
        item = _Waiting(asked, asyncio.get_running_loop().create_future())
        self.depth += len(asked)
        self._waiting.append(item)
        self._wake.set()
        try:
            return await item.answer
        finally:
            self.depth -= len(asked)

    async def close(self) -> None:
        """Finish what waits, take nothing new."""
        self._closed = True
        self._wake.set()
        await self._worker
        self._thread.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting and not self._alone:
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            group = self._take()
            if not group:
                continue
            asked = [one for item in group for one in item.asked]
            start = loop.time()
            try:
                results = await loop.run_in_executor(self._thread, self._score, asked)
            except Exception as error:  # one bad batch must not end the worker
                if len(group) > 1:  # nor must one bad request fail those that it was scored with
                    self._alone.extend(group)
                elif not group[0].answer.done():
                    group[0].answer.set_exception(error)
                continue
            self.batches += 1
            self.seconds_a_sequence = (loop.time() - start) / max(1, len(asked))
            for item in group:
                mine, results = results[: len(item.asked)], results[len(item.asked) :]
                if not item.answer.done():
                    item.answer.set_result(mine)

    def _take(self) -> list[_Waiting]:
        """The next batch; requests whose client has gone away are left out."""
        group: list[_Waiting] = []
        count = 0
        while self._alone and not group:
            item = self._alone.popleft()
            if not item.answer.done():
                return [item]
        while self._waiting and (not group or count + len(self._waiting[0].asked) <= self.most):
            item = self._waiting.popleft()
            if not item.answer.done():
                group.append(item)
                count += len(item.asked)
        return group
