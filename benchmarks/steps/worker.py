"""A worker process: one line of JSON in, one out. What it prints goes to stderr."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MB = 2**20


class Line:
    """The worker's end of the pipe to the parent."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._out, flush=True)

    def hear(self) -> dict[str, Any] | None:
        """The next command, None when the parent has gone."""
        line = sys.stdin.readline()
        command: dict[str, Any] | None = json.loads(line) if line else None
        return command


class Clock:
    """Seconds by phase, from functions that are wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def take(self) -> dict[str, float]:
        """What has been summed since the last call."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def wrap(self, function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(phase):
                return function(*args, **kwargs)

        return timed


def reset_peak() -> float:
    """Lower the process's high-water mark to what is resident, and give that in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / MB


def peak_mb() -> float:
    """The high-water mark of resident memory since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
