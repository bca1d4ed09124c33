"""`history.jsonl` of a run: when it was started, where and with what, and how it ended. A line for each start and end.

A process that is killed writes no end. The next start writes it: the run was killed, at the last line of metrics at the
latest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import RunError
from limbeck.files.disk import read_file
from limbeck.training.run_folder import RunFolder

logger = logging.getLogger("limbeck")

HISTORY_FILE = "history.jsonl"
MAX_MESSAGE = 500  # characters of an error
GIT_SECONDS = 5


def describe_place(device: torch.device | None) -> dict[str, Any]:
    """Where this process is and what it runs: host, pid, device, versions, and the commit of the working folder.

    `device` is None where other processes do the work, as in a fleet. `commit` is absent outside of a git repository;
    `uncommitted` says whether files that git knows have changed since.
    """
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "device": "fleet" if device is None else str(device),
        **({} if device is None else {"device_name": _name_of(device)}),
        "python": platform.python_version(),
        **_versions("limbeck"),
        "torch": torch.__version__,
        **_versions("transformers"),
        **_commit(),
    }


@contextmanager
def recorded(folder: RunFolder, step: int, steps: int, place: Mapping[str, Any]) -> Iterator[None]:
    """Writes that the run in `folder` starts after update `step`, and at the end of the block how it ended.

    Raises `RunError` where the start cannot be written. An end that cannot be written is a warning: how the run ended
    matters more.
    """
    _end_of_a_killed(folder)
    _append(folder, {"event": "start", "time": _now(), "step": step, "steps": steps, **place})
    outcome: dict[str, str] = {"outcome": "finished"}
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError):
        outcome = {"outcome": "stopped"}
        raise
    except BaseException as error:
        text = str(error).strip() or type(error).__name__
        outcome = {"outcome": "failed", "error": type(error).__name__, "message": text[:MAX_MESSAGE]}
        raise
    finally:
        try:
            _append(folder, {"event": "end", "time": _now(), "step": folder.newest_step(), **outcome})
        except (RunError, OSError) as error:
            logger.warning("how the run ended is not in %s: %s", folder.path / HISTORY_FILE, error)


def _append(folder: RunFolder, line: Mapping[str, Any]) -> None:
    path = folder.path / HISTORY_FILE
    with folder.writing(f"cannot write {path}"):
        lead = "\n" if _ends_within_a_line(path) else ""
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{lead}{json.dumps(line)}\n")


def _ends_within_a_line(path: Path) -> bool:
    return path.exists() and not read_file(path).endswith(b"\n") and path.stat().st_size > 0


def _end_of_a_killed(folder: RunFolder) -> None:
    """An end for a start that has none, before the next one."""
    path = folder.path / HISTORY_FILE
    try:
        last = json.loads(read_file(path).strip().split(b"\n")[-1])
    except (FileNotFoundError, ValueError, RecursionError):  # none yet, or its last line was cut off
        return
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. Restore it, or remove it.") from None
    if not isinstance(last, dict) or last.get("event") != "start" or not folder.metrics.exists():
        return
    when = _utc(folder.metrics.stat().st_mtime)
    if isinstance(last.get("time"), str) and last["time"] <= when:
        _append(folder, {"event": "end", "time": when, "step": folder.newest_step(), "outcome": "killed"})


def _now() -> str:
    return _utc(datetime.now(UTC).timestamp())


def _utc(seconds: float) -> str:
    """`2026-11-30T06:12:49Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_cpu_model()}, {cores} cores"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _commit() -> dict[str, Any]:
    """Of the working folder. A git that is missing, slow, or not there for this folder has none."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, env=environment)
    except (OSError, subprocess.SubprocessError):
        return {}
    commit, _, dirty = done.stdout.strip().partition("-")
    return {"commit": commit, "uncommitted": bool(dirty)} if done.returncode == 0 and commit else {}
