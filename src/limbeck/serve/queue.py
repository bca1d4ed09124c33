"""Sequences wait in a bounded queue and are scored together: what came while the model was busy fills the next batch.

    queue = ScoringQueue(scorer.score, capacity=1024, tokens=8192)
    results = await queue.score([Asked(...)])           # QueueFullError when there is no place

A batch is filled up to so many tokens, one sequence of each waiting request in turn: one that brings hundreds does not
keep the others waiting, and the one that has waited longest is always in the next batch, however long its sequence.
No timer: a lone request is scored at once, and a hundred that arrive during a forward pass share the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from limbeck.serve.limits import Asked
from limbeck.wire.binary import Result

LONGEST_WAIT = 60.0  # seconds after which a client is told to ask again, at most


class QueueFullError(Exception):
    """There is no room; `retry_after` seconds are a fair guess of when there will be."""

    def __init__(self, retry_after: float, message: str) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosedError(Exception):
    """The server is shutting down and takes nothing new."""


@dataclass
class _Waiting:
    """A request: how far it is, and what will be answered."""

    asked: Sequence[Asked]
    answer: asyncio.Future[list[Result]]
    taken: int = 0  # sequences that are in a batch, or were
    results: dict[int, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class _Unit:
    """One sequence of a request."""

    item: _Waiting
    index: int

    @property
    def asked(self) -> Asked:
        return self.item.asked[self.index]

    def finish(self, result: Result) -> None:
        item = self.item
        item.results[self.index] = result
        if len(item.results) == len(item.asked) and not item.answer.done():
            item.answer.set_result([item.results[index] for index in range(len(item.asked))])


class ScoringQueue:
    """Holds at most `capacity` sequences; scores about `tokens` at a time, in turn."""

    def __init__(self, score: Callable[[Sequence[Asked]], list[Result]], capacity: int, tokens: int) -> None:
        self._score, self.capacity, self.tokens = score, capacity, tokens
        self.depth = 0  # sequences that wait or are being scored
        self.batches = 0
        self.waiting_tokens = 0  # of those sequences
        self.seconds_a_token = 1e-3
        self._waiting: deque[_Waiting] = deque()
        self._alone: deque[_Unit] = deque()  # scored each by itself: what they were scored with failed
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limbeck-scorer")
        self._worker = asyncio.create_task(self._work())

    async def score(
        self, asked: Sequence[Asked], admitted: Callable[[], Awaitable[None]] | None = None
    ) -> list[Result]:
        """Results in order. A request has its place at once, and is scored after `admitted` returns.

        Raises `QueueFullError` and `ClosedError`, and what scoring raises. A cancelled request leaves the queue.
        """
        if self._closed:
            raise ClosedError
        if self.depth + len(asked) > self.capacity:
            raise QueueFullError(
                min(LONGEST_WAIT, max(1.0, self.waiting_tokens * self.seconds_a_token)),
                f"the queue is full: {self.depth} sequences of {self.capacity} at most wait (--max-queue)",
            )
        item = _Waiting(asked, asyncio.get_running_loop().create_future())
        tokens = sum(len(one.request.token_ids) for one in asked)
        self.depth, self.waiting_tokens = self.depth + len(asked), self.waiting_tokens + tokens
        try:
            if admitted is not None:
                await admitted()
            self._waiting.append(item)
            self._wake.set()
            return await item.answer
        finally:
            self.depth, self.waiting_tokens = self.depth - len(asked), self.waiting_tokens - tokens
            self._wake.set()  # the last one lets a closed queue end

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
                if self._closed and not self.depth:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            units = self._take()
            if not units:
                continue
            start = loop.time()
            try:
                results = await loop.run_in_executor(self._thread, self._score, [unit.asked for unit in units])
            except Exception as error:  # one bad batch must not end the worker
                if len(units) > 1:  # nor must one bad sequence fail those that it was scored with
                    self._alone.extend(units)
                elif not units[0].item.answer.done():
                    units[0].item.answer.set_exception(error)
                continue
            self.batches += 1
            self.seconds_a_token = (loop.time() - start) / sum(len(unit.asked.request.token_ids) for unit in units)
            for unit, result in zip(units, results, strict=True):
                unit.finish(result)

    def _take(self) -> list[_Unit]:
        """The next batch; requests whose client has gone away, or that have failed, are left out."""
        while self._alone:
            unit = self._alone.popleft()
            if not unit.item.answer.done():
                return [unit]
        units: list[_Unit] = []
        used = 0
        while self._waiting:
            item = self._waiting.popleft()
            if item.answer.done():
                continue
            unit = _Unit(item, item.taken)
            used += len(unit.asked.request.token_ids)
            if units and used > self.tokens:
                self._waiting.appendleft(item)
                break
            units.append(unit)
            item.taken += 1
            if item.taken < len(item.asked):
                self._waiting.append(item)  # the others have their turn
        return units
