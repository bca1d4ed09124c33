"""What a file system answers, as one message with the remedy it needs; small files and folders whole or not there."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

from limbeck.errors import LimbeckError, RunError

logger = logging.getLogger("limbeck")

NUMBER = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)  # in the text of safetensors, tokenizers and pyarrow
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP)
GONE = (errno.ENOENT, errno.ESTALE)
TOO_LONG = (errno.ENAMETOOLONG, errno.EINVAL)


@contextmanager
def disk_errors(what: str, elsewhere: str = "write somewhere else") -> Iterator[None]:
    """Raises `RunError` in place of what the file system raised inside: `what`, the reason, and the remedy for it."""
    try:
        yield
    except LimbeckError:
        raise
    except Exception as error:
        reason = os_error_of(error)
        if reason is None:
            raise
        raise RunError(f"{what}: {str(error).strip()}. {remedy(reason, elsewhere)}") from error


def os_error_of(error: BaseException) -> OSError | None:
    """The file system's own error; packages written in Rust and C++ have only its number in their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if number := NUMBER.search(str(error)):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return OSError(errno.EIO, str(error))
    return None


def remedy(error: OSError, elsewhere: str) -> str:
    """What to do about it: space is the trouble of a full disk only."""
    number = error.errno
    if number in NO_SPACE:
        return "Free some space, and start it again."
    if number == errno.EFBIG:
        return "A file may not become that large here: see `ulimit -f` and the limits of the file system."
    if number in NOT_ALLOWED:
        return f"Fix the permissions{_owner(error)}, or {elsewhere}."
    if number == errno.EROFS:
        return f"The file system is read-only: mount it for writing, or {elsewhere}."
    if number in IN_THE_WAY:
        return f"Something else is at that place: move it away, or {elsewhere}."
    if number in (errno.EBUSY, errno.EXDEV):
        return f"It is in use, or something is mounted there: {elsewhere}."
    if number in GONE:
        return "Was it removed or renamed meanwhile? Start it again."
    if number in TOO_LONG:
        return f"The name cannot be used here: {elsewhere}."
    if number in (errno.EMFILE, errno.ENFILE):
        return "Too many files are open: raise `ulimit -n`."
    return f"Check the disk, or {elsewhere}."


def _owner(error: OSError) -> str:
    """` (FILE belongs to NAME)`, where that can be found out."""
    if not isinstance(error.filename, str | os.PathLike):
        return ""
    path = Path(error.filename)
    for candidate in (path, path.parent):
        with suppress(OSError, KeyError):
            return f" ({candidate} belongs to {candidate.owner()})"
    return ""


def make_folder(path: Path, elsewhere: str) -> None:
    """A folder and those around it. Raises `RunError` where the file system has none made, as /proc; else `OSError`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:
        raise RunError(
            f"cannot make the folder {error.filename}: {error.strerror}. No folder can be made in "
            f"{Path(error.filename).parent}: {elsewhere}."
        ) from error


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A file to read. Raises `OSError`, also for a pipe or a device: those would be waited for, or have no end."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        yield file


def read_file(path: Path) -> bytes:
    """All of a file. Raises `OSError` as `open_file` does."""
    with open_file(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Of all bytes of a file, in hex. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """A small file, complete or not at all."""
    write_by(path, lambda half: half.write_bytes(data))


def write_by(path: Path, write: Callable[[Path], object]) -> None:
    """A file that `write` makes at the path it is given, complete or not at all."""
    half = path.with_name(f".{path.name}.half")
    write(half)
    flush(half)
    half.replace(path)


def flush_tree(folder: Path) -> None:
    """Everything below `folder`, and the folder, to the disk itself."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot sync folders
            os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """A file, a link or a folder with all that is in it. Raises `OSError`."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def take_away(path: Path, hidden: Path) -> None:
    """Remove what others read: renamed first, so that nothing half-removed has the name. Raises `OSError`."""
    remove(hidden)
    path.rename(hidden)
    remove(hidden)


def sweep(path: Path) -> None:
    """Remove a leftover that nobody reads; a warning where that cannot be."""
    try:
        remove(path)
    except OSError as error:
        logger.warning("%s is left over and cannot be removed: %s", path, error)
