"""Several servers of the student as one engine: whoever is free takes the longest unit that waits.

What is sampled follows from the request, so it does not matter which server it was. One that is away costs only its
units, which others sample; when it is back it is given the weights before it samples again.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from limbeck.engines.served import ServedEngine, ServerAwayError
from limbeck.protocols import Policy
from limbeck.records import Failure, ProbeResult, Sampled, SampleRequest
from limbeck.reports import WeightTransfer
from limbeck.wire.score import AWAY

logger = logging.getLogger("limbeck")

Answers: TypeAlias = list[Sampled | Failure]

REST = 1.0  # seconds before a server that is away is asked again


@dataclass(eq=False)
class _Member:
    engine: ServedEngine
    rows: int = 0  # of responses that it samples now
    policy: Policy | None = None  # that it holds
    away: bool = True


@dataclass(order=True)
class _Waiting:
    """A unit that no server has yet, the longest first."""

    order: tuple[int, int]
    unit: Sequence[SampleRequest] = field(compare=False)
    answers: asyncio.Future[list[Sampled | Failure]] = field(compare=False)
    since: float | None = field(default=None, compare=False)  # when a server first failed it
    task: asyncio.Task[None] | None = field(default=None, compare=False)  # of the server that samples it


class ServedEngines:
    """`rows` bounds the responses under way at each server, `patience` is in seconds.

    All servers must be there for the first `load`, where each is proven; later at least one.

    Raises `EngineError` as `ServedEngine` does, and where every server is away for longer than `patience`.
    """

    batches_turns: Literal[True] = True

    def __init__(self, engines: Sequence[ServedEngine], rows: int, patience: float) -> None:
        self.members = [_Member(engine) for engine in engines]
        self.rows, self.patience = rows, patience
        self.max_rows = engines[0].max_rows
        self.policy: Policy | None = None
        self._waiting: list[_Waiting] = []
        self._count = itertools.count()
        self._returning: dict[_Member, asyncio.Task[None]] = {}

    @property
    def results(self) -> list[ProbeResult]:
        return [
            replace(result, probe=f"{member.engine.pool.urls[0]}: {result.probe}")
            for member in self.members
            for result in member.engine.results
        ]

    @property
    def transfer(self) -> WeightTransfer:
        """Of the last load: what was written for all counts once."""
        moved = [member.engine.transfer for member in self.members if member.policy is self.policy]
        return WeightTransfer(sum(one.bytes for one in moved), max((one.seconds for one in moved), default=0.0))

    async def load(self, policy: Policy) -> None:
        """Every server that is there has the weights. Raises `EngineError`."""
        self._stop_returning()
        first, self.policy, began = self.policy is None, policy, time.monotonic()
        behind = self.members if first else [member for member in self.members if not member.away]
        while True:
            errors = [error for error in await asyncio.gather(*map(self._give, behind)) if error is not None]
            ready = [member for member in self.members if member.policy is policy and not member.away]
            if len(ready) == len(self.members) or (ready and not first):
                break
            if errors and time.monotonic() - began >= self.patience:
                raise errors[0]
            await asyncio.sleep(REST if errors else 0)
            behind = [member for member in self.members if member not in ready]
        for error in errors:
            logger.warning("%s The others sample in its place until it is back.", error)

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """See `protocols.Engine`."""
        length = max((len(request.token_ids) + request.sampling.max_tokens for request in unit), default=0)
        answers: asyncio.Future[list[Sampled | Failure]] = asyncio.get_running_loop().create_future()
        item = _Waiting((-length, next(self._count)), unit, answers)
        heapq.heappush(self._waiting, item)
        self._assign()
        try:
            return await answers
        finally:
            if item.task is not None:  # of a caller that waits no more
                item.task.cancel()

    async def close(self) -> None:
        self._stop_returning()
        for member in self.members:
            await member.engine.close()

    # --- units ----------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give units to the servers that have room, the least busy first; wake those that are away."""
        self._waiting = [item for item in self._waiting if not item.answers.done()]  # cancelled, or failed
        heapq.heapify(self._waiting)
        while self._waiting:
            free = [member for member in self.members if self._has_room(member, self._waiting[0])]
            if not free:
                break
            member, item = min(free, key=lambda member: member.rows), heapq.heappop(self._waiting)
            member.rows += len(item.unit)
            item.task = asyncio.create_task(self._sample(member, item))
        busy = self._waiting or any(member.rows for member in self.members)
        if not busy:
            self._stop_returning()  # the next update may end the policy's lease at any moment
        for member in self.members if busy else ():
            if member.away and member not in self._returning:
                self._returning[member] = asyncio.create_task(self._return(member))

    def _has_room(self, member: _Member, item: _Waiting) -> bool:
        return not member.away and (not member.rows or member.rows + len(item.unit) <= self.rows)

    async def _sample(self, member: _Member, item: _Waiting) -> None:
        try:
            answers, away = await _ask(member.engine, item.unit)
            if away is not None:
                if not member.away:
                    logger.warning("%s Others sample what it was asked for.", away)
                member.away, item.since = True, item.since or time.monotonic()
            if away is None or time.monotonic() - (item.since or 0.0) >= self.patience:
                _settle(item, answers)
            else:
                heapq.heappush(self._waiting, item)
        finally:
            member.rows -= len(item.unit)
            self._assign()

    # --- servers --------------------------------------------------------------------------------------

    async def _give(self, member: _Member) -> ServerAwayError | None:
        """The weights of the present policy, where the server is there."""
        assert self.policy is not None
        try:
            if member.policy is self.policy:
                await member.engine.restore()
            else:
                await member.engine.load(self.policy)
        except ServerAwayError as error:
            member.away = True
            return error
        member.policy, member.away = self.policy, False
        return None

    async def _return(self, member: _Member) -> None:
        """Ask a server that is away until it is back, and has the weights."""
        began = time.monotonic()
        try:
            while (error := await self._give(member)) is not None:
                if all(other.away for other in self.members) and time.monotonic() - began >= self.patience:
                    raise error
                await asyncio.sleep(REST)
        except Exception as error:
            for item in self._waiting:
                _settle(item, error)
        self._returning.pop(member, None)
        self._assign()

    def _stop_returning(self) -> None:
        for task in self._returning.values():
            task.cancel()
        self._returning.clear()


async def _ask(engine: ServedEngine, unit: Sequence[SampleRequest]) -> tuple[Answers | Exception, str | None]:
    """The answers or an error, and why the server counts as away, where it does."""
    try:
        answers = await engine.sample(unit)
    except Exception as error:
        return error, str(error) if isinstance(error, ServerAwayError) else None
    failed = (answer for answer in answers if isinstance(answer, Failure) and answer.kind in AWAY)
    return answers, next((failure.message for failure in failed), None)


def _settle(item: _Waiting, answers: Answers | Exception) -> None:
    if item.answers.done():
        return
    if isinstance(answers, Exception):
        item.answers.set_exception(answers)
    else:
        item.answers.set_result(answers)
