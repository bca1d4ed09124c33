"""Agents of a test run, with the `openai` package as anybody would write them."""

from __future__ import annotations

import openai


def two_turns(row):
    """Asks, answers whatever comes, and asks again."""
    if row["misbehaves"] == "exits":
        raise SystemExit(1)
    messages = [{"role": "user", "content": row["question"]}]
    client = openai.OpenAI()
    for _ in range(2):
        answer = client.chat.completions.create(model="student", messages=messages).choices[0].message
        messages += [answer, {"role": "user", "content": "1+1"}]
    return float(len(answer.content))
