"""Addition with a column-by-column scratchpad: a task that needs no download and no judge.

    prompt    347+586=
    response  7+6+0=13;4+8+1=13;3+5+1=09;0933

Each column is `digit + digit + carry = sum`, ones first; the sum follows the last semicolon, with
one digit more than the operands. Only that last part is graded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from limbeck.config.task import ArithmeticTaskConfig
from limbeck.errors import DataError
from limbeck.records import Prompt

Encode = Callable[[str], Sequence[int]]


class Arithmetic:
    """`train` and `held_out` are disjoint and follow from the seed."""

    dropped = 0  # all problems are equally long: they fit, or the run does not start

    def __init__(self, section: ArithmeticTaskConfig, encode: Encode, seed: int) -> None:
        pairs = draw_pairs(section.digits, section.train + section.held_out, seed)
        prompts = [_prompt(a, b, section.digits, encode) for a, b in pairs]
        self.held_out: Sequence[Prompt] = prompts[: section.held_out]
        self.train: Sequence[Prompt] = prompts[section.held_out :]

    def grade(self, prompt: Prompt, response: str) -> float:
        return float(response.rpartition(";")[2].strip() == prompt.answer)


def draw_pairs(digits: int, count: int, seed: int) -> list[tuple[int, int]]:
    """`count` different pairs of operands. Raises `DataError` where there are not that many."""
    available = 100**digits
    if count > available:
        raise DataError(
            f"the arithmetic task was asked for {count} problems, but {digits}-digit operands make only "
            f"{available}. Lower task.train and task.held_out, or raise task.digits."
        )
    numbers = random.Random(seed).sample(range(available), count)
    return [divmod(number, 10**digits) for number in numbers]


def worked_solution(a: int, b: int, digits: int) -> str:
    """The response a perfect student gives: what the shipped models were trained on."""
    columns, carry = [], 0
    for place in range(digits):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        columns.append(f"{x}+{y}+{carry}={total:02d}")
        carry = total // 10
    return ";".join([*columns, _answer(a, b, digits)])


def _prompt(a: int, b: int, digits: int, encode: Encode) -> Prompt:
    text = question(a, b, digits)
    return Prompt(
        id=f"arithmetic-{text[:-1]}",
        token_ids=tuple(encode(text)),
        task="arithmetic",
        text=text,
        answer=_answer(a, b, digits),
    )


def question(a: int, b: int, digits: int) -> str:
    """`347+586=`, operands padded with zeros to `digits`."""
    return f"{a:0{digits}d}+{b:0{digits}d}="


def _answer(a: int, b: int, digits: int) -> str:
    return f"{a + b:0{digits + 1}d}"
