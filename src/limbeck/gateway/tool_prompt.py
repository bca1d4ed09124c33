"""Tools for a student whose chat template knows none: described in a system message, in the words of Hermes.

system      # Tools ... <tools>{"type": "function", ...}</tools> ...
assistant   <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>
user        <tool_response>3</tool_response>
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.gateway.messages import Message

_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
)
_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


def in_words(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The same chat in the roles system, user and assistant alone. Results of one answer's calls are one message."""
    written: list[Message] = []
    if tools:
        described = _BEFORE + "\n".join(_dumped(tool) for tool in tools) + _AFTER
        has_system = messages[0]["role"] == "system"
        start = f"{messages[0]['content']}\n\n{described}" if has_system else described
        written.append({"role": "system", "content": start})
        messages = messages[has_system:]
    previous = ""
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if previous == "tool":
                written[-1] = written[-1] | {"content": f"{written[-1]['content']}\n{result}"}
            else:
                written.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            calls = [f"<tool_call>\n{_dumped(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
            text = "\n".join(part for part in (message["content"], *calls) if part)
            written.append({"role": "assistant", "content": text})
        else:
            written.append(message)
        previous = message["role"]
    return written


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
