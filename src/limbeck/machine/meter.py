"""What the run's process and its machine were busy with, step by step.

    meter = Meter()
    meter.start()
    meter.read()      {"system/cpu": 1.94, "system/memory": 812345678.0, ...}, since the last time
    meter.stop()

A thread of its own looks once a second, so a step only takes up what is there. A step that is shorter than a second may
read what was seen before it; processor time is counted exactly.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psutil

from limbeck.machine.gpus import Utilisation, gpus_in_use

logger = logging.getLogger("limbeck")

EVERY = 1.0  # seconds between two looks


class Meter:
    """`look` gives what the most is kept of, and what the mean is kept of, at a moment."""

    def __init__(self, look: Callable[[], tuple[dict[str, float], dict[str, float]]] | None = None) -> None:
        self._look = look or Look()
        self._lock = threading.Lock()
        self._most: dict[str, float] = {}
        self._sums: dict[str, tuple[float, int]] = {}
        self._last: tuple[dict[str, float], dict[str, float]] = ({}, {})
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._since, self._cpu = time.perf_counter(), time.process_time()

    def start(self) -> None:
        """Look from now on. Without it nothing is read."""
        self._since, self._cpu = time.perf_counter(), time.process_time()
        if self._see():
            self._thread = threading.Thread(target=self._work, name="meter", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def read(self) -> dict[str, float]:
        """Metrics of the time since the last reading; empty where nothing is looked at."""
        if self._thread is None:
            return {}
        now, cpu = time.perf_counter(), time.process_time()
        busy = (cpu - self._cpu) / max(now - self._since, 1e-9)
        self._since, self._cpu = now, cpu
        with self._lock:
            most, sums = self._most, self._sums
            self._most, self._sums = {}, {}
        most = most or self._last[0]
        means = {name: total / count for name, (total, count) in sums.items()} or self._last[1]
        return {"system/cpu": busy, **most, **means}

    def _work(self) -> None:
        while not self._ended.wait(EVERY):
            if not self._see():
                return

    def _see(self) -> bool:
        """Whether it could be seen. No run ends for it: the rest of it goes without these metrics."""
        try:
            most, means = self._look()
        except Exception as error:
            logger.warning(
                "what the machine is busy with cannot be read, and is not recorded from now on: %s: %s",
                type(error).__name__, error,
            )  # fmt: skip
            self._thread = None
            return False
        with self._lock:
            self._last = most, means
            for name, value in most.items():
                self._most[name] = max(value, self._most.get(name, value))
            for name, value in means.items():
                total, count = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + value, count + 1
        return True


class Look:
    """At this process, its machine and its GPUs."""

    def __init__(self) -> None:
        self.process = psutil.Process()
        self.utilisation = Utilisation()
        self._before = _processor_seconds()

    def __call__(self) -> tuple[dict[str, float], dict[str, float]]:
        most = {
            "system/memory": float(self.process.memory_info().rss),
            "system/memory/machine": psutil.virtual_memory().percent / 100,
        }
        means = {}
        (busy_before, all_before), (busy, all_) = self._before, _processor_seconds()
        if all_ > all_before:
            means["system/cpu/machine"] = min(1.0, max(0.0, (busy - busy_before) / (all_ - all_before)))
            self._before = busy, all_
        for number, cuda in gpus_in_use():
            free, total = cuda.mem_get_info(number)
            most[f"system/gpu/{number}/memory"] = float(cuda.max_memory_allocated(number))
            most[f"system/gpu/{number}/reserved"] = float(cuda.max_memory_reserved(number))
            most[f"system/gpu/{number}/machine"] = 1 - free / total
            cuda.reset_peak_memory_stats(number)
            if (share := self.utilisation.of(number, cuda)) is not None:
                means[f"system/gpu/{number}/utilisation"] = share
        return most, means


def _processor_seconds() -> tuple[float, float]:
    """Of all processors since the machine was started: at work, and all. Guests' are among the user's."""
    times = psutil.cpu_times()._asdict()
    every = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return every - times["idle"] - times.get("iowait", 0.0), every
