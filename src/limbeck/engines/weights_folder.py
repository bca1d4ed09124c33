"""Weights on their way to servers that read them from a folder: written once, read by all, then removed."""

from __future__ import annotations

import hashlib
import logging
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from limbeck.files.disk import disk_errors, sweep
from limbeck.protocols import Policy

logger = logging.getLogger("limbeck")

SHARED_MEMORY = Path("/dev/shm")
ROOM = 2  # times the weights that must be free: an output head may travel twice, and others write there too


class WeightsFolder:
    """Folders below the first of `places` that has room for `size` bytes; the last is taken whatever room it has.

    `owner` names who writes. What one that was killed left behind is removed when it starts again.
    """

    def __init__(self, places: Sequence[Path], owner: str = "", size: int = 0) -> None:
        self.places, self.size = tuple(places), size
        self.written = 0  # bytes, since the start
        self._prefix = f"limbeck-{hashlib.blake2b(owner.encode(), digest_size=6).hexdigest()}-"
        self._run = uuid.uuid4().hex[:8]
        self._readers: dict[Path, int] = {}
        self._made = not self.places[-1].exists()
        self._sweep()

    @asynccontextmanager
    async def of(self, policy: Policy, dtype: str, write: Callable[[Path], None]) -> AsyncIterator[Path]:
        """The policy's weights in `dtype`, as `write` puts them there, for as long as somebody reads them.

        Raises `RunError` where they cannot be written.
        """
        name = f"{self._prefix}{self._run}-{policy.version}-{dtype}"
        folder = next((folder for folder in self._readers if folder.name == name), None)
        if folder is None:
            folder = self._place() / name
            try:
                with disk_errors(f"cannot write the weights for the engine to {folder}", "set engine.weights_folder"):
                    write(folder)
            except BaseException:
                sweep(folder)
                raise
            self.written += sum(path.stat().st_size for path in folder.iterdir())
        self._readers[folder] = self._readers.get(folder, 0) + 1
        try:
            yield folder
        finally:
            self._readers[folder] -= 1
            if not self._readers[folder]:
                del self._readers[folder]
                sweep(folder)

    def close(self) -> None:
        """Remove what was written: the run keeps its weights elsewhere."""
        self._sweep()
        with suppress(OSError):  # others' files are in it, or nothing was written
            if self._made:
                self.places[-1].rmdir()

    def _sweep(self) -> None:
        for place in self.places:
            for folder in place.glob(f"{self._prefix}*"):
                sweep(folder)

    def _place(self) -> Path:
        *fast, last = self.places
        for place in fast:
            if shutil.disk_usage(place).free >= ROOM * self.size:
                return place
            logger.warning("%s has no room for weights of %d MB: they go by way of %s", place, self.size >> 20, last)
        return last


def places_for(urls: Iterable[str], run: Path, given: str | None, written_here: bool = True) -> list[Path]:
    """Where weights go for these servers: this machine's memory where all of them are on it, else the run's folder.

    Not where it is another machine that writes them, such as a node of a cluster that holds the learner.
    A server at a loopback address sees this machine's memory, unless it is in a container or at the other end of a
    tunnel: then a folder must be `given`.
    """
    if given is not None:
        return [Path(given).resolve()]
    here = written_here and SHARED_MEMORY.is_dir() and all(map(is_loopback, urls))
    in_memory = [SHARED_MEMORY] if here else []
    return [*in_memory, (run / "weights").resolve()]


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own, whatever network it has."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
