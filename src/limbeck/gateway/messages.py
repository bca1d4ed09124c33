"""Chat messages as clients send them, in the one form that templates are given and that histories are compared in.

    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}    as a client sends it
    {"role": "system", "content": "Be brief."}                                   as it is rendered and compared

Clients differ in how they send the same message back: null or no content, extra fields of an answer, arguments of a
tool call written another way. None of these is an edit. What a person or a program wrote is: not a blank is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, TypeAlias

from limbeck.formatting import shown
from limbeck.gateway.api_errors import invalid, unsupported
from limbeck.records import Role

Message: TypeAlias = dict[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
THINKING = ("reasoning_content", "reasoning")  # of an assistant's message, as two servers name it
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def read_messages(value: object) -> list[Message]:
    """Raises `ApiError` for what is no chat, or has other parts than text."""
    if not isinstance(value, list) or not value:
        raise invalid(f"messages is {shown(value)}, expected a list with at least one message", "messages")
    return [_message(one, f"messages[{i}]") for i, one in enumerate(value)]


def _message(value: object, where: str) -> Message:
    role = value.get("role") if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where} is {shown(value)}, expected an object whose role is one of {', '.join(ROLES)}", where)
    message: Message = {"role": ROLES[role], "content": _text(value.get("content"), f"{where}.content")}
    if isinstance(value.get("name"), str) and role != "assistant":  # agents name their answers, which nobody sampled
        message["name"] = _unicode(value["name"], f"{where}.name")
    if role == "tool":
        message["tool_call_id"] = str(value.get("tool_call_id") or "")
    if role == "assistant":
        if value.get("function_call"):
            raise unsupported(f"{where}.function_call is not supported: use tools and tool_calls", where)
        if value.get("tool_calls"):
            message["tool_calls"] = _calls(value["tool_calls"], f"{where}.tool_calls")
        thinking = next((value[name] for name in THINKING if value.get(name)), None)
        if thinking is not None:
            message["reasoning_content"] = _text(thinking, f"{where}.reasoning_content")
    return message


def _text(content: object, where: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return _unicode(content, where)
    if not isinstance(content, list):
        raise invalid(f"{where} is {shown(content)}, expected text, or a list of parts", where)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        field = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
        if field is None:
            raise unsupported(
                f"{where}[{i}] is of type {shown(kind)}, but the student reads text alone: send parts of type text",
                f"{where}[{i}]",
            )
        text = part.get(field)
        if not isinstance(text, str):
            raise invalid(f"{where}[{i}].{field} is {shown(text)}, expected text", f"{where}[{i}]")
        texts.append(_unicode(text, f"{where}[{i}]"))
    return "".join(texts)


def _calls(value: object, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise invalid(f"{where} is {shown(value)}, expected a list", where)
    calls = []
    for i, call in enumerate(value):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(
                f"{where}[{i}] is {shown(call)}, expected an object with a function that has a name", f"{where}[{i}]"
            )
        arguments = function.get("arguments", "")
        if isinstance(arguments, str):
            arguments = parsed_arguments(_unicode(arguments, f"{where}[{i}]"))
        calls.append(tool_call(str(call.get("id") or ""), _unicode(function["name"], where), arguments))
    return calls


def tool_call(id: str, name: str, arguments: object) -> Message:
    """As chat templates expect one: the arguments are a table and not text."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def parsed_arguments(text: str) -> object:
    """The table that `text` spells, or the text itself where it is no JSON; nothing is no arguments."""
    if not text.strip():
        return {}
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(
            f"{where} has half of a surrogate pair at character {error.start}: no tokenizer reads it"
        ) from None
    return text


def for_client(message: Message) -> Message:
    """An answer as OpenAI writes it."""
    calls = message.get("tool_calls")
    answer: Message = {"role": "assistant", "content": message["content"] or (None if calls else ""), "refusal": None}
    if calls:
        answer["tool_calls"] = [
            tool_call(
                call["id"], call["function"]["name"], json.dumps(call["function"]["arguments"], ensure_ascii=False)
            )
            for call in calls
        ]
    return answer


def digests(messages: Sequence[Message]) -> list[bytes]:
    """One for each message, of it and all before it. Equal where two histories say the same.

    The ids of tool calls are replaced by their order: what they are is a client's own affair.
    """
    order: dict[str, int] = {}
    running = blake2b(digest_size=16)
    found = []
    for message in messages:
        running.update(canonical(_with_order(message, order)))
        found.append(running.copy().digest())
    return found


def content_key(message: Message) -> bytes:
    """Equal where two messages say the same, whatever precedes them."""
    return canonical(_with_order(message, {}))


def canonical(value: object) -> bytes:
    """JSON in one spelling, ended so that one text after another is not a third."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=repr).encode() + b"\n"


def _with_order(message: Message, order: dict[str, int]) -> Message:
    if "tool_call_id" in message:
        return message | {"tool_call_id": order.get(message["tool_call_id"], message["tool_call_id"])}
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        order[call["id"]] = len(order) if call["id"] not in order else order[call["id"]]
        calls.append(call["function"] | {"id": order[call["id"]]})
    return message | {"tool_calls": calls}


def spoken_by(messages: Iterable[Message]) -> tuple[Role, str]:
    """Whose words some messages are, and the words: for people."""
    messages = list(messages)
    roles: set[str] = {message["role"] for message in messages}
    role: Role = "context"
    own: tuple[Role, ...] = ("system", "user", "tool")
    for one in own:
        role = one if roles == {one} else role
    return role, "\n".join(message["content"] for message in messages)
