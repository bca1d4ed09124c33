"""The recorded rollouts of a run: an index without tokens, and one rollout with all of them.

5,000 rollouts are opened by reading the short columns only; a rollout's tokens are read when it is
looked at. A file that cannot be read is named among the problems, and the others are shown.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.files.disk import open_file
from limbeck.files.names import numbered
from limbeck.formatting import shown
from limbeck.view.reading import Stamp, first_line, stamp_of

# What the list shows, sorts and filters by; other columns are not in the index.
INDEX = {
    "step": "integer", "source": "text", "prompt_id": "text", "task": "text", "teacher": "text", "sample": "integer",
    "segment": "integer", "policy_version": "integer", "temperature": "number", "prompt_text": "text",
    "question": "text", "answer": "text",
    "response_text": "text", "finish": "text", "reward": "number", "advantage": "number", "sampled_tokens": "integer",
    "log_ratio_mean": "number", "reverse_kl_mean": "number", "kl_max": "number",
}  # fmt: skip
TOKENS = (  # one entry a token of the response, in each of these columns that is there
    "token_ids", "tokens", "special", "trained", "student_logprob", "teacher_logprob", "behaviour_logprob",
    "reverse_kl", "student_entropy", "teacher_entropy", "student_top_tokens", "student_top_logprobs",
    "teacher_top_tokens", "teacher_top_logprobs",
)  # fmt: skip
MAX_ROWS, MAX_BYTES = 10**6, 2**31  # of one file, unpacked
NEEDED = ("step", "prompt_text", "response_text")
CLIPPED = {
    "prompt_text": 300,
    "question": 300,
    "response_text": 600,
}  # characters in the index; a search reads all of it
CHAT = re.compile(r"^(system|developer|user|assistant|tool): ", re.MULTILINE)  # begins a turn
READERS = 4  # files read at once


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
            "problems": [*self._problems(names), *self._strangers(names)],
        }

    def _strangers(self, names: list[str]) -> list[str]:
        """One line for each Parquet file of another name, which no run wrote."""
        found = self.folder.glob("*.parquet") if self.folder.is_dir() else ()
        others = sorted(path.name for path in found if path.name not in names and not path.name.startswith("."))
        return [f"rollouts/{name} is skipped: expected a name such as step-000010.parquet" for name in others]

    def rollout(self, id_: str) -> dict[str, Any]:
        """One rollout with all its columns. Raises `RunError` where it is not there any more."""
        name, _, number = id_.rpartition(":")
        if name not in self.names() or not re.fullmatch("[0-9]{1,9}", number):
            raise RunError(f"there is no recorded rollout {shown(id_)}; it may have been thinned out. Reload the page.")
        try:
            rows = read_columns(self.folder / name)
            row = rows.slice(int(number), 1).to_pylist()[0] if int(number) < rows.num_rows else None
        except Exception as error:  # pyarrow raises OSError, ArrowInvalid, ...
            raise RunError(f"rollouts/{name} cannot be read: {first_line(error)}") from None
        if row is None:
            raise RunError(f"{name} has {rows.num_rows} rollouts, but {shown(id_)} was asked for. Reload the page.")
        lengths = {len(row[key]) if isinstance(row[key], list) else -1 for key in TOKENS if row.get(key) is not None}
        if len(lengths) > 1 or -1 in lengths:
            raise RunError(f"rollout {shown(id_)} is damaged: its columns have different numbers of tokens.")
        return {"id": id_, **{key: plain(value) for key, value in row.items()}}

    def search(self, text: str) -> list[str]:
        """Ids of the rollouts whose prompt or response has `text`, letter case aside."""
        wanted = text.casefold()
        return [id_ for id_, row in self._texts() if any(wanted in value.casefold() for value in row)]

    def _texts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        for name in self.names():
            try:
                table = read_columns(self.folder / name, ["prompt_text", "response_text", "prompt_id"])
            except Exception:  # the index names this file among the problems
                continue
            for number, row in enumerate(table.to_pylist()):
                yield f"{name}:{number}", tuple(value for value in row.values() if isinstance(value, str))

    def _read_new(self, names: list[str]) -> None:
        todo = []
        for name in names:
            stamp = stamp_of(self.folder / name)  # None: thinned out between listing and reading
            if stamp is not None and (name not in self._files or self._files[name].stamp != stamp):
                todo.append((name, stamp))
        with ThreadPoolExecutor(READERS) as pool:
            for (name, _), file in zip(todo, pool.map(lambda item: self._read_file(*item), todo), strict=True):
                self._files[name] = file

    def _read_file(self, name: str, stamp: Stamp) -> _File:
        try:
            table = read_columns(self.folder / name, list(INDEX))
            if fault := _fault(table):
                return _File(stamp, [], f"rollouts/{name} is skipped: {fault}.")
            columns = table.to_pydict()
        except Exception as error:
            return _File(stamp, [], f"rollouts/{name} is skipped: {first_line(error)}")
        asked = columns.pop("question", None) or [None] * table.num_rows
        columns["question"] = [
            known or last_question(text or "") for known, text in zip(asked, columns["prompt_text"], strict=True)
        ]
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


def _fault(table: Any) -> str | None:
    """Why the rows of a file cannot be listed; None where they can."""
    import pyarrow.types as types

    kinds = {
        "integer": types.is_integer,
        "number": lambda kind: types.is_integer(kind) or types.is_floating(kind),
        "text": lambda kind: types.is_string(kind) or types.is_large_string(kind),
    }
    if missing := [key for key in NEEDED if key not in table.column_names]:
        return f"it has no column {', '.join(missing)}"
    for field in table.schema:
        if not kinds[INDEX[field.name]](field.type) and not types.is_null(field.type):
            return f"its column {field.name} is of type {shown(str(field.type))}, expected {INDEX[field.name]}"
    if table["step"].null_count:
        return "a row of it has no step"
    return None


def last_question(prompt: str) -> str:
    """What the user says last in a prompt as it was written for people: of a chat, the last `user: ...`.

    For files that do not say; a text that only looks like a chat is taken for one.

    >>> last_question("system: Be brief.\\nuser: What is 2+2?\\nassistant: add(2, 2)\\ntool: 4")
    'What is 2+2?'
    """
    if not CHAT.match(prompt):
        return prompt
    turns = list(CHAT.finditer(prompt))
    for turn, following in zip(reversed(turns), [None, *reversed(turns[1:])], strict=True):
        if turn[1] == "user":
            return prompt[turn.end() : following.start() if following else None].strip()
    return prompt


def plain(value: Any) -> Any:
    """As JSON can hold it: no NaN, nothing but text, numbers, lists and tables, and float32 values in their digits."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value if value is None or isinstance(value, str | int) else shown(value)


def read_columns(path: Path, columns: list[str] | None = None) -> Any:
    """The columns that the file has, as a table."""
    import pyarrow.parquet as pq

    with open_file(path) as handle, pq.ParquetFile(handle) as file:
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        size = sum(group.total_byte_size for group in groups)
        if file.metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
            raise ValueError(
                f"it has {file.metadata.num_rows:,} rows of {size:,} bytes, expected at most {MAX_ROWS:,} and "
                f"{MAX_BYTES:,}"
            )
        present = file.schema_arrow.names
        chosen = present if columns is None else [name for name in columns if name in present]
        return file.read(columns=chosen, use_threads=False)
