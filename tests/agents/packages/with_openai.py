"""An agent with the `openai` package alone: a loop of tools, written by hand."""

from __future__ import annotations

import json

from openai import OpenAI

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
    },
}


def run(question, answer):
    client = OpenAI()
    messages = [{"role": "user", "content": question}]
    while True:
        said = client.chat.completions.create(model="student", messages=messages, tools=[ADD]).choices[0].message
        messages.append(said)
        if not said.tool_calls:
            return float(said.content == answer)
        for call in said.tool_calls:
            arguments = json.loads(call.function.arguments)
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(arguments["a"] + arguments["b"])})


def streamed(question, answer):
    client = OpenAI()
    messages = [{"role": "user", "content": question}]
    while True:
        content, calls = "", {}
        for chunk in client.chat.completions.create(model="student", messages=messages, tools=[ADD], stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            for call in delta.tool_calls or []:
                known = calls.setdefault(call.index, {"id": call.id, "name": call.function.name, "arguments": ""})
                known["arguments"] += call.function.arguments or ""
        made = [
            {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
            for c in calls.values()
        ]
        messages.append({"role": "assistant", "content": content, **({"tool_calls": made} if made else {})})
        if not made:
            return float(content == answer)
        for call in made:
            arguments = json.loads(call["function"]["arguments"])
            messages.append(
                {"role": "tool", "tool_call_id": call["id"], "content": str(arguments["a"] + arguments["b"])}
            )
