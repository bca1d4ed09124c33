"""A teacher's hidden states, computed ahead of whoever fetches them, in bounded memory. No Ray here.

    states = StatesAhead(teacher, cap)
    states.plan([unit, ...])                      # computed in this order, in a thread of its own
    await states.fetch(unit.id, row, unit)        # the row; its memory is free then

Units that are planned are computed while what nobody has fetched yet stays below `cap` bytes. What is asked for and not
there is computed at once, so any order of fetching comes to an end; where the cap leaves no room for it, rows that were
computed ahead, the last of the plan first, are dropped and computed again later.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from limbeck.errors import LimbeckError, TeacherError
from limbeck.models.causal_lm import first_line
from limbeck.records import ScoreRequest


@dataclass(frozen=True, eq=False)
class Unit:
    """Requests that go through the model together. What they are is a rule, so whoever computes them has the bits."""

    id: str
    requests: tuple[ScoreRequest, ...]
    width: int  # bytes of the states of one token

    @property
    def bytes(self) -> int:
        return sum(self.bytes_of(row) for row in range(len(self.requests)))

    def bytes_of(self, row: int) -> int:
        return int(self.requests[row].scored.sum()) * self.width


Compute: TypeAlias = Callable[[Sequence[ScoreRequest]], Sequence[Tensor]]


@dataclass(eq=False)
class _Job:
    """A unit that is to be computed, and who waits for which of its rows."""

    unit: Unit
    wanted: list[tuple[int, Future[Tensor]]] = field(default_factory=list)


@dataclass(eq=False)
class _Stored:
    """What was computed of a unit and not fetched yet."""

    unit: Unit
    rows: dict[int, Tensor]

    @property
    def bytes(self) -> int:
        return sum(self.unit.bytes_of(row) for row in self.rows)


class StatesAhead:
    """`compute` gives the states [S, d] of each request of a unit, and is called in one thread."""

    def __init__(self, name: str, compute: Compute, cap: int) -> None:
        self.name, self.compute, self.cap = name, compute, cap
        self.seconds: dict[str, float] = {}  # that each unit took
        self.worked = 0.0  # seconds, of all units
        self.peak = 0  # bytes, of what was stored and computed at one time
        self._jobs: dict[str, _Job] = {}  # in the order of the plan
        self._stored: dict[str, _Stored] = {}
        self._fetched: dict[str, set[int]] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(torch.get_num_threads(),), daemon=True)
        self._thread.start()

    def plan(self, units: Iterable[Unit], forget: Iterable[str] = ()) -> None:
        """Compute these after what is planned already, and forget all of some others: nobody will ask for them."""
        with self._changed:
            for one in forget:
                for kept in (self._stored, self._fetched, self.seconds):
                    kept.pop(one, None)
                if (job := self._jobs.get(one)) is not None and not job.wanted:
                    del self._jobs[one]
            for unit in units:
                if not (unit.id in self._jobs or unit.id in self._stored or unit.id in self._fetched):
                    self._jobs[unit.id] = _Job(unit)
            self._changed.notify()

    async def fetch(self, unit_id: str, row: int, unit: Unit | None) -> Tensor | None:
        """[S, d], from now on the caller's alone. None where the unit is not known here and was not given.

        Raises what computing it raised: nothing of the unit is kept then.
        """
        future = self._ask(unit_id, row, unit)
        if future is None:
            return None
        states_Sd: Tensor = await asyncio.wrap_future(future)
        return states_Sd

    @property
    def stored(self) -> int:
        """Bytes that were computed and not fetched yet."""
        return sum(stored.bytes for stored in self._stored.values())

    def _ask(self, unit_id: str, row: int, unit: Unit | None) -> Future[Tensor] | None:
        future: Future[Tensor] = Future()
        with self._changed:
            stored, job = self._stored.get(unit_id), self._jobs.get(unit_id)
            if stored is not None and row in stored.rows:
                future.set_result(self._take(stored, row))
            elif job is not None or unit is not None:
                job = job or self._jobs.setdefault(unit_id, _Job(unit))  # type: ignore[arg-type]
                job.wanted.append((row, future))
            else:
                return None
            self._changed.notify()
        return future

    def _take(self, stored: _Stored, row: int) -> Tensor:
        self._fetched.setdefault(stored.unit.id, set()).add(row)
        states_Sd = stored.rows.pop(row)
        if not stored.rows:
            del self._stored[stored.unit.id]
        return states_Sd

    # --- the thread -----------------------------------------------------------------------------------

    def _work(self, threads: int) -> None:
        torch.set_num_threads(threads)
        while True:
            with self._changed:
                while (job := self._next()) is None:
                    self._changed.wait()
                self._make_room(job.unit)
            began = time.perf_counter()
            found: Sequence[Tensor] | Exception
            try:
                found = self.compute(job.unit.requests)
            except Exception as error:
                found = self._failed(job.unit, error)
            took = time.perf_counter() - began
            with self._changed:
                del self._jobs[job.unit.id]
                self.seconds[job.unit.id] = self.seconds.get(job.unit.id, 0.0) + took
                self.worked += took
                self._deliver(job, found)

    def _next(self) -> _Job | None:
        """What somebody waits for, else the next of the plan that there is room for."""
        for job in self._jobs.values():
            if job.wanted:
                return job
        first, stored = next(iter(self._jobs.values()), None), self.stored
        return first if first is not None and (not stored or stored + first.unit.bytes <= self.cap) else None

    def _make_room(self, unit: Unit) -> None:
        """Drop what was computed ahead, but for what will be asked for soonest; it is planned again."""
        size = unit.bytes
        for stored in reversed(list(self._stored.values())):
            if self.stored + size <= self.cap:
                break
            del self._stored[stored.unit.id]
            self._jobs[stored.unit.id] = _Job(stored.unit)
        self.peak = max(self.peak, self.stored + size)

    def _deliver(self, job: _Job, found: Sequence[Tensor] | Exception) -> None:
        """To those who wait; the rest is stored, but for rows that were fetched before."""
        for _, future in job.wanted:
            if isinstance(found, Exception):
                future.set_exception(found)
        if isinstance(found, Exception):
            return
        fetched = self._fetched.setdefault(job.unit.id, set())
        for row, future in job.wanted:
            fetched.add(row)
            future.set_result(found[row])
        rows = {row: _alone(states_Sd) for row, states_Sd in enumerate(found) if row not in fetched}
        if rows:
            self._stored[job.unit.id] = _Stored(job.unit, rows)

    def _failed(self, unit: Unit, error: Exception) -> LimbeckError:
        if isinstance(error, LimbeckError):
            return error
        tokens = sum(len(request.token_ids) for request in unit.requests)
        remedy = ""
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            remedy = " Hold the teacher in bfloat16 (dtype), give it more devices, or serve it with `limbeck serve`."
        return TeacherError(
            f"{self.name} could not score {len(unit.requests)} responses of {tokens} tokens: {type(error).__name__}: "
            f"{first_line(error)}. Nothing was updated.{remedy}"
        )


def _alone(tensor: Tensor) -> Tensor:
    """In memory of its own, so that it can be let go of without the rest of its unit."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
