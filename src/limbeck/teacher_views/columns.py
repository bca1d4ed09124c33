"""A text with columns of a row in it: `"Answer: {answer}"`, `"{reward_model.ground_truth}"`.

    fill("Answer: {answer}", {"answer": "46"}, "prompt 'sums-17'")     "Answer: 46"

Names are looked up in tables and lists alone, never as attributes of objects.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import DataError
from limbeck.formatting import shown

SHOWN = 20  # columns


def fill(template: str, columns: Mapping[str, Any], whose: str) -> str:
    """Raises `DataError` for a column that the row does not have, or that is null."""
    try:
        return _Columns().vformat(template, (), columns)
    except _MissingError as error:
        there = ", ".join(map(shown, list(columns)[:SHOWN]))
        raise DataError(
            f"teacher.view.context names the column {shown(str(error))}, which {whose} does not have, or has no value "
            f"in. It has: {there}. Name another one, or fill it in every row."
        ) from None
    except (ValueError, TypeError) as error:
        raise DataError(f"teacher.view.context cannot be filled in for {whose}: {error}") from None


class _MissingError(Exception):
    """Of a column."""


class _Columns(string.Formatter):
    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        value = _look_up(field_name, kwargs)
        if value is None:
            raise _MissingError(field_name)
        if isinstance(value, Mapping | list | tuple):
            value = json.dumps(value, ensure_ascii=False, default=str)
        return value, field_name


def _look_up(name: str, columns: Mapping[str, Any]) -> Any:
    """A column of that very name, else parts of one: `a.b`, `a[0].b`, `a[-1]`. A table may be JSON text."""
    if name in columns:
        return columns[name]
    value: Any = columns
    for part in filter(None, re.split(r"[.\[\]]", name)):
        if isinstance(value, str):
            value = _table_of(value)
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list | tuple) and re.fullmatch("-?[0-9]{1,9}", part):
            value = value[int(part)] if -len(value) <= int(part) < len(value) else None
        else:
            return None
    return value


def _table_of(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
