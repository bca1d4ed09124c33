"""What the processes of a fleet did, counted in each of them, and the metrics of a role that has several.

counter = Counter()                    # in the process
with counter.at_work(): ...            # around each call
counter.usage(part)                    # goes home with the answer

tally.add(usage)                       # in the driver
of_roles({"sampler": [tally.take(), ...]}, seconds)
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import psutil

from limbeck.machine.gpus import peak_memory


@dataclass(frozen=True)
class Usage:
    """Of a process since it was started."""

    life: str = ""  # which process it is: one that took its place has another
    worked: float = 0.0  # seconds in which it computed
    cpu: float = 0.0  # seconds of its processors
    memory: int = 0  # bytes, resident now
    gpu_memory: int = 0  # bytes of its tensors at most, on the device where that was most


@runtime_checkable
class CountsItsWork(Protocol):
    """A part that computes between calls, or waits in them: it says itself for how many seconds it has computed."""

    @property
    def worked(self) -> float: ...


class _Waited(threading.local):
    seconds = 0.0


_WAITED = _Waited()


@contextmanager
def waiting_for_others() -> Iterator[None]:
    """In a call, around what another process computes meanwhile."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _WAITED.seconds += time.perf_counter() - began


class Counter:
    """Seconds in calls, without those that `waiting_for_others` had."""

    def __init__(self) -> None:
        self.life, self.worked = uuid.uuid4().hex, 0.0
        self._process = psutil.Process()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        began, waited = time.perf_counter(), _WAITED.seconds
        try:
            yield
        finally:
            self.worked += time.perf_counter() - began - (_WAITED.seconds - waited)

    def usage(self, part: Any = None) -> Usage:
        worked = part.worked if isinstance(part, CountsItsWork) else self.worked
        return Usage(self.life, worked, time.process_time(), self._process.memory_info().rss, peak_memory())


@dataclass
class Tally:
    """What a process of the fleet, and those that took its place, did since the last reading."""

    last: Usage = Usage()
    worked: float = 0.0
    cpu: float = 0.0
    memory: int = 0  # bytes, the most seen

    def add(self, now: Usage) -> None:
        before = self.last if now.life == self.last.life else Usage()
        self.worked += max(0.0, now.worked - before.worked)  # answers may overtake each other
        self.cpu += max(0.0, now.cpu - before.cpu)
        self.memory = max(self.memory, now.memory)
        self.last = now

    def take(self) -> Tally:
        """What there is; it begins anew."""
        taken = Tally(self.last, self.worked, self.cpu, self.memory or self.last.memory)
        self.worked, self.cpu, self.memory = 0.0, 0.0, 0
        return taken


def of_roles(tallies: Mapping[str, Sequence[Tally]], seconds: float) -> dict[str, float]:
    """Metrics of `seconds` of a fleet: by role, means of the time at work and waiting, and the most of memory."""
    values: dict[str, float] = {}
    for role, mine in tallies.items():
        worked = sum(tally.worked for tally in mine) / len(mine)
        values[f"seconds/worked/{role}"] = worked
        values[f"seconds/waited/{role}"] = max(0.0, seconds - worked)
        values[f"system/cpu/{role}"] = sum(tally.cpu for tally in mine) / max(seconds, 1e-9)
        values[f"system/memory/{role}"] = float(max(tally.memory for tally in mine))
        if gpu := max(tally.last.gpu_memory for tally in mine):
            values[f"system/gpu_memory/{role}"] = float(gpu)
    return values
