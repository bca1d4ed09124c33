"""A thousand turns of agents that do what agents do: each sampled token is trained once, and where it was said."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.gateway.students import (
    TEMPLATES,
    TOOL,
    Talk,
    call_text,
    check_exact,
    read_stream,
    split_at_random,
    talk,
    tool_result,
    user,
)

TURNS = 145  # of each of seven templates


def says(template: str, rng: random.Random, t: list[Talk]) -> str | list[int]:
    """What a student may come up with: odd tokens, half characters, thinking, calls good and bad."""
    thought = rng.choice(["", "", "<think>\nwhat did the tool say\n</think>\n\n", "<think>and on"])
    text = rng.choice(["the answer", " is what ", "Observation: the tool\nsaid", "\n\n"]) + str(rng.randint(0, 99))
    end = rng.choice(["", call_text(template, rng.randint(0, 9), rng), "<tool_call>{broken", '{"name": 3'])
    if rng.random() < 0.2:
        return [rng.randint(0, 499) for _ in range(rng.randint(1, 9))]
    if rng.random() < 0.5:
        return split_at_random(t[0].student.tokenizer, thought + text + end, rng)
    return thought + text + end


def sent_back(message: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """An answer as one client or another has it in its history."""
    message = json.loads(json.dumps(message))
    for index, call in enumerate(message.get("tool_calls", [])):
        arguments = json.loads(call["function"]["arguments"])
        call["function"]["arguments"] = json.dumps(arguments, separators=rng.choice([(",", ":"), (", ", ": ")]))
        call |= rng.choice([{}, {"index": index}])
    if not message["content"]:
        message["content"] = rng.choice([None, ""])
    elif rng.random() < 0.3:
        message["content"] = [{"type": "text", "text": message["content"]}]
    return message | rng.choice([{}, {"refusal": None, "annotations": []}])


def changed(messages: list[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """A history as agents change it: cut, summed up, an answer rewritten; or as it was."""
    kind = rng.random()
    if kind < 0.8 and len(messages) < 12:
        return messages
    if kind < 0.85:
        return [user(f"So far: {rng.randint(0, 9)}")]
    if kind < 0.93:
        return [message for message in messages[-5:] if message["role"] == "user"] or [user("Go on")]
    return [
        m | {"content": "rewritten"} if m["role"] == "assistant" and not m.get("tool_calls") else m for m in messages
    ]


@pytest.mark.parametrize("template", TEMPLATES)
async def test_what_is_sampled_is_what_is_trained(template: str) -> None:
    rng, box = random.Random(template), list[Talk]()
    box.append(talk(template, lambda turn: says(template, rng, box), max_tokens=32))
    t, messages = box[0], [user("Begin")]
    tools = 0.3 if template == "mistral" else 0.9  # which writes them elsewhere after each question
    while len(t.student.requests) < TURNS:
        more: dict[str, Any] = {"tools": [TOOL]} if rng.random() < tools else {}
        more |= {"n": 2} if rng.random() < 0.15 else {}
        more |= {"stop": ["\nsaid", "Obs"]} if rng.random() < 0.15 else {}
        more |= {"max_tokens": rng.randint(1, 20)} if rng.random() < 0.2 else {}
        more |= {"logprobs": True} if rng.random() < 0.2 else {}
        stream = rng.random() < 0.3
        answer = await t.post(messages=messages, stream=stream, temperature=0.1, **more)
        assert answer.status_code == 200, answer.text
        choices = read_stream(answer.text) if stream else [one["message"] for one in answer.json()["choices"]]
        if rng.random() < 0.1:
            continue  # the same request once more
        message = sent_back(rng.choice(choices), rng)
        messages = [*messages, message]
        messages += tool_result(message, "7") if message.get("tool_calls") else [user("And then?")]
        messages = changed(messages, rng)
    report = t.gateway.close(t.address.id)
    assert report.turns == len(t.student.requests) == report.spliced + report.siblings + report.segments.total()
    assert min(report.spliced, report.siblings, len(report.segments)) > 2, "the test did not test what it should"
    assert report.failure is None
    check_exact(t.student, t.generate.episode())
