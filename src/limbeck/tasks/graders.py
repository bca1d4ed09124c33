"""Graders: 1.0 for a right response, 0.0 for a wrong one, None where there is nothing to compare.

    grade = Numeric(tolerance=1e-9)
    grade(Prompt(id="a", token_ids=(1,), answer="1234.5"), "So it costs $1,234.50.")   1.0

All are called as `grade(prompt, response)`. `check` is called once for each prompt when the data is
loaded, so that a data set that can never be graded stops the run before it starts.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from limbeck.config.factory import resolve_factory
from limbeck.errors import DataError
from limbeck.records import Prompt
from limbeck.tasks.expressions import Number
from limbeck.tasks.numbers import UnreadableAnswer, last_number, read_answer


class Grader(Protocol):
    """Grades a response to a prompt."""

    def __call__(self, prompt: Prompt, response: str) -> float | None: ...

    def check(self, prompt: Prompt) -> None:
        """Raises `DataError` where this prompt could never be graded."""
        ...


def check_has_answer(prompt: Prompt) -> None:
    """Raises `DataError` where there is nothing to compare a response with."""
    if prompt.answer is None:
        raise DataError(
            "there is no answer, and task.grader compares responses with one. Add it, point "
            "task.columns.answer at the column that has it, or remove task.grader."
        )


@dataclass(frozen=True)
class Exact:
    """Right where response and answer are the same text, white space around them aside."""

    ignore_case: bool = False

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        return None if prompt.answer is None else _same(response, prompt.answer, self.ignore_case)

    def check(self, prompt: Prompt) -> None:
        check_has_answer(prompt)


@dataclass(frozen=True)
class Numeric:
    r"""Right where the last number of the response is the number that the answer is.

    The answer may be worked out, as in GSM8K ("... 48/2 = 24 ... #### 72"), or stand in a `\boxed{}`. Both sides are
    read by `limbeck.tasks.numbers` and compared exactly, as fractions: |response - answer| <= tolerance *
    max(1, |answer|). With a percent sign on one side only, 50% is equal to 50 and to 0.5.
    """

    tolerance: float = 1e-9

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        if prompt.answer is None:
            return None
        expected, found = self._expected(prompt), last_number(response)
        if found is None:
            return 0.0
        one_percent = found.percent != expected.percent
        pairs = [(found.value, expected.value)]
        if one_percent:
            pairs.append(
                (found.value, expected.value / 100) if expected.percent else (found.value / 100, expected.value)
            )
        return float(any(self._close(*pair) for pair in pairs))

    def _close(self, found: Fraction, expected: Fraction) -> bool:
        tolerance = Fraction(str(self.tolerance))  # 0.01 as it is written, not its nearest float
        return abs(found - expected) <= tolerance * max(Fraction(1), abs(expected))

    def check(self, prompt: Prompt) -> None:
        check_has_answer(prompt)
        self._expected(prompt)

    def _expected(self, prompt: Prompt) -> Number:
        try:
            return read_answer(prompt.answer or "")
        except UnreadableAnswer as error:
            raise DataError(
                f"prompt {prompt.id!r}: the answer {_shortened(prompt.answer)} is not one number that "
                f'task.grader.kind = "numeric" can read: {error}. Write it as one (72, -3/4, 2 1/2, \\frac{{3}}{{4}}, '
                '3\\times 10^{5}; "#### 72" after a worked solution), or take task.grader.kind = "math_verify", which '
                "compares expressions."
            ) from None


def _shortened(text: str | None) -> str:
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:197]}..."


@dataclass(frozen=True)
class Regex:
    """Right where the first group of the pattern's last match is the answer, white space aside."""

    pattern: str
    ignore_case: bool = False

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        if prompt.answer is None:
            return None
        flags = re.IGNORECASE if self.ignore_case else re.NOFLAG
        last = deque(re.finditer(self.pattern, response, flags), maxlen=1)
        found = last[0].group(1) if last else None  # None too where the group is in a branch not taken
        return 0.0 if found is None else _same(found, prompt.answer, self.ignore_case)

    def check(self, prompt: Prompt) -> None:
        check_has_answer(prompt)


def _same(found: str, answer: str, ignore_case: bool) -> float:
    found, answer = found.strip(), answer.strip()
    if ignore_case:
        found, answer = found.casefold(), answer.casefold()
    return float(found == answer)


def checked_reward(name: str, function: Callable[[Prompt, str], Any], prompt: Prompt, response: str) -> float | None:
    """What `function` returns, which may be any finite number, or None where the prompt cannot be graded.

    Raises `DataError` naming it and the prompt for anything else, and where it raises. `exit()` counts as raising: a
    grader does not end the run. Ctrl-C still does.
    """
    try:
        result = function(prompt, response)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise DataError(f"the grader {name} raised {type(error).__name__} on prompt {prompt.id!r}: {error}") from error
    if result is None:
        return None
    # bool and int are what `-> float` admits for a type checker too.
    if not isinstance(result, float | int) or not math.isfinite(result):
        raise DataError(
            f"the grader {name} returned {result!r} ({type(result).__name__}) on prompt "
            f"{prompt.id!r}; expected a finite float, or None where the prompt cannot be graded."
        )
    return float(result)


class PythonFunction:
    """Your own `package.module:function`, called as `function(prompt, response)`.

    Raises `RecipeError` where it cannot be found, and `DataError` on a call where it raises or returns anything
    but a finite number or None. It decides for itself what a missing answer means.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = resolve_factory(name, "task.grader.function")

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        return checked_reward(self.name, self.function, prompt, response)

    def check(self, prompt: Prompt) -> None:
        """Only the function knows what it needs."""
