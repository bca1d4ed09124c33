"""Columns inside columns: `reward_model.ground_truth`, `choices.0.text`, and the same through JSON text.

    value_at({"reward_model": '{"ground_truth": "72"}'}, "reward_model.ground_truth")      "72"

A column whose own name is the whole path comes first. What is not there is None; a path through something that has no
parts is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from limbeck.errors import DataError
from limbeck.formatting import shown

_STEP = re.compile(r"[^.\[\]]+")


def steps_of(path: str) -> list[str]:
    """
    >>> steps_of("choices[0].text") == steps_of("choices.0.text") == ["choices", "0", "text"]
    True
    """
    return _STEP.findall(path)


def column_of(values: Mapping[str, Any], path: str) -> str:
    """The column that the path is in."""
    return path if path in values or not steps_of(path) else steps_of(path)[0]


def value_at(values: Mapping[str, Any], path: str, spelled: bool = False) -> Any:
    """What is at `path`; None where nothing is. `spelled`: a number in JSON text is the text of it.

    Raises `DataError` where the path leads through a value that has no parts.
    """
    if path in values:
        return values[path]
    value: Any = values
    passed: list[str] = []
    for step in steps_of(path):
        if isinstance(value, str):
            value = _from_json(value, ".".join(passed), path, spelled)
        if value is None:
            return None
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and re.fullmatch(r"-?[0-9]{1,9}", step):
            value = value[int(step)] if -len(value) <= int(step) < len(value) else None
        else:
            raise DataError(
                f"{'.'.join(passed)!r} is {shown(value)} ({type(value).__name__}), which has no {step!r}; "
                f"{path!r} needs a table, or a list and a number. Correct the path in task.columns."
            )
        passed.append(step)
    return value


def _from_json(text: str, name: str, path: str, spelled: bool) -> Any:
    parse = str if spelled else None
    try:
        value = json.loads(text, parse_int=parse, parse_float=parse)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name!r} is {shown(text)}, and {path!r} leads into it: it is not JSON ({error}). Correct the path in "
            "task.columns."
        ) from None
    if isinstance(value, dict | list):
        return value
    raise DataError(
        f"{name!r} is {shown(text)}, and {path!r} leads into it; expected the JSON of a table or a list. Correct the "
        "path in task.columns."
    )
