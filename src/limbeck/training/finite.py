"""Numbers that are NaN or infinite stop a run; they are not written, and not trained on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.errors import NonFiniteError


def require_finite(values: Mapping[str, Any], what: str) -> None:
    """Raises `NonFiniteError` naming the first of `values` that is NaN or infinite; `what` they are values of."""
    for name, value in values.items():
        for place, number in _numbers(value, name):
            if not math.isfinite(number):
                raise NonFiniteError(
                    f"{what}: {place} is {number}, expected a finite number. The weights, the teacher's scores or a "
                    "grader gave it. See which step was the last with finite numbers, and lower learner.lr if the run "
                    "diverged."
                )


def to_json(values: Mapping[str, Any], what: str, ascii_only: bool = True) -> str:
    """One line of JSON, which has no NaN and no infinity. Raises `NonFiniteError` naming the key that is one."""
    try:
        return json.dumps(values, allow_nan=False, ensure_ascii=ascii_only)
    except ValueError:
        require_finite(values, what)
        raise  # not a number's fault, such as a structure that contains itself


def _numbers(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Every number in `value`, however deep, with its place."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(item, f"{place}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{place}[{i}]")
