"""Runs a tracker in a thread of its own: the run puts lines into a queue and goes on.

The queue is bounded. A tracker that is slower than the run loses lines, and one that fails loses the rest.
One warning at the end counts both. `metrics.jsonl` has every line in any case.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

logger = logging.getLogger("limbeck.trackers")

QUEUED_LINES = 10_000
PATIENCE = 20.0  # seconds that a run's end waits for what is still queued
GIVE_UP_AFTER = 5  # failures in a row


class Sink(Protocol):
    """What a tracker's module writes to. Called from one thread; may block and may raise."""

    def open(self, start: int) -> None:
        """The run begins after `start` updates."""
        ...

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None: ...

    def close(self) -> None: ...


class BackgroundTracker:
    """An observer that never raises, and blocks for nothing but the end of what it has queued, and not for long.

    A fleet that lost its learner begins again from a checkpoint, and its trackers with it: one `_Writer` each time.
    """

    def __init__(self, name: str, sink: Sink, queued: int = QUEUED_LINES, patience: float | None = None) -> None:
        self.name, self.sink, self.queued = name, sink, queued
        self.patience = PATIENCE if patience is None else patience
        self._writer: _Writer | None = None

    def started(self, step: int, steps: int) -> None:
        if self._writer is not None and not self._writer.end(self.patience):
            return  # two threads must not write to one sink: the first loses what comes, and counts it
        self._writer = _Writer(self.name, self.sink, step, self.queued)

    def phase(self, step: int, name: str) -> None:
        """Phases are in the lines, as seconds."""

    def stepped(self, line: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.take(line)

    evaluated = stepped

    def closed(self) -> None:
        if self._writer is not None:
            self._writer.end(self.patience)
        self._writer = None


class _Writer:
    """One thread, its queue, and what it lost."""

    def __init__(self, name: str, sink: Sink, start: int, queued: int) -> None:
        self.name, self.sink = name, sink
        self._lines: queue.Queue[Mapping[str, Any]] = queue.Queue(queued)
        self._ended = threading.Event()
        self._dropped = self._failed = self._taken = 0
        self._first_error = ""
        self._thread = threading.Thread(target=self._work, args=(start,), name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def take(self, line: Mapping[str, Any]) -> None:
        self._taken += 1
        if self._ended.is_set():
            self._dropped += 1
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def end(self, patience: float) -> bool:
        """Waits for what is queued, but not for long, and warns of what was lost. Whether the thread has ended."""
        self._ended.set()
        self._thread.join(patience)
        late = self._lines.qsize() if self._thread.is_alive() else 0
        lost = self._dropped + self._failed + late
        if lost or self._first_error or self._thread.is_alive():
            reasons = [
                f"{self._dropped} because it was too slow" if self._dropped else "",
                f"{late} still queued when the run ended" if late else "",
                f"{self._failed} failed" if self._failed else "",
                f"the first error: {self._first_error}" if self._first_error else "",
                "it did not finish in time" if self._thread.is_alive() and not late else "",
            ]
            logger.warning(
                "tracker %s: %d of %d lines were not logged (%s). metrics.jsonl has them all.",
                self.name,
                lost,
                self._taken,
                "; ".join(reason for reason in reasons if reason),
            )
        return not self._thread.is_alive()

    def _work(self, start: int) -> None:
        if not self._attempt(partial(self.sink.open, start)):
            self._discard_all()
            return
        failures = 0
        while (line := self._next()) is not None:
            if self._attempt(partial(self.sink.log, int(line["step"]), values_of(line), _alarms(line))):
                failures = 0
                continue
            self._failed += 1
            failures += 1
            if failures == GIVE_UP_AFTER:
                self._discard_all()
                break
        self._attempt(self.sink.close)

    def _next(self) -> Mapping[str, Any] | None:
        """The next line; None when the run has ended and nothing is left."""
        while True:
            try:
                return self._lines.get(timeout=0.1)
            except queue.Empty:
                if self._ended.is_set() and self._lines.empty():
                    return None

    def _discard_all(self) -> None:
        """Everything from now on is lost, and counted, until the run ends."""
        while not (self._ended.is_set() and self._lines.empty()):
            try:
                self._lines.get(timeout=0.1)
            except queue.Empty:
                time.sleep(0)
            else:
                self._failed += 1

    def _attempt(self, call: Callable[[], None]) -> bool:
        """Whether it worked. Whatever a tracker's package raises must not reach the run."""
        try:
            call()
        except (Exception, SystemExit) as error:
            if not self._first_error:
                self._first_error = f"{type(error).__name__}: {error}"
                logger.warning("tracker %s: %s. The run goes on.", self.name, self._first_error)
            return False
        return True


def values_of(line: Mapping[str, Any]) -> dict[str, float]:
    """`train/reverse_kl/exact` and so on: the numbers of a line under the kind of the line."""
    return {
        f"{line['kind']}/{key}": float(value)
        for key, value in line.items()
        if key != "step" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _alarms(line: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{alarm['name']}: {alarm['message']}" for alarm in line.get("alarms", ()))
