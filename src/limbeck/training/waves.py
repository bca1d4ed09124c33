"""Turns of many sessions, decoded together: what is together follows from the requests, never from timing.

Sessions are in groups, fixed by rule before they begin. A wave is one turn of a group, decoded once every session of
the group that still runs waits for one. Groups do not wait for each other. An engine that batches by itself is given
turns as they come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeAlias

from limbeck.errors import EngineError
from limbeck.protocols import Samples
from limbeck.records import Failure, Sampled, SampleRequest
from limbeck.training.units import plan_units

Turn: TypeAlias = tuple[SampleRequest, "asyncio.Future[Sampled | Failure]"]  # asked, and its answer


class Waves:
    """Of one group. With `at_once` a turn waits for nobody, but those of one moment go together: `linger` seconds."""

    def __init__(self, engine: Samples, sessions: Iterable[int], at_once: bool = False, linger: float = 0.0) -> None:
        self.engine, self.at_once, self.linger, self.running = engine, at_once, linger, set(sessions)
        self.waiting: dict[int, list[Turn]] = {}  # by session, of those that are running
        self.decoding: set[asyncio.Task[None]] = set()
        self.failed: Exception | None = None

    async def submit(self, session: int, request: SampleRequest) -> Sampled | Failure:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Sampled | Failure] = loop.create_future()
        if session not in self.running:  # a task that its session left behind
            future.cancel()
        else:
            if self.at_once and not self.waiting:
                loop.call_later(self.linger, self._decode_all)
            self.waiting.setdefault(session, []).append((request, future))
            loop.call_soon(self._decode_if_all_wait)  # a session may ask for several turns in one moment
        return await future

    def ended(self, session: int) -> None:
        """It asks no more; a turn that it did not wait for is dropped, or the others would wait for it forever."""
        self.running.discard(session)
        for _, future in self.waiting.pop(session, []):
            future.cancel()
        self._decode_if_all_wait()

    def _decode_if_all_wait(self) -> None:
        if not self.at_once and len(self.waiting) == len(self.running):
            self._decode_all()

    def _decode_all(self) -> None:
        waiting, self.waiting = self.waiting, {}
        wave = [turn for session in sorted(waiting) for turn in sorted(waiting[session], key=_number)]
        if wave:
            task = asyncio.create_task(self._decode(wave))
            self.decoding.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self.decoding.discard)

    async def _decode(self, wave: list[Turn]) -> None:
        requests = [request for request, _ in wave]
        units = plan_units(requests, self.engine.max_rows)
        try:
            answers = await asyncio.gather(*(self._sample([requests[i] for i in unit]) for unit in units))
        except Exception as error:
            self.failed = error
            for _, future in wave:
                if not future.done():
                    future.set_exception(error)
            return
        for unit, part in zip(units, answers, strict=True):
            for index, answer in zip(unit, part, strict=True):
                future = wave[index][1]
                if not future.done():  # a session that was cancelled asks no more
                    future.set_result(answer)

    async def _sample(self, unit: list[SampleRequest]) -> list[Sampled | Failure]:
        answers = await self.engine.sample(unit)
        if len(answers) != len(unit):
            raise EngineError(
                f"engine {type(self.engine).__name__} gave {len(answers)} answers to {len(unit)} requests: it must "
                "give one each, in order"
            )
        return answers


def _number(turn: Turn) -> int:
    return turn[0].key.turn
