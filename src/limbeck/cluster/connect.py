"""To a Ray cluster and back.

    with connected("local", {"cluster.learners": 2, "cluster.samplers": 2}, store_bytes) as there:
        ...

A local one is the run's own: it listens on the loopback alone, asks for a token that only this user can read, shows no
page, sends no statistics, and ends with the run. One that is there already keeps its own settings and goes on.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from limbeck.errors import RecipeError

EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # what Ray prints of a dead process: `worker` says what matters
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a notice on the console
    "RAY_ENABLE_AUTO_CONNECT": "0",  # a call after the end is an error, and starts no other Ray
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray's name for: every listener on 127.0.0.1
SHARED_MEMORY = Path("/dev/shm")
STORE = 512 * 2**20  # bytes of the object store beside the weights: samples, states of teachers
PREFIX = "limbeck-ray-"  # of folders for temporary files
KNOCKING = 5.0  # seconds

Resources: TypeAlias = Callable[[], Mapping[str, float]]

logger = logging.getLogger("limbeck")


@contextlib.contextmanager
def connected(address: str, processes: Mapping[str, int], store_bytes: int = 0) -> Iterator[Resources]:
    """A Ray, and how to ask what it has: a local one has a processor for each of `processes`, by the recipe's key.

    Raises `RecipeError` where Ray is not installed or cannot be reached.
    """
    own = address == "local"
    with _environment({**EVERYWHERE, **({**LOOPBACK, **_token()} if own else {})}):
        ray = _import_ray()
        if ray.is_initialized():  # the caller's, who also ends it
            yield ray.cluster_resources
            return
        try:
            with _own_signals():
                if own:
                    _start(ray, sum(processes.values()), store_bytes)
                else:
                    _join(ray, address)
            yield ray.cluster_resources
        finally:
            ray.shutdown()
            if own:
                shutil.rmtree(_folder() / "ray", ignore_errors=True)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Handlers of signals are after it those of before: Ray puts its own there, which ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # one of C, which Python does not know
                signal.signal(number, handler)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise RecipeError(
            f"[cluster] needs Ray, which is not installed ({error}): pip install 'limbeck[cluster]'. Or remove the "
            "table to run in one process."
        ) from None
    return ray


@cache
def _folder() -> Path:
    """This process's own, which only this user can read. What others that were killed left behind is removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, or another user's
            _locked(left)
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))  # a short path: Ray's sockets are below it
    _locked(folder)
    pid = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == pid else None)
    return folder


def _locked(folder: Path) -> None:
    """Locked to the end of this process. Raises `OSError` where another one has the lock."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise


@cache
def _token() -> Mapping[str, str]:
    """Ray reads it once a process, so that each of its clusters here has the same."""
    path = _folder() / "token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def _start(ray: Any, processes: int, store_bytes: int) -> None:
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]

    # Where Ray was imported before, it has read its environment already.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    size = STORE + store_bytes
    if SHARED_MEMORY.is_dir() and size > (free := shutil.disk_usage(SHARED_MEMORY).free):
        logger.warning(
            "weights and samples take up to %.1f GB between processes, but %s has %.1f GB: Ray goes by way of the "
            "disk. Enlarge it (docker run --shm-size).", size / 1e9, SHARED_MEMORY, free / 1e9,
        )  # fmt: skip
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=max(processes, os.cpu_count() or 1),  # more processes than cores only take longer
                include_dashboard=False,
                object_store_memory=size,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(_folder() / "ray"),
            )
        except Exception as error:
            if not last and "timed out" in str(error):  # Ray waits for 30 seconds, which a busy machine may need
                ray.shutdown()
                continue
            likely = "Is there memory in /dev/shm, is the machine too busy, are processes allowed?"
            if "AF_UNIX" in str(error):
                likely = "Set TMPDIR to a folder with a short path."
            raise RecipeError(f"a local Ray cannot be started: {_reason(error)}. {likely}") from error
        return


def _join(ray: Any, address: str) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # OSError, ValueError, AuthenticationError, gRPC's own
        raise RecipeError(
            f"cluster.address = {address!r}: no Ray cluster can be reached there: {_reason(error)}. Start one with "
            "`ray start`, give this process its token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH) and the same version "
            "of Ray, or set cluster.address = 'local'."
        ) from error


def _knock(address: str) -> None:
    """Raises `OSError` where nothing listens: Ray itself would try for minutes, and print what it tries."""
    from ray._private.services import canonicalize_bootstrap_address

    place = address.removeprefix("ray://") if address != "auto" else canonicalize_bootstrap_address("auto")
    if place is None:
        raise ConnectionError("this machine is not a node of one, and RAY_ADDRESS is not set")
    host, _, port = place.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=KNOCKING).close()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no reason given'}"


async def require(
    there: Resources, processes: Mapping[str, int], gpus: Mapping[str, int], address: str, patience: float
) -> None:
    """Raises `RecipeError` naming the key to lower: a process without a place would be waited for without an end.

    `processes` and `gpus` by the recipe's keys. What is missing may come within `patience` seconds.
    """
    end, said = time.monotonic() + patience, False
    while (lack := _lack(there(), processes, gpus, address)) is not None:
        if time.monotonic() >= end:
            raise RecipeError(lack)
        if not said:
            logger.warning("%s Waiting for up to %.0f s.", lack, patience)
            said = True
        await asyncio.sleep(1.0)


def _lack(
    resources: Mapping[str, float], processes: Mapping[str, int], gpus: Mapping[str, int], address: str
) -> str | None:
    for what, name, wanted in (("CPU", "processors", processes), ("GPU", "GPUs", gpus)):
        total = sum(wanted.values())
        if total > (there := int(resources.get(what, 0))):
            parts = ", ".join(f"{key} = {processes[key]}" for key in wanted)
            most = max(wanted, key=lambda key: wanted[key])
            or_else = ", or set device = 'cpu'" if what == "GPU" else ""
            return (
                f"the fleet needs {total} {name} ({parts}), but the Ray cluster at {address!r} has {there}. "
                f"Lower {most}, or add nodes to the cluster{or_else}."
            )
    return None
