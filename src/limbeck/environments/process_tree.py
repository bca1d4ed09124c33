"""Processes below one another: who they are, their limits and their end.

Only the standard library: see `agent_worker.py`.

What a process that ended has left behind goes to the nearest one above that has called `adopt_orphans`. Only Linux
has that, and says who is whose child; elsewhere a process ends with its group alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of prctl


def end_with_parent() -> None:
    """SIGKILL at the end of the process that forked this one, however that comes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_DEATH_SIGNAL, signal.SIGKILL)


def adopt_orphans() -> None:
    """A process below this one whose parent ends becomes a child of this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_SUBREAPER, 1, 0, 0, 0)


def children(pid: int) -> list[int]:
    """Of all of its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # of a process that has just ended, or of a system that does not say
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def kill_tree(pid: int) -> None:
    """A process, its group, and, where the system says who they are, all that they started."""
    below = [pid]
    for each in below:
        below += children(each)
    for each in [*below[1:], pid]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(each, signal.SIGKILL)
    kill_group(pid)


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def how_it_ended(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"its process ended with exit code {code} before the function returned"
    named = {each.value: each.name for each in signal.Signals}  # those of real time have numbers alone
    return f"its process was ended by {named.get(-code, f'signal {-code}')} before the function returned"


def limit_memory(memory_mb: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = memory_mb * 2**20 if hard == resource.RLIM_INFINITY else min(memory_mb * 2**20, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
