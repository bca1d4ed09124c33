"""What the readers of a run's files share: when a file is read again, and how its faults are named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Stamp = tuple[int, int, int]
SHOWN_PROBLEMS = 3


def stamp_of(path: Path) -> Stamp | None:
    """Changes whenever the file does; None where there is none. Whoever reads one that cannot be looked at says why."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def first_few(items: Sequence[str], separator: str = "; ") -> str:
    """The first of several faults, and how many more there are.

    >>> first_few(["line 2 (no step)", "line 4 (not JSON)", "line 7 (no step)", "line 9 (no step)"])
    'line 2 (no step); line 4 (not JSON); line 7 (no step), and 1 more'
    """
    more = f", and {len(items) - SHOWN_PROBLEMS} more" if len(items) > SHOWN_PROBLEMS else ""
    return separator.join(items[:SHOWN_PROBLEMS]) + more


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
