"""Prompts from rows: JSONL and Parquet files, and Hugging Face data sets.

    {"prompt": "12+34=", "answer": 46}                                      raw text, or one user message
    {"messages": [{"role": "user", "content": "12+34="}], "answer": "46"}   a chat

    source, held_out_source = of_file(section)
    task = Rows(section, source, held_out_source, encoder, grader, seed=0, longest_prompt=None)

Every error names the file and line, or the data set and row. ColumnsConfig without a meaning of their own
travel in `Prompt.metadata`.
"""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from limbeck.config.task import ColumnsConfig, DatasetTaskConfig, FileTaskConfig
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks import optional
from limbeck.tasks.graders import Grader
from limbeck.tasks.prompts import Encoder, Message, fit

logger = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Row:
    """One row, and where it stands."""

    where: str  # "sums.jsonl line 17"
    default_id: str  # "sums-000017": where the row has no id of its own
    values: Mapping[str, Any]  # {"prompt": "12+34=", "answer": 46}


@dataclass(frozen=True)
class Source:
    """Rows that are still to be read, once."""

    name: str  # "sums.jsonl", "openai/gsm8k[train]"
    task: str  # "sums", "gsm8k": becomes `Prompt.task`
    rows: Iterable[Row]


class Rows:
    """Prompts from rows. Too long ones are left out before anything is held out.

    Without rows of their own, the held-out ones are chosen by the seed and removed from `train`.
    Ids are unique over both. Raises `DataError` for a row that cannot be read and for too few rows.
    """

    def __init__(
        self,
        section: FileTaskConfig | DatasetTaskConfig,
        source: Source,
        held_out_source: Source | None,
        encoder: Encoder,
        grader: Grader | None,
        seed: int,
        longest_prompt: int | None,
    ) -> None:
        self._grader = grader
        self.dropped = 0
        self._section, self._encoder, self._longest = section, encoder, longest_prompt
        seen: dict[str, str] = {}
        train = self._read(source, seen)
        if held_out_source is not None:
            chosen, _ = _choose(self._read(held_out_source, seen), section.held_out, seed, held_out_source.name)
        else:
            chosen, train = _choose(train, section.held_out, seed, source.name, leave=1)
        self.train: Sequence[Prompt] = train
        self.held_out: Sequence[Prompt] = chosen
        self._warn_of_overlap(source.name)

    def grade(self, prompt: Prompt, response: str) -> float | None:
        return None if self._grader is None else self._grader(prompt, response)

    def _read(self, source: Source, seen: dict[str, str]) -> list[Prompt]:
        """The prompts that fit. `seen` maps each id to where it stands."""
        prompts = []
        for row in source.rows:
            try:
                prompt = to_prompt(row, source.task, self._section.columns, self._encoder)
                if self._grader is not None:
                    self._grader.check(prompt)
            except DataError as error:
                raise DataError(f"{row.where}: {error}") from error.__cause__
            if prompt.id in seen:
                raise DataError(
                    f"{row.where}: the id {prompt.id!r} is already that of {seen[prompt.id]}. Make ids "
                    "unique over training and held-out rows, or point task.columns.id at a column that is "
                    "not there, to number the rows."
                )
            seen[prompt.id] = row.where
            prompts.append(prompt)
        if not prompts:
            raise DataError(f"{source.name} has no rows; expected at least one prompt")
        fitting = fit(prompts, self._longest, self._section.too_long)
        self.dropped += len(prompts) - len(fitting)
        return fitting

    def _warn_of_overlap(self, name: str) -> None:
        held_out = {prompt.token_ids for prompt in self.held_out}
        shared = sum(prompt.token_ids in held_out for prompt in self.train)
        if shared:
            logger.warning(
                "%s: %d of %d prompts to train on are also held out, word for word: held-out results will "
                "flatter the student", name, shared, len(self.train),
            )  # fmt: skip


def _choose(
    prompts: list[Prompt], count: int, seed: int, name: str, leave: int = 0
) -> tuple[list[Prompt], list[Prompt]]:
    """`count` prompts chosen by the seed and the rest, at least `leave` of them, both in order."""
    most = len(prompts) - leave
    if count > most:
        raise DataError(
            f"task.held_out = {count}, but {name} has only {len(prompts)} prompts"
            + (", of which at least one must be left to train on" if leave else "")
            + ". Add rows"
            + (f", or set task.held_out to at most {most}." if most else ".")
        )
    chosen = set(random.Random(seed).sample(range(len(prompts)), count))
    return (
        [prompt for index, prompt in enumerate(prompts) if index in chosen],
        [prompt for index, prompt in enumerate(prompts) if index not in chosen],
    )


