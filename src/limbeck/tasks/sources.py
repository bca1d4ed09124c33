"""Where rows come from: JSONL and Parquet files, and Hugging Face data sets.

    source, held_out_source = of_file(section)
    next(iter(source.rows)).values          {"prompt": "12+34=", "answer": 46}

Numbers become text here, where it is known how the file spells them: JSON's are kept to the character (0.00001, 72.0,
1e-05). Parquet and data sets hold binary numbers: the shortest digits that give the same number, without an exponent,
and without ".0" where the whole column holds whole numbers (as pandas makes of integers with gaps).

A row has at most `MAX_ROW` bytes, from wherever it comes: a damaged file ends in one message and not in all memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.config.task import DatasetTaskConfig, EvalDatasetConfig, FileTaskConfig
from limbeck.errors import DataError
from limbeck.formatting import shown
from limbeck.tasks import optional
from limbeck.tasks.paths import column_of, steps_of, value_at

MAX_ROW = 8 * 2**20  # bytes of a row, or characters: more than any context holds
TOO_LARGE = "No prompt is that long: repair the file, or take such columns out."
BATCH = 16  # rows
DEEPEST = 100  # lists and tables in each other


@dataclass(frozen=True)
class Row:
    """One row, and where it came from."""

    where: str  # "sums.jsonl line 17"
    default_id: str  # "sums-000017": where the row has no id of its own
    values: Mapping[str, Any]  # {"prompt": "12+34=", "answer": 46}
    spell: Callable[[str], str]  # the text of the number at a path: spell("answer") is "46"
    nulls_are_absent: bool = False  # Arrow's tables inside a row have the keys of every row


@dataclass(frozen=True)
class Source:
    """Rows that are still to be read, once."""

    name: str  # "sums.jsonl", "openai/gsm8k[train]"
    task: str  # "sums", "gsm8k": becomes `Prompt.task`
    rows: Iterable[Row]


def shortened(value: Any) -> str:
    """A value and its type, for a message."""
    return f"{shown(value)} ({type(value).__name__})"


def of_file(section: FileTaskConfig) -> tuple[Source, Source | None]:
    """`path` and, where there is one, `held_out_path`."""
    path, held_out_path = Path(section.path), section.held_out_path
    source = all_of_file(section.path)
    if held_out_path is None:
        return source, None
    if Path(held_out_path).resolve() == path.resolve():
        raise DataError(
            f"task.path and task.held_out_path are both {section.path!r}. Remove task.held_out_path to hold "
            "out rows of it."
        )
    held_out = file_rows(Path(held_out_path), f"{path.stem}-held-out")
    return source, Source(held_out_path, path.stem, held_out)


def all_of_file(place: str) -> Source:
    """All rows of a file."""
    path = Path(place)
    return Source(str(path), path.stem, file_rows(path, path.stem))


def file_rows(path: Path, prefix: str) -> Iterator[Row]:
    """The rows of a JSONL file, numbered by line from 1, or a Parquet file, numbered from 0."""
    readers = {".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise DataError(f"cannot read {path}: expected a file named *.jsonl or *.parquet")
    if not path.is_file():
        raise DataError(f"there is no file {path} (task.path and task.held_out_path start at {Path.cwd()})")
    return readers[path.suffix.lower()](path, prefix)


def _jsonl(path: Path, prefix: str) -> Iterator[Row]:
    # Bytes, so that a line ends at "\n" only (text may hold U+2028) and a wrong byte has a line number.
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_ROW + 1), b""), start=1):
                where = f"{path} line {number}"
                if len(line) > MAX_ROW:
                    raise DataError(f"{where} is longer than {MAX_ROW:,} bytes. {TOO_LARGE}")
                if line.strip():
                    text, values = _table(where, line, "utf-8-sig" if number == 1 else "utf-8")
                    yield Row(where, f"{prefix}-{number:06d}", values, partial(_as_json_spells_it, text))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _table(where: str, line: bytes, encoding: str) -> tuple[str, Mapping[str, Any]]:
    """The text of a line, and the table in it."""
    try:
        text = line.decode(encoding)
        values = json.loads(text)
    except RecursionError as error:
        raise DataError(f"{where} is not JSON that can be read: it is nested too deep. Repair it.") from error
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, and numbers of thousands of digits
        raise DataError(f"{where} is not JSON in UTF-8: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{where} is {shortened(values)}; expected an object of columns")
    return text, values


def _as_json_spells_it(line: str, path: str) -> str:
    return str(value_at(json.loads(line, parse_int=str, parse_float=str), path, spelled=True))


def _parquet(path: Path, prefix: str) -> Iterator[Row]:
    parquet = optional.load("pyarrow.parquet", "data")
    try:
        with parquet.ParquetFile(path) as file:
            spellings = Spellings(file.schema_arrow, lambda name: file.read(columns=[name]).column(name).to_pylist())
            # Few at a time: a value that many rows share is stored once, and unpacked for each of them.
            rows = (values for batch in file.iter_batches(BATCH) for values in _rows_of(batch))
            for number, values in enumerate(rows):
                where = f"{path} row {number}"
                yield Row(where, f"{prefix}-{number:06d}", values, partial(spellings.of, values), True)
    except DataError:
        raise
    except Exception as error:  # ArrowException, OSError, UnicodeDecodeError: whatever damage leads to
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error


def _rows_of(batch: Any) -> Iterator[Mapping[str, Any]]:
    """The rows of a batch: at once, or, where they are large, one by one."""
    if batch.nbytes <= MAX_ROW:
        yield from batch.to_pylist()
        return
    for number in range(batch.num_rows):
        yield batch.slice(number, 1).to_pylist()[0]


def check_size(row: Row) -> None:
    """Raises `DataError` for a row of more than `MAX_ROW` characters and values, or nested deeper than `DEEPEST`."""
    pending: list[tuple[Any, int]] = [(row.values, 0)]
    size = 0
    while pending:
        value, depth = pending.pop()
        if isinstance(value, Mapping):
            pending += [(part, depth + 1) for item in value.items() for part in item]
        elif isinstance(value, list | tuple):
            pending += [(part, depth + 1) for part in value]
        size += len(value) if isinstance(value, str | bytes) else 1
        if size > MAX_ROW:
            raise DataError(f"it has more than {MAX_ROW:,} characters. {TOO_LARGE}")
        if depth > DEEPEST:
            raise DataError(f"it is nested more than {DEEPEST} deep. Repair the row, or take such columns out.")


FLOATS: dict[str, type[np.floating[Any]]] = {"halffloat": np.float16, "float": np.float32, "double": np.float64}


class Spellings:
    """How the binary numbers of each column become text. A column is read the first time that one of it is asked for.

    `schema` is Arrow's, `read` gives all values of a column.
    """

    def __init__(self, schema: Any, read: Callable[[str], Iterable[Any]]) -> None:
        self.schema, self.read = schema, read
        self._known: dict[str, tuple[type[np.floating[Any]], bool]] = {}

    def of(self, values: Mapping[str, Any], path: str) -> str:
        """The text of the number at `path` of a row."""
        value = value_at(values, path, spelled=True)
        if isinstance(value, str | int):  # text: of a number in JSON text
            return str(value)
        if isinstance(value, Decimal):
            return format(value, "f")
        if path not in self._known:
            self._known[path] = self._examine(values, path)
        kind, whole = self._known[path]
        return np.format_float_positional(kind(value), unique=True, trim="-" if whole else "0")

    def _examine(self, values: Mapping[str, Any], path: str) -> tuple[type[np.floating[Any]], bool]:
        """How wide its numbers are, and whether none of the column has a fraction: 72.0 is an integer beside nulls."""
        column = column_of(values, path)
        found = [value_at({column: value}, path) for value in self.read(column)]
        numbers = [value for value in found if isinstance(value, int | float | np.floating)]
        return self._kind(column, path), all(not math.isfinite(value) or value == int(value) for value in numbers)

    def _kind(self, column: str, path: str) -> type[np.floating[Any]]:
        kind = self.schema.field(column).type
        for step in [] if path == column else steps_of(path)[1:]:
            kind = getattr(kind, "value_type", None) or kind.field(step).type  # of a list, or of a table
        return FLOATS[str(kind)]


def of_dataset(section: DatasetTaskConfig) -> tuple[Source, Source | None]:
    """`split` and, where there is one, `held_out_split`."""
    if section.held_out_split == section.split:
        raise DataError(
            f"task.split and task.held_out_split are both {section.split!r}. Remove task.held_out_split to "
            "hold out rows of it."
        )
    task = section.name.rstrip("/").rpartition("/")[2]
    source = _split(section, section.split, task, prefix=task)
    if section.held_out_split is None:
        return source, None
    return source, _split(section, section.held_out_split, task, prefix=f"{task}-held-out")


def all_of_dataset(section: EvalDatasetConfig) -> Source:
    """All rows of a split."""
    task = section.name.rstrip("/").rpartition("/")[2]
    return _split(section, section.split, task, prefix=task)


def _split(section: DatasetTaskConfig | EvalDatasetConfig, split: str, task: str, prefix: str) -> Source:
    """One split, its rows numbered from 0."""
    data = _saved(section, split) if Path(section.name).is_dir() else _from_hub(section, split)
    name = f"{section.name}[{split}]"
    return Source(name, task, _dataset_rows(data, name, prefix))


def _dataset_rows(data: Any, name: str, prefix: str) -> Iterator[Row]:
    try:
        spellings = Spellings(data.features.arrow_schema, lambda column: data[column])
        for number, values in enumerate(data):
            where, default_id = f"{name} row {number}", f"{prefix}-{number:06d}"
            yield Row(where, default_id, values, partial(spellings.of, values), nulls_are_absent=True)
    except DataError:
        raise
    except Exception as error:  # a damaged file shows when it is read
        raise DataError(f"{name} cannot be read ({type(error).__name__}: {error}). Save it again.") from error


def _saved(section: DatasetTaskConfig | EvalDatasetConfig, split: str) -> Any:
    datasets = optional.load("datasets", "data")
    if section.config is not None:
        raise DataError(
            f"task.config = {section.config!r} is for data sets of the hub, but {section.name} is a folder "
            "here. Remove task.config."
        )
    try:
        data: Any = datasets.load_from_disk(section.name)
    except Exception as error:  # FileNotFoundError, or whatever a damaged file leads to
        raise DataError(
            f"{section.name} is a folder, but not one written by save_to_disk ({type(error).__name__}: "
            f'{error}). For JSONL or Parquet files take task.kind = "file".'
        ) from error
    splits = list(data) if isinstance(data, datasets.DatasetDict) else []
    held_out = isinstance(section, DatasetTaskConfig) and section.held_out_split is not None
    if split in splits:
        data = data[split]
    elif splits or held_out or split != type(section).model_fields["split"].default:
        raise DataError(
            f"{section.name} has no split {split!r}; it has {', '.join(map(repr, splits)) or 'no splits'}. "
            "Correct task.split and task.held_out_split, or remove them."
        )
    return data


def _from_hub(section: DatasetTaskConfig | EvalDatasetConfig, split: str) -> Any:
    datasets = optional.load("datasets", "data")
    try:
        return datasets.load_dataset(section.name, section.config, split=split)
    except Exception as error:  # a dozen of types: hub, network, builder, split
        raise DataError(
            f"cannot load the data set {section.name!r}, config {section.config!r}, split {split!r} "
            f"({type(error).__name__}: {error}). Check the names; a local folder must exist at {Path.cwd()}."
        ) from error
