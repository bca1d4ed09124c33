"""Local teachers in processes of their own: a teacher that answers before it has computed.

    pool = TeacherPool("teacher", outline, workers)
    await pool.start()
    scores = await pool.score(requests)           # at once: the processes have their plan
    scores[0].states.fetch()                      # in a learner: from the process that has it, computed now or before

Which requests make a unit, and which process computes it, are rules. States go from a teacher's process to the learner
that fetches them and never through the driver; the driver hands on who has what. The requests go along, so a process
that took the place of a dead one computes what is asked of it anew.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.cluster.ahead import StatesAhead, Unit
from limbeck.cluster.weights import AS_INTEGERS
from limbeck.cluster.worker import Link, Worker
from limbeck.errors import ModelError, TeacherError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.layout import Layout, split
from limbeck.models.scoring import refusal
from limbeck.protocols import Samples
from limbeck.records import Failure, HiddenScores, ModelInfo, Sampled, SampleRequest, ScoreRequest, Scores
from limbeck.teachers.local import LocalTeacher


@dataclass(frozen=True)
class Facts:
    """What a teacher's process says of it."""

    info: ModelInfo
    head: Head
    fingerprint: str  # of the head
    layout: Layout
    budget: int  # tokens of a unit
    dtype: torch.dtype  # of the states