def to_prompt(row: Row, task: str, columns: ColumnsConfig, encoder: Encoder) -> Prompt:
    """Raises `DataError` where a column is missing, of the wrong type, or makes no tokens."""
    values = row.values
    text, messages = values.get(columns.prompt), values.get(columns.messages)
    if text is not None and messages is not None:
        raise DataError(
            f"there is a {columns.prompt!r} and a {columns.messages!r}; expected one of the two. Remove one, "
            "or point task.columns at other names."
        )
    if text is not None:
        if not isinstance(text, str):
            raise DataError(
                f"{columns.prompt!r} is {_short(text)}; expected text. For a list of messages set "
                f"task.columns.messages = {columns.prompt!r} and task.columns.prompt to another name."
            )
        token_ids = encoder.text(text)
    elif messages is not None:
        token_ids = encoder.messages(_checked(messages, columns.messages))
        text = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
    else:
        raise DataError(
            f"there is neither a {columns.prompt!r} nor a {columns.messages!r}; the columns are "
            f"{', '.join(map(repr, values)) or 'none'}. Point task.columns.prompt or "
            "task.columns.messages at the right one."
        )
    if not token_ids:
        raise DataError(
            "the prompt has no tokens; the first sampled token needs a prefix. Give it text, or a chat "
            "template that begins with a token."
        )
    named = {columns.prompt, columns.messages, columns.answer, columns.id, columns.teacher}
    return Prompt(
        id=_id(values.get(columns.id), row.default_id, columns),
        token_ids=tuple(token_ids),
        task=task,
        text=text,
        answer=_answer(values.get(columns.answer), columns),
        metadata={name: value for name, value in values.items() if name not in named},
        teacher=_teacher(values.get(columns.teacher), columns),
    )


def _checked(messages: Any, column: str) -> Sequence[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{column!r} is {_short(messages)}; expected a list of one message or more")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"{column}[{index}] is {_short(message)}; expected a table of role and content")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise DataError(f"{column}[{index}].{key} is {_short(message.get(key))}; expected text")
    if messages[-1]["role"] == "assistant":
        # Data sets for supervised training end so: the student would be shown the answer.
        raise DataError(
            f"{column!r} ends with an assistant message, so there is nothing left to answer. Remove that "
            "message; what it says may go into the answer column."
        )
    return messages


def _id(value: Any, default: str, columns: ColumnsConfig) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{columns.id!r} is {_short(value)}; expected text or a whole number")
    return str(value)


def _answer(value: Any, columns: ColumnsConfig) -> str | None:
    if value is None or isinstance(value, str):
        return value
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if not number or not math.isfinite(value):
        raise DataError(f"{columns.answer!r} is {_short(value)}; expected text, a finite number or null")
    return str(value)


def _teacher(value: Any, columns: ColumnsConfig) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{columns.teacher!r} is {_short(value)}; expected the name of a teacher, or null")


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 80 else text[:77] + '...'} ({type(value).__name__})"


def of_file(section: FileTaskConfig) -> tuple[Source, Source | None]:
    """`path` and, where there is one, `held_out_path`."""
    path, held_out_path = Path(section.path), section.held_out_path
    source = Source(str(path), path.stem, file_rows(path, path.stem))
    if held_out_path is None:
        return source, None
    if Path(held_out_path).resolve() == path.resolve():
        raise DataError(
            f"task.path and task.held_out_path are both {section.path!r}. Remove task.held_out_path to hold "
            "out rows of it."
        )
    held_out = file_rows(Path(held_out_path), f"{path.stem}-held-out")
    return source, Source(held_out_path, path.stem, held_out)


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
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path} line {number}"
            try:
                values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:  # both UnicodeDecodeError and JSONDecodeError
                raise DataError(f"{where} is not JSON in UTF-8: {error}") from error
            if not isinstance(values, dict):
                raise DataError(f"{where} is {_short(values)}; expected an object of columns")
            yield Row(where, f"{prefix}-{number:06d}", values)


def _parquet(path: Path, prefix: str) -> Iterator[Row]:
    parquet = optional.load("pyarrow.parquet", "data")
    errors = optional.load("pyarrow", "data").ArrowException
    try:
        with parquet.ParquetFile(path) as file:
            rows = (values for batch in file.iter_batches() for values in batch.to_pylist())
            for number, values in enumerate(rows):
                yield Row(f"{path} row {number}", f"{prefix}-{number:06d}", values)
    except (errors, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error


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


def _split(section: DatasetTaskConfig, split: str, task: str, prefix: str) -> Source:
    """One split, its rows numbered from 0."""
    data = _saved(section, split) if Path(section.name).is_dir() else _from_hub(section, split)
    name = f"{section.name}[{split}]"
    rows = (Row(f"{name} row {number}", f"{prefix}-{number:06d}", values) for number, values in enumerate(data))
    return Source(name, task, rows)


def _saved(section: DatasetTaskConfig, split: str) -> Iterable[Mapping[str, Any]]:
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
    if split in splits:
        data = data[split]
    elif splits or section.held_out_split is not None or split != "train":
        raise DataError(
            f"{section.name} has no split {split!r}; it has {', '.join(map(repr, splits)) or 'no splits'}. "
            "Correct task.split and task.held_out_split, or remove them."
        )
    return data  # type: ignore[no-any-return]  # `datasets` is not typed


def _from_hub(section: DatasetTaskConfig, split: str) -> Iterable[Mapping[str, Any]]:
    datasets = optional.load("datasets", "data")
    try:
        return datasets.load_dataset(section.name, section.config, split=split)  # type: ignore[no-any-return]
    except Exception as error:  # a dozen of types: hub, network, builder, split
        raise DataError(
            f"cannot load the data set {section.name!r}, config {section.config!r}, split {split!r} "
            f"({type(error).__name__}: {error}). Check the names; a local folder must exist at {Path.cwd()}."
        ) from error
