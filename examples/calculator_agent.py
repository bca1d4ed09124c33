"""An agent with the `openai` package: it lets the student call a calculator until the student has an answer.

    user        47*28+91=
    assistant   calc(47*28)
    user        =1316
    assistant   calc(1316+91)
    user        =1407
    assistant   1407

Nothing in it knows of Limbeck. `OpenAI()` finds the address and the key in the environment.
"""

from __future__ import annotations

import operator
import re

from openai import OpenAI

CALL = re.compile(r"calc\((-?\d+)([+*-])(-?\d+)\)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def run(question: str, answer: str) -> float:
    """1.0 where the student comes to the answer within five turns. The return value is the reward."""
    client = OpenAI()
    messages = [{"role": "user", "content": question}]
    for _ in range(5):
        said = client.chat.completions.create(model="student", messages=messages).choices[0].message.content or ""
        call = CALL.fullmatch(said)
        if call is None:
            return float(said == answer)
        result = OPERATIONS[call[2]](int(call[1]), int(call[3]))
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"={result}\n"}]
    return 0.0
