"""A probe that goes along with every set of questions: sent last, answered before any of the answers is returned.

    riding = RidingProbe(probe)                              # `probe` asks every replica whether it is still the same
    answers = await riding.along_with([ask(a), ask(b)])      # raises what the probe raises

It costs no round trip: it is sent once the bytes of the last question are on their way, while the answers are awaited.
A question that is sent again (the server was busy, or the connection broke) may be answered by another server than the
probe was: then one more follows the answers. One probe is under way at a time. Sets of questions that come meanwhile
share the next, which is sent after them all: so who scores sample by sample has the promise that a step has, for far
fewer probes than samples.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from limbeck.wire.http import SENT

T = TypeVar("T")


class RidingProbe:
    """Without `probe` the questions go alone."""

    def __init__(self, probe: Callable[[], Awaitable[None]] | None) -> None:
        self._ask = probe
        self._under_way: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None  # sent once that is answered

    async def along_with(self, questions: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """Their answers, in order. The first that raises, or the probe, stops the others."""
        unsent, all_sent = set(range(len(questions))), asyncio.Event()
        times = probed = 0  # that questions were sent, and that the probe came after

        def done(index: int) -> None:
            unsent.discard(index)
            if not unsent:
                all_sent.set()

        def sent(index: int) -> None:
            nonlocal times
            times += 1
            done(index)

        async def one(index: int) -> T:
            SENT.set(partial(sent, index))  # of this task alone
            try:
                return await questions[index]
            finally:
                done(index)  # also where nothing had to be asked

        async def probe() -> None:
            nonlocal probed
            if questions:
                await all_sent.wait()
            probed = times
            await asyncio.shield(self._one_from_now())

        asked = [asyncio.ensure_future(one(index)) for index in range(len(questions))]
        tasks = [*asked, *([] if self._ask is None else [asyncio.ensure_future(probe())])]
        try:
            await asyncio.gather(*tasks)
            if self._ask is not None and times > probed:
                await probe()
        finally:
            for task in tasks:
                task.cancel()
        return [task.result() for task in asked]

    def _one_from_now(self) -> asyncio.Future[None]:
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._under_way))
            self._next.add_done_callback(_retrieve)
        return self._next

    async def _after(self, before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._under_way, self._next = self._next, None
        assert self._ask is not None
        await self._ask()


def _retrieve(probe: asyncio.Future[None]) -> None:
    """Where all who wait for it were cancelled, nobody else asks what became of it."""
    if not probe.cancelled():
        probe.exception()
