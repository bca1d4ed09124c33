"""Graders: 1.0 for a right response, 0.0 for a wrong one, None where there is nothing to compare.

    grade = Numeric(tolerance=1e-9)
    grade(Prompt(id="a", token_ids=(1,), answer="1234.5"), "So it costs $1,234.50.")   1.0

All are called as `grade(prompt, response)`. `check` is called once for each prompt when the data is
loaded, so that a data set that can never be graded stops the run before it starts.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

from limbeck.errors import DataError
from limbeck.records import Prompt


class Grader(Protocol):
    """Marks a response to a prompt."""

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
    """Right where the last number of the response is the last number of the answer.

    The answer may therefore be worked out, as in GSM8K ("... 48/2 = 24 ... #### 72"). Numbers are
    compared exactly, as fractions: |response - answer| <= tolerance * max(1, |answer|).
    """

    tolerance: float = 1e-9

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        if prompt.answer is None:
            return None
        expected, found = self._expected(prompt), last_number(response)
        if found is None:
            return 0.0
        scale = max(Fraction(1), abs(expected))
        tolerance = Fraction(str(self.tolerance))  # 0.01 as it is written, not its nearest float
        return float(abs(found - expected) <= tolerance * scale)

    def check(self, prompt: Prompt) -> None:
        check_has_answer(prompt)
        self._expected(prompt)

    def _expected(self, prompt: Prompt) -> Fraction:
        expected = last_number(prompt.answer or "")
        if expected is None:
            raise DataError(
                f"prompt {prompt.id!r}: the answer {prompt.answer!r} does not end in a finite number, and "
                'task.grader.kind = "numeric" compares numbers. Correct it, or take another grader.'
            )
        return expected


# A digit right after a letter, `_` or `^` belongs to a name or a unit (x2, m^2), and a sign right after
# an operand is an operator (7-3, (a)-3). A comma groups thousands only before exactly three digits.
_NUMBER = re.compile(
    r"""
    (?<![0-9A-Za-z_^])
    (?P<sign> (?<![)\]}]) [-+\u2212] )?
    [$\u20ac\u00a3]?
    (?P<digits> (?: [0-9]{1,3} (?:,[0-9]{3})+ (?![0-9]) | [0-9]+ ) (?:\.[0-9]+)? | (?<!\.) \.[0-9]+ )
    (?: [eE] (?P<exponent> [-+]?[0-9]+ ) )?
    (?: / (?P<denominator> [0-9]+ (?:\.[0-9]+)? ) )?
    """,
    re.VERBOSE,
)
_LONGEST = 400  # digits, and powers of ten: about the range of a float. Hostile text ends here


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly; None where there is none or it is not finite.

    Reads 7, -7, +7, .5, 1,234.5, 1{,}234, $1,234.50, -$5, 1.5e-3 and 3/4. A decimal comma is not read: "3,14"
    ends in 14. A number of more than 400 digits, beyond 1e400 or over zero counts as not finite.
    """
    last = deque(_NUMBER.finditer(text.replace("{,}", ",")), maxlen=1)
    if not last:
        return None
    sign, digits, exponent, denominator = last[0].group("sign", "digits", "exponent", "denominator")
    if max(len(digits), len(exponent or ""), len(denominator or "")) > _LONGEST:
        return None
    if abs(int(exponent or 0)) > _LONGEST:
        return None
    value = Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent or 0)
    if denominator is not None:
        if not Fraction(denominator):
            return None
        value /= Fraction(denominator)
    return -value if sign in ("-", "\u2212") else value


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


class PythonFunction:
    """Your own `package.module:function`, called as `function(prompt, response)`.

    Raises `DataError` where it cannot be found, and on a call where it raises or returns anything
    but a finite number or None. It decides for itself what a missing answer means.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.function = _resolve(name)

    def __call__(self, prompt: Prompt, response: str) -> float | None:
        try:
            result = self.function(prompt, response)
        except Exception as error:
            raise DataError(
                f"the grader {self.name} raised {type(error).__name__} on prompt {prompt.id!r}: {error}"
            ) from error
        if result is None:
            return None
        # bool and int are what `-> float` admits for a type checker too.
        if not isinstance(result, float | int) or not math.isfinite(result):
            raise DataError(
                f"the grader {self.name} returned {result!r} ({type(result).__name__}) on prompt "
                f"{prompt.id!r}; expected a finite float, or None where the prompt cannot be graded."
            )
        return float(result)

    def check(self, prompt: Prompt) -> None:
        """Only the function knows what it needs."""


def _resolve(name: str) -> Callable[[Prompt, str], Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise DataError(
            f"task.grader.function = {name!r} is not of the form package.module:function, such as my_graders:grade"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"task.grader.function = {name!r}: cannot import {module_name!r} ({error}). Install it, or put "
            "its folder on the path, such as PYTHONPATH=. limbeck train ..."
        ) from error
    except Exception as error:
        raise DataError(
            f"task.grader.function = {name!r}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise DataError(f"task.grader.function = {name!r}: {module_name!r} has no {attribute!r}")
    function = getattr(module, attribute)
    if not callable(function):
        raise DataError(f"task.grader.function = {name!r} is {function!r}; expected a function of (prompt, response)")
    return function  # type: ignore[no-any-return]  # callable() narrows Any to an unknown signature
