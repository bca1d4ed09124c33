"""The messages of a row: checked, plain, and as a person reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from limbeck.errors import DataError
from limbeck.models.chat import Message
from limbeck.tasks.sources import shortened


def checked_messages(messages: Any, column: str) -> list[Message]:
    """Messages with a role and a content, which is text: parts that are text are joined.

    Raises `DataError` naming the first that cannot be used.
    """
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{column!r} is {shortened(messages)}; expected a list of one message or more")
    return [_checked(message, f"{column}[{index}]") for index, message in enumerate(messages)]


def _checked(message: Any, where: str) -> Message:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {shortened(message)}; expected a table of role and content")
    calls, content = message.get("tool_calls"), message.get("content")
    if calls is not None and not isinstance(calls, list):
        raise DataError(f"{where}.tool_calls is {shortened(calls)}; expected a list of calls")
    if not isinstance(message.get("role"), str):
        raise DataError(f"{where}.role is {shortened(message.get('role'))}; expected text")
    if isinstance(content, list) and content:
        return {**message, "content": joined(content, f"{where}.content")}
    if not isinstance(content, str) and not (content is None and calls):
        raise DataError(f"{where}.content is {shortened(content)}; expected text, or parts that are text")
    return message


def joined(parts: Sequence[Any], where: str) -> str:
    """The text of a content in parts, `[{"type": "text", "text": "12+"}, ...]`, one after the other.

    Raises `DataError` naming the first part that is no text.
    """
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise DataError(
                f"{where}[{index}] is {f'of type {kind!r}' if isinstance(kind, str) else shortened(part)}; prompts are "
                'text alone, expected {"type": "text", "text": ...}. Remove the row, or that part of it.'
            )
        texts.append(text)
    return "".join(texts)


def without_nulls(value: Any) -> Any:
    """Arrow gives every table the keys of all: what a table does not have is null there."""
    if isinstance(value, Mapping):
        return {key: without_nulls(part) for key, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def readable(messages: Sequence[Message]) -> str:
    """A chat as a person reads it, one turn a line or more: `assistant: add({"a": 1})` for a call of a tool."""
    return "\n".join(f"{message['role']}: {_readable_turn(message)}" for message in messages)


def _readable_turn(message: Message) -> str:
    calls = [_readable_call(call) for call in message.get("tool_calls") or []]
    content = message.get("content")
    return "\n".join([*([content] if content else []), *calls])


def _readable_call(call: Any) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else call
    if not isinstance(function, Mapping) or "name" not in function:
        return json.dumps(call, ensure_ascii=False, default=str)
    arguments = function.get("arguments", {})
    shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False, default=str)
    return f"{function['name']}({shown})"
