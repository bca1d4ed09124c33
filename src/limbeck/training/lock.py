"""The lock of a run's folder: one process at a time, whatever happens to the folder's name meanwhile.

The lock is a file in the folder, so that it goes where the folder goes (another mount, another name). A folder may be
renamed or removed while it is locked. So a lock counts only while the file at its path is the file that is locked:
this is looked at after locking, and before everything that the run writes.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from limbeck.errors import RunError

LOCK_FILE = ".lock"


class FolderLock:
    """Held by one process from `acquire` to `release`, or to the process's end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK_FILE
        self._handle: int | None = None

    def acquire(self) -> None:
        """Raises `RunError` where another process holds it, and `OSError`."""
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_at_its_path(handle):
                    self._handle = handle
                    return
            except BlockingIOError:
                raise RunError(
                    f"{self.folder} is in use by another process. Wait for it, or give this run another name=..."
                ) from None
            finally:
                if self._handle is None:  # renamed away between opening and locking: look again
                    os.close(handle)

    def check(self) -> None:
        """Raises `RunError` where the lock is held and the folder is no longer at its path."""
        if self._handle is not None and not self._is_at_its_path(self._handle):
            raise RunError(
                f"{self.folder} was removed, renamed or replaced while this run was going on, or its {LOCK_FILE} was: "
                "nothing more is written to it. Put it back, and start the run again."
            )

    def release(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _is_at_its_path(self, handle: int) -> bool:
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(handle))
