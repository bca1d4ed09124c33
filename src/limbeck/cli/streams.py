"""stdout and stderr that never end a command: what cannot be written is dropped, and remembered.

A reader that went away (`| head`), a full disk and a closed terminal raise where something is printed, in the middle
of a run that needs no reader. Here they are met once, at the lowest place, whoever prints: click, rich, logging.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

PIPE_CLOSED = 141  # as a shell reports a program that SIGPIPE ended
FAILED = 1


class LastingRaw(io.RawIOBase):
    """Writes to a file descriptor until that fails; from then on to nowhere. `error` is the first failure."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = 0
        while written < len(view) and self.error is None:
            try:
                written += os.write(self.handle, view[written:])
            except BlockingIOError:
                select.select([], [self.handle], [])
            except OSError as error:
                self.error = error
        return len(view)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.handle

    def isatty(self) -> bool:
        return self.error is None and os.isatty(self.handle)


@contextmanager
def lasting_streams() -> Iterator[LastingRaw | None]:
    """Puts them in the place of the process's own two; gives stdout's, or None where stdout is not the process's."""
    _fill_closed_handles()
    outer = sys.stdout, sys.stderr
    stdout, stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)
    sys.stdout, sys.stderr = stdout or outer[0], stderr or outer[1]
    try:
        yield stdout.buffer.raw if stdout else None  # type: ignore[attr-defined]
    finally:
        for stream in (stdout, stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = outer


def exit_status(raw: LastingRaw) -> int:
    """Of a command whose result is what it prints, once it has printed: 0 where all of it was written."""
    sys.stdout.flush()
    if raw.error is None:
        return 0
    if raw.error.errno == errno.EPIPE:
        return PIPE_CLOSED
    sys.stderr.write(f"error: the result could not be printed: {raw.error.strerror}\n")
    return FAILED


def _lasting(stream: Any, handle: int) -> io.TextIOWrapper | None:
    """None for a stream that somebody else put there, as a test does."""
    closed = stream is None  # Python has no stream for a handle that was closed before it started
    if not closed:
        with suppress(AttributeError, OSError, ValueError):
            if stream.fileno() == handle:
                stream.flush()
                raw = LastingRaw(handle)
                errors = "backslashreplace" if stream.errors == "strict" else stream.errors  # ASCII has no plus-minus
                return io.TextIOWrapper(
                    io.BufferedWriter(raw), stream.encoding, errors, line_buffering=stream.line_buffering
                )
        return None
    return io.TextIOWrapper(io.BufferedWriter(LastingRaw(-1)), "utf-8", "replace")


def _fill_closed_handles() -> None:
    """A closed handle would be given to the next file that is opened, and what is printed would go into that file."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
