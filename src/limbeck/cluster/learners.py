"""The student's learner over processes that share it. One is the learner of one process, in a process of its own.

Every rank is asked the same with the same arguments in the same order, and the answer of the first is the group's. When
one dies the others cannot go on: all are ended at once, and the run goes on from its last checkpoint (`api`).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import ray

from limbeck.cluster.weights import Weights, put
from limbeck.cluster.worker import Worker
from limbeck.errors import LimbeckError, LostLearnerError, LostWorkerError, StalePolicyError
from limbeck.learners.local import LocalLearner
from limbeck.protocols import Policy
from limbeck.records import Adapter, Failure, ModelInfo, Scored, ScoreRequest, Scores
from limbeck.reports import StepReport, Trace

T = TypeVar("T")

GRACE = 60.0  # seconds after which ranks that do not answer wait for one that has raised


class Rank:
    """In its process: one learner of the group. Arguments of size come by reference.

    `build` is called with the place where the ranks meet.
    """

    def __init__(self, build: Callable[[str], LocalLearner]) -> None:
        self.build = build

    def start(self, where: str) -> None:
        self.learner = self.build(where)
        self.first = self.learner.ranks.is_first

    def know_heads(self, heads: Any) -> None:
        self.learner.know_heads(ray.get(heads))

    async def update(self, samples: Any) -> StepReport | None:
        return self._own(await self.learner.update(ray.get(samples)))

    async def measure(self, samples: Any) -> StepReport | None:
        return self._own(await self.learner.measure(ray.get(samples)))

    async def trace(self, samples: Any, top: int) -> list[Trace] | None:
        return self._own(await self.learner.trace(ray.get(samples), top))

    async def publish(self) -> tuple[Weights | None, ModelInfo, Adapter | None]:
        policy = await self.learner.publish()
        return put(policy.version, policy.trained(), self.first), policy.info, policy.adapter

    def restore_policy(self, folder: Path, version: int) -> Weights | None:
        return put(version, self.learner.restore_policy(folder, version).trained(), self.first)

    def save(self, folder: Path) -> None:
        self.learner.save(folder)

    def restore(self, folder: Path) -> None:
        self.learner.restore(folder)

    async def of_policy(self, weights: Weights, method: str, *args: Any) -> Any:
        """What a method of the policy with these weights does: the learner's own, or one of before."""
        policy = await self.learner.publish()
        if policy.version != weights.version:
            policy = self.learner.policy_of(weights.version, weights.trained())
        if method == "tensors":
            return put(weights.version, policy.tensors(*args), self.first)
        found = getattr(policy, method)(*args)
        return self._own(await found if inspect.isawaitable(found) else found)

    def _own(self, value: T) -> T | None:
        return value if self.first else None


class FleetPolicy:
    """The weights of one version in the object store; what has to be done with them the ranks do."""

    def __init__(
        self, group: RankGroup, weights: Weights, info: ModelInfo, adapter: Adapter | None, held: bool
    ) -> None:
        self.group, self.weights, self.info, self.adapter, self.held = group, weights, info, adapter, held
        self.version = weights.version

    def tensors(self, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
        """To this process. Samplers of the fleet take `weights` instead."""
        self._check()
        found: Weights = self.group.call_now("of_policy", self.weights, "tensors", dtype)
        yield from found.trained()

    def save(self, folder: Path, dtype: str = "float32") -> None:
        self._check()
        self.group.call_now("of_policy", self.weights, "save", folder.absolute(), dtype)

    def save_adapter(self, folder: Path) -> None:
        self._check()
        self.group.call_now("of_policy", self.weights, "save_adapter", folder.absolute())

    def hold(self) -> Policy:
        """Nothing is copied: the object store keeps what is referred to."""
        return FleetPolicy(self.group, self.weights, self.info, self.adapter, held=True)

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        self._check()
        found: list[Scores | Failure] = await self.group.call("of_policy", self.weights, "score", unit)
        return found

    def _check(self) -> None:
        if not self.held and self.group.version != self.version:
            raise StalePolicyError(
                f"the policy of version {self.version} was read after its weights became those of version "
                f"{self.group.version}. Publish again, or take policy.hold() before the update."
            )


class RankGroup:
    """See `protocols.Learner`. Raises what the ranks raise, and `LostLearnerError` once one has died."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self.version = 0
        self._submitting = threading.Lock()  # all ranks have to meet the same calls in the same order
        self._ended: Exception | None = None

    async def start(self, where: str) -> None:
        """Build all ranks at once: they wait for each other at `where`. Raises what a builder raises."""
        await self.call("start", where)

    async def know_heads(self, heads: Mapping[str, Any]) -> None:
        await self.call("know_heads", ray.put(dict(heads)))

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        report: StepReport = await self.call("update", ray.put(list(samples)))
        self.version += 1
        return report

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        report: StepReport = await self.call("measure", ray.put(list(samples)))
        return report

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        traces: list[Trace] = await self.call("trace", ray.put(list(samples)), top)
        return traces

    async def publish(self) -> FleetPolicy:
        weights, info, adapter = await self.call("publish")
        self.version = weights.version
        return FleetPolicy(self, weights, info, adapter, held=False)

    def restore_policy(self, folder: Path, version: int) -> FleetPolicy:
        """See `protocols.RestoresPolicies`."""
        weights = self.call_now("restore_policy", folder.absolute(), version)
        policy = self.call_now("publish")
        return FleetPolicy(self, weights, policy[1], policy[2], held=True)

    def save(self, folder: Path) -> None:
        self.call_now("save", folder.absolute())

    def restore(self, folder: Path) -> None:
        self.call_now("restore", folder.absolute())

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    # --- calls of all ranks ---------------------------------------------------------------------------

    async def call(self, method: str, *args: Any) -> Any:
        """The first rank's answer, once all have answered."""
        with self._submitting:
            if self._ended is not None:
                raise self._ended
            pending = {asyncio.ensure_future(worker.ask(method, args)): worker for worker in self.workers}
        for task in pending:
            task.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # of one nobody waits for any more
        answers: dict[Worker, Any] = {}
        error: Exception | None = None
        while pending:
            done, _ = await asyncio.wait(pending, timeout=GRACE if error else None, return_when="FIRST_COMPLETED")
            if not done:
                break
            for task in done:
                worker = pending.pop(task)
                try:
                    answers[worker] = task.result()
                except LostWorkerError as lost:
                    raise self._end(LostLearnerError(str(lost))) from None
                except Exception as raised:
                    error = error or raised
        if error is None:
            return answers[self.workers[0]]
        if answers or pending or not isinstance(error, LimbeckError):
            raise self._end(error)  # the ranks are no longer at the same place
        raise error

    def call_now(self, method: str, *args: Any) -> Any:
        """`call` for whoever is not in a coroutine, or must not leave it."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, self.call(method, *args)).result()

    def _end(self, error: Exception) -> Exception:
        """Nobody can go on; whoever asks again gets the same error."""
        if len(self.workers) > 1 or isinstance(error, LostWorkerError):
            self._ended = error
            self.kill()
        return error
