"""A small agent: problems that take several turns, and an environment with one tool, a calculator.

    user     47*28+91=
    student  calc(47*28)
    tool     =1316
    student  calc(1316+91)
    tool     =1407
    student  1407

Problems are reckoned from left to right, as on a pocket calculator. Both classes are ordinary parts of a user's own
(the guide *Environments of several turns*): `recipes/calculator.toml` names them.
"""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Callable, Sequence

import numpy as np

from limbeck.config.factory import Build
from limbeck.protocols import Generate
from limbeck.records import Context, Episode, Failure, Ints, Key, Prompt

OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
CALL = re.compile(r"calc\((-?\d+)([+*-])(-?\d+)\)")


class Problems:
    """A task: `operands` two-digit numbers and an operation between each two. Train and held out are disjoint."""

    def __init__(self, build: Build, operands: int = 3, train: int = 8192, held_out: int = 256) -> None:
        generator, texts = random.Random(build.seed), dict[str, None]()
        while len(texts) < train + held_out:
            texts[question(generator, operands)] = None
        prompts = [
            Prompt(
                f"calculator-{text[:-1]}", tuple(build.tokenizer.encode(text)), "calculator", text, dialogue(text)[-1]
            )
            for text in texts
        ]
        self.held_out: Sequence[Prompt] = prompts[:held_out]
        self.train: Sequence[Prompt] = prompts[held_out:]

    def grade(self, prompt: Prompt, response: str) -> float:
        """Of an episode's last turn."""
        return float(response == prompt.answer)


class Calculator:
    """The environment: runs what the student calls, up to `calls` times, and ends where it calls nothing."""

    def __init__(self, build: Build, calls: int = 4) -> None:
        self.tokenizer, self.calls = build.tokenizer, calls

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure:
        context = Context(np.asarray(prompt.token_ids), role="user", text=prompt.text)
        for _ in range(self.calls):
            answer = await generate(context)
            if isinstance(answer, Failure):
                return answer
            call = CALL.fullmatch(self.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
            if call is None or answer.finish == "length":
                return generate.episode()  # the task grades its last turn
            result = shown(OPERATIONS[call[2]](int(call[1]), int(call[3])))
            context = Context(self._ids(result), parent=answer.turn, role="tool", text=result)
        return generate.episode(reward=0.0)  # it never came to an answer

    def _ids(self, text: str) -> Ints:
        return np.asarray(self.tokenizer.encode(text), dtype=np.int64)


def question(generator: random.Random, operands: int = 3) -> str:
    """`47*28+91=`"""
    text = str(generator.randint(10, 99))
    for _ in range(operands - 1):
        text += generator.choice("+-*") + str(generator.randint(10, 99))
    return text + "="


def shown(result: int) -> str:
    """What the tool answers: `=1316`, and a line break."""
    return f"={result}\n"


def dialogue(text: str) -> list[str]:
    """What a perfect student and the tool say in turn, the student first and last.

    >>> dialogue("47*28+91=")
    ['calc(47*28)', '=1316\\n', 'calc(1316+91)', '=1407\\n', '1407']
    """
    first, *rest = re.findall(r"[+*-]?\d+", text)
    value, said = int(first), []
    for step in rest:
        said.append(f"calc({value}{step})")
        value = OPERATIONS[step[0]](value, int(step[1:]))
        said.append(shown(value))
    return [*said, str(value)]
