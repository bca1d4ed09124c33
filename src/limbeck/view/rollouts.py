"""The recorded rollouts of a run: an index without tokens, and one rollout with all of them.

5,000 rollouts are opened by reading the short columns only; a rollout's tokens are read when it is
looked at. A file that cannot be read is named among the problems, and the others are shown.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.files.names import numbered

# What the list shows, sorts and filters by; other columns are not in the index.
INDEX = (
    "step", "source", "prompt_id", "task", "teacher", "sample", "policy_version", "temperature", "prompt_text",
    "answer", "response_text", "finish", "reward", "advantage", "sampled_tokens", "log_ratio_mean",
    "reverse_kl_mean", "kl_max",
)  # fmt: skip
NEEDED = ("step", "prompt_text", "response_text")
CLIPPED = {"prompt_text": 300, "response_text": 600}  # characters in the index; a search reads all of it
READERS = 4  # files read at once

Stamp = tuple[int, int]  # modification time and size: a file is read again when they change


@dataclass(frozen=True)
class _File:
    stamp: Stamp
    rows: list[dict[str, Any]]
    problem: str | None


class Rollouts:
    """The folder `rollouts/` of one run. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The files there are, in the order of their steps."""
        return [path.name for _, path in numbered(self.folder, ".parquet")]

    def index(self, known: int = 0, last: str = "") -> dict[str, Any]:
        """Rows without tokens, each with its `id`; only of new files where the first `known` end in `last`."""
        with self._lock:
            names = self.names()
            reset = not (0 < known <= len(names) and names[known - 1] == last)
            fresh = names if reset else names[known:]
            self._read_new(fresh)
            present = [self._files[name] for name in fresh if name in self._files]
        return {
            "rows": [row for file in present for row in file.rows],
            "known": len(names),
            "last": names[-1] if names else "",
            "reset": reset,
            "problems": self._problems(names),
        }

    def rollout(self, id_: str) -> dict[str, Any]:
        """One rollout with all its columns. Raises `RunError` where it is not there any more."""
        name, _, number = id_.rpartition(":")
        if name not in self.names() or not number.isdigit():
            raise RunError(f"there is no recorded rollout {id_!r}; it may have been thinned out. Reload the page.")
        try:
            rows = _read(self.folder / name)
        except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ...
            raise RunError(f"{name} cannot be read: {error}") from None
        if int(number) >= rows.num_rows:
            raise RunError(f"{name} has {rows.num_rows} rollouts, but {id_!r} was asked for. Reload the page.")
        row = rows.slice(int(number), 1).to_pylist()[0]
        return {"id": id_, **{key: plain(value) for key, value in row.items()}}

    def search(self, text: str) -> list[str]:
        """Ids of the rollouts whose prompt or response has `text`, letter case aside."""
        wanted = text.casefold()
        return [id_ for id_, row in self._texts() if any(wanted in (value or "").casefold() for value in row)]

    def _texts(self) -> Iterator[tuple[str, tuple[Any, ...]]]:
        for name in self.names():
            try:
                table = _read(self.folder / name, ["prompt_text", "response_text", "prompt_id"])
            except Exception:  # the index names this file among the problems
                continue
            for number, row in enumerate(table.to_pylist()):
                yield f"{name}:{number}", tuple(row.values())

    def _read_new(self, names: list[str]) -> None:
        todo = []
        for name in names:
            stamp = _stamp(self.folder / name)
            if stamp is not None and (name not in self._files or self._files[name].stamp != stamp):
                todo.append((name, stamp))
        with ThreadPoolExecutor(READERS) as pool:
            for (name, _), file in zip(todo, pool.map(lambda item: self._read_file(*item), todo), strict=True):
                self._files[name] = file

    def _read_file(self, name: str, stamp: Stamp) -> _File:
        try:
            columns = _read(self.folder / name, list(INDEX)).to_pydict()
            missing = [key for key in NEEDED if key not in columns]
            if missing:
                return _File(stamp, [], f"rollouts/{name} is skipped: it has no column {', '.join(missing)}.")
        except Exception as error:
            return _File(stamp, [], f"rollouts/{name} is skipped: {_first_line(error)}")
        for key, length in CLIPPED.items():
            columns[key] = [(text or "")[:length] for text in columns[key]]
        keys = list(columns)
        rows = [
            {"id": f"{name}:{number}", **{key: plain(value) for key, value in zip(keys, values, strict=True)}}
            for number, values in enumerate(zip(*columns.values(), strict=True))
        ]
        return _File(stamp, rows, None)

    def _problems(self, names: list[str]) -> list[str]:
        if not names:
            return ["There are no recorded rollouts (rollouts/step-*.parquet): see `record.every` in the recipe."]
        problems = [self._files[name].problem for name in names if name in self._files]
        return [problem for problem in problems if problem]


def plain(value: Any) -> Any:
    """As JSON can hold it: no NaN, and float32 values in the digits they have."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def _read(path: Path, columns: list[str] | None = None) -> Any:
    """The columns that the file has, as a table."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        present = file.schema_arrow.names
        chosen = present if columns is None else [name for name in columns if name in present]
        return file.read(columns=chosen, use_threads=False)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:  # thinned out between listing and reading
        return None
    return status.st_mtime_ns, status.st_size


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
