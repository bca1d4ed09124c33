"""Rows for agents: the whole row travels with its prompt, and a row without a prompt is one all the same.

What an agent sends is its own affair. The prompt of such a row is for people, and for the proof of the teacher, which
needs texts that look like the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from limbeck.config.task import ColumnsConfig
from limbeck.records import Prompt
from limbeck.tasks.sources import Row, Source

ROW = "row"  # in a prompt's metadata: every column of its row
SHOWN = 400  # characters of a row that stands for its prompt


def agent_rows(source: Source, columns: ColumnsConfig) -> Source:
    """The same rows, each with a prompt and with itself as a column."""
    return replace(source, rows=_rows(source, columns))


def _rows(source: Source, columns: ColumnsConfig) -> Iterator[Row]:
    for row in source.rows:
        values = {**row.values, ROW: row.values}
        if values.get(columns.prompt) is None and values.get(columns.messages) is None:
            values[columns.prompt] = json.dumps(row.values, ensure_ascii=False, default=str)[:SHOWN]
        yield replace(row, values=values)


def row_of(prompt: Prompt) -> Mapping[str, Any]:
    """What an agent is given: the row as the data has it, or, of another task, what is known of its prompt."""
    row = prompt.metadata.get(ROW)
    if isinstance(row, Mapping):
        return row
    known = {"id": prompt.id, "prompt": prompt.text, "answer": prompt.answer}
    return {**prompt.metadata, **{key: value for key, value in known.items() if value is not None}}