class TeacherPart:
    """In its process: a local teacher, whose states are computed ahead in `cap` bytes."""

    def __init__(self, teacher: LocalTeacher, cap: int, sampler: Callable[[], Samples] | None = None) -> None:
        self.teacher, self._make_sampler = teacher, sampler
        self._sampler: Samples | None = None
        self._sampled = 0.0  # seconds
        self._model = threading.Lock()  # states are computed in a thread of their own
        self.ahead = StatesAhead(f"teacher {teacher.name}", self._compute, cap)

    def facts(self) -> Facts:
        one, head = self.teacher, self.teacher.head.detach().to(torch.device("cpu"))
        return Facts(one.info, head, one.fingerprint, one.layout, one.budget, one.lm.model.dtype)

    def plan(self, units: Sequence[Unit], forget: Sequence[str]) -> None:
        """See `StatesAhead`."""
        self.ahead.plan(units, forget)

    async def fetch(self, unit_id: str, row: int, unit: Unit | None) -> Any:
        """[S, d] as numpy has it. None for a unit that is not known here and was not given."""
        states_Sd = await self.ahead.fetch(unit_id, row, unit)
        return None if states_Sd is None else states_Sd.view(AS_INTEGERS.get(states_Sd.dtype, states_Sd.dtype)).numpy()

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """What the teacher itself answers: see `protocols.Samples`."""
        with self._model:
            if self._sampler is None:
                assert self._make_sampler is not None
                self._sampler = self._make_sampler()
            began = time.perf_counter()
            answers = await self._sampler.sample(unit)
            self._sampled += time.perf_counter() - began
            return answers

    @property
    def worked(self) -> float:
        """Seconds of its model, in whatever thread: see `machine.usage.CountsItsWork`."""
        return self.ahead.worked + self._sampled

    def seconds(self, unit_ids: Sequence[str]) -> float:
        """That computing these took."""
        return sum(self.ahead.seconds.get(unit_id, 0.0) for unit_id in unit_ids)

    def _compute(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        states = []
        with self._model:
            answers = asyncio.run(self.teacher.score(requests))
        for answer in answers:
            if not isinstance(answer, HiddenScores):
                raise TeacherError(f"teacher {self.teacher.name}: {answer}")
            states.append(answer.states.fetch().cpu())
        return states


@dataclass(frozen=True, eq=False)
class RemoteStates:
    """`protocols.States` of a row that a teacher's process computes."""

    link: Link
    unit: Unit
    row: int
    shape: tuple[int, int]
    dtype: torch.dtype

    def fetch(self) -> Tensor:
        """Waits for it where it is not computed yet. Raises `TeacherError` where it cannot be, `LostWorkerError`."""
        array: np.ndarray[Any, Any] | None = self.link.get("fetch", self.unit.id, self.row, None)
        if array is None:
            array = self.link.get("fetch", self.unit.id, self.row, self.unit)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable")
            # In memory of its own: what the object store maps may lie at odd places, where sums are rounded otherwise.
            return torch.from_numpy(array).view(self.dtype).clone()


class TeacherPool:
    """See `protocols.Teacher`. `lm` is the model's outline, over the vocabulary that is compared.

    Raises what the processes raise where they are built, and `LostWorkerError`.
    """

    def __init__(self, name: str, lm: CausalLM, workers: Sequence[Worker], max_rows: int | None = None) -> None:
        self.name, self.lm, self.workers, self.max_rows = name, lm, workers, max_rows
        self._next = itertools.cycle(workers)
        self._id, self._count = uuid.uuid4().hex[:8], itertools.count()
        self._dropped: dict[Worker, list[str]] = {worker: [] for worker in workers}  # units that nobody has any more

    async def start(self) -> None:
        """Raises `ModelError` where the processes hold different models."""
        facts = await asyncio.gather(*(worker.call("facts") for worker in self.workers))
        self.facts: Facts = facts[0]
        for worker, other in zip(self.workers, facts, strict=True):
            if other.fingerprint != self.facts.fingerprint:
                raise ModelError(
                    f"{worker.name} holds another output head ({other.fingerprint}) than {self.workers[0].name} "
                    f"({self.facts.fingerprint}): the folder {self.lm.name!r} is not the same on all nodes."
                )
        self.info = self.facts.info
        self.heads = {self.facts.fingerprint: self.facts.head}

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """`HiddenScores` whose states are computed from now on, or a `Failure` for what the model has no answer to."""
        requests = [replace(request, support="full") for request in unit]  # states are more than any
        answers: list[Scores | Failure | None] = [refusal(self.lm, request) for request in requests]
        asked = [i for i, failure in enumerate(answers) if failure is None]
        width = self.facts.head.weight_Vd.shape[1]
        plans: dict[Worker, list[Unit]] = {worker: [] for worker in self.workers}
        groups = split([requests[i] for i in asked], self.facts.budget, self.facts.layout)
        for group, worker in zip(groups, itertools.cycle(self.workers), strict=False):
            places = [asked[i] for i in group]
            name = f"{self._id}-{next(self._count)}"
            planned = Unit(name, tuple(requests[i] for i in places), width * self.facts.dtype.itemsize)
            weakref.finalize(planned, self._dropped[worker].append, name).atexit = False
            plans[worker].append(planned)
            for row, i in enumerate(places):
                shape = (int(requests[i].scored.sum()), width)
                states = RemoteStates(worker.link, planned, row, shape, self.facts.dtype)
                answers[i] = HiddenScores(self.name, states, self.facts.fingerprint, self.info.natural_temperature)
        await asyncio.gather(*(self._plan(worker, units) for worker, units in plans.items()))
        return [answer for answer in answers if answer is not None]

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """See `protocols.Samples`: the same bits whichever process answers. Raises `LostWorkerError`."""
        answers: list[Sampled | Failure] = await next(self._next).call("sample", unit)
        return answers

    async def seconds_of(self, states: Sequence[Any]) -> float:
        """That the busiest process computed for those of `states` that are of this teacher."""
        units: dict[str, set[str]] = {worker.name: set() for worker in self.workers}
        for one in states:
            if isinstance(one, RemoteStates) and one.link.name in units:
                units[one.link.name].add(one.unit.id)
        seconds: list[float] = await asyncio.gather(
            *(worker.call("seconds", sorted(units[worker.name])) for worker in self.workers)
        )
        return max(seconds)

    async def _plan(self, worker: Worker, units: Sequence[Unit]) -> None:
        dropped = self._dropped[worker]
        forget, dropped[:] = tuple(dropped), []
        await worker.call("plan", units, forget)
