"""The student's samplers: an engine over processes that each hold a copy of it.

Units are taken by whoever is free, the longest that waits first. Each is sampled with the weights that were loaded when
it was asked for, so neither their number nor who dies changes what is sampled.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from limbeck.cluster.learners import FleetPolicy
from limbeck.cluster.weights import Weights
from limbeck.cluster.worker import Worker
from limbeck.errors import EngineError
from limbeck.protocols import Policy
from limbeck.records import Failure, Sampled, SampleRequest
from limbeck.reports import WeightTransfer


@dataclass(order=True)
class _Waiting:
    order: tuple[int, int, int]  # loads before it, its length, its number
    unit: Sequence[SampleRequest] = field(compare=False)
    weights: Weights = field(compare=False)
    answers: asyncio.Future[list[Sampled | Failure]] = field(compare=False)


class Samplers:
    """See `protocols.Engine`. Several units may be sampled at the same time, and weights loaded meanwhile.

    Raises what the engines raise, and `LostWorkerError` where a process and those in its place die.
    """

    def __init__(self, workers: Sequence[Worker], max_rows: int | None) -> None:
        self.workers, self.max_rows = workers, max_rows
        self.transfer = WeightTransfer()
        self._weights: Weights | None = None
        self._holds: dict[Worker, Weights] = {}
        self._free = list(workers)
        self._waiting: list[_Waiting] = []
        self._running: set[asyncio.Task[None]] = set()
        self._loads, self._count = 0, itertools.count()

    async def start(self) -> None:
        await asyncio.gather(*(worker.start() for worker in self.workers))

    async def load(self, policy: Policy) -> None:
        """What is asked for from now on is sampled from these weights; those that are busy take them up after it."""
        if not isinstance(policy, FleetPolicy):
            raise EngineError(
                f"samplers of a fleet take weights of the fleet's learners, not a {type(policy).__name__}"
            )
        began = time.perf_counter()
        weights = self._weights = policy.weights
        self._loads += 1
        idle, self._free = self._free, []
        try:
            await asyncio.gather(*(self._give(worker, weights) for worker in idle))
        finally:
            self._free += idle
            self._assign()
        self.transfer = WeightTransfer(weights.bytes, weights.seconds + time.perf_counter() - began)

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """See `protocols.Engine`."""
        assert self._weights is not None, "an engine samples after `load`"
        length = max((len(request.token_ids) + request.sampling.max_tokens for request in unit), default=0)
        answers: asyncio.Future[list[Sampled | Failure]] = asyncio.get_running_loop().create_future()
        order = (self._loads, -length * len(unit), next(self._count))
        heapq.heappush(self._waiting, _Waiting(order, unit, self._weights, answers))
        self._assign()
        return await answers

    def _assign(self) -> None:
        while self._free and self._waiting:
            item = heapq.heappop(self._waiting)
            if not item.answers.done():  # else its caller waits no more
                task = asyncio.create_task(self._run(self._free.pop(0), item))
                self._running.add(task)  # the loop itself keeps only a weak reference
                task.add_done_callback(self._running.discard)

    async def _run(self, worker: Worker, item: _Waiting) -> None:
        try:
            await self._give(worker, item.weights)
            answers = await worker.call("sample", item.unit)
            if not item.answers.done():
                item.answers.set_result(answers)
        except Exception as error:
            if not item.answers.done():
                item.answers.set_exception(error)
        finally:
            self._free.append(worker)
            self._assign()

    async def _give(self, worker: Worker, weights: Weights) -> None:
        if self._holds.get(worker) is not weights:
            self._holds.pop(worker, None)
            worker.state = [("load", weights)]
            await worker.call("load", weights)
            self._holds[worker] = weights
