"""From a row to a prompt: what each column means, and what is wrong with one that cannot be used.

Columns without a meaning of their own travel in `Prompt.metadata`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from limbeck.config.task import ColumnsConfig
from limbeck.errors import DataError
from limbeck.formatting import shown
from limbeck.models.chat import Message
from limbeck.records import Prompt
from limbeck.tasks.prompts import Encoder, check_unicode
from limbeck.tasks.sources import Row, shortened

# Columns that mean something in data sets of the field and that nothing here reads, and what may be wanted instead.
_AN_ANSWER = "point task.columns.answer at it if graders are to compare with it"
_A_SYSTEM_MESSAGE = "set task.system, or put it into the messages"
_A_TEMPLATE_ARGUMENT = "chat templates get messages and tools and nothing else"
_NOT_TEXT = "prompts are text alone"
_A_RESPONSE = "the student samples its own responses"
KNOWN_COLUMNS = {
    "system": _A_SYSTEM_MESSAGE,
    "system_prompt": _A_SYSTEM_MESSAGE,
    "functions": "point task.columns.tools at it",
    "tools": "point task.columns.tools at it",
    "chat_template_kwargs": _A_TEMPLATE_ARGUMENT,
    "documents": _A_TEMPLATE_ARGUMENT,
    "enable_thinking": _A_TEMPLATE_ARGUMENT,
    "conversations": "point task.columns.messages at it if it has role and content",
    "solution": _AN_ANSWER,
    "label": _AN_ANSWER,
    "ground_truth": _AN_ANSWER,
    "target": _AN_ANSWER,
    "reward_model": _AN_ANSWER,
    "completion": _A_RESPONSE,
    "response": _A_RESPONSE,
    "chosen": _A_RESPONSE,
    "rejected": _A_RESPONSE,
    "image": _NOT_TEXT,
    "images": _NOT_TEXT,
    "video": _NOT_TEXT,
    "videos": _NOT_TEXT,
    "audio": _NOT_TEXT,
}


MAX_ID = 1000  # characters
SHOWN_COLUMNS = 20


def to_prompt(row: Row, task: str, columns: ColumnsConfig, encoder: Encoder) -> Prompt:
    """Raises `DataError` where a column is missing, of the wrong type, or makes no tokens."""
    values = row.values
    for name in (columns.prompt, columns.messages, columns.tools, columns.answer, columns.id, columns.teacher):
        check_unicode(name, values.get(name))
    check_unicode("the name of the data", row.default_id)
    text, messages = values.get(columns.prompt), values.get(columns.messages)
    tools = _tools(row, columns)
    if text is not None and messages is not None:
        raise DataError(
            f"there is a {columns.prompt!r} and a {columns.messages!r}; expected one of the two. Remove one, "
            "or point task.columns at other names."
        )
    if text is not None:
        if not isinstance(text, str):
            raise DataError(
                f"{columns.prompt!r} is {shortened(text)}; expected text. For a list of messages set "
                f"task.columns.messages = {columns.prompt!r} and task.columns.prompt to another name."
            )
        token_ids, chat = encoder.text(text, tools), encoder.chat_of(text, tools)
    elif messages is not None:
        checked = _checked_messages(messages, columns.messages)
        if row.nulls_are_absent:
            checked = [{"content": None, **_without_nulls(message)} for message in checked]
        token_ids, chat = encoder.messages(checked, tools), encoder.chat_of(checked, tools)
        text = readable(checked)
    else:
        raise DataError(
            f"there is neither a {columns.prompt!r} nor a {columns.messages!r}; the columns are "
            f"{_names(values)}. Point task.columns.prompt or "
            "task.columns.messages at the right one."
        )
    if not token_ids:
        raise DataError(
            "the prompt has no tokens; the first sampled token needs a prefix. Give it text, or a chat "
            "template that begins with a token."
        )
    named = {columns.prompt, columns.messages, columns.id, columns.teacher, "answer"}  # another answer has two names
    return Prompt(
        id=_id(values.get(columns.id), row.default_id, columns),
        token_ids=tuple(token_ids),
        task=task,
        text=text,
        answer=_answer(row, columns),
        metadata={name: value for name, value in values.items() if name not in named},
        teacher=_teacher(values.get(columns.teacher), columns),
        chat=chat,
    )


def unused(values: Mapping[str, Any], columns: ColumnsConfig) -> set[str]:
    """The columns of a row that mean something elsewhere and that nothing here reads."""
    used = set(columns.model_dump().values())
    return {name for name, value in values.items() if name in KNOWN_COLUMNS and name not in used and value is not None}


def unused_columns_message(names: Iterable[str]) -> str:
    """One line about all of them."""
    return "; ".join(f"{name!r} ({KNOWN_COLUMNS[name]})" for name in sorted(names))


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


def _checked_messages(messages: Any, column: str) -> Sequence[Message]:
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{column!r} is {shortened(messages)}; expected a list of one message or more")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"{column}[{index}] is {shortened(message)}; expected a table of role and content")
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise DataError(f"{column}[{index}].tool_calls is {shortened(calls)}; expected a list of calls")
        for key in ("role", "content"):
            value = message.get(key)
            if not isinstance(value, str) and not (key == "content" and value is None and calls):
                raise DataError(f"{column}[{index}].{key} is {shortened(value)}; expected text")
    if messages[-1]["role"] == "assistant":
        # Data sets for supervised training end so: the student would be shown the answer.
        raise DataError(
            f"{column!r} ends with an assistant message, so there is nothing left to answer. Remove that "
            "message; what it says may go into the answer column."
        )
    return messages


def _tools(row: Row, columns: ColumnsConfig) -> list[Message] | None:
    """The JSON schemas of the row's tools: a list of tables, or the same as JSON text, as some data sets keep it."""
    tools = row.values.get(columns.tools)
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{columns.tools!r} is text that is not JSON: {error}") from error
        check_unicode(columns.tools, tools)
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{columns.tools!r} is {shortened(tools)}; expected a list of tables, a JSON schema each")
    return [_without_nulls(tool) for tool in tools] if row.nulls_are_absent else tools


def _without_nulls(value: Any) -> Any:
    """Arrow gives every table the keys of all: what a table does not have is null there."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _id(value: Any, default: str, columns: ColumnsConfig) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{columns.id!r} is {shortened(value)}; expected text or a whole number")
    if len(str(value)) > MAX_ID:
        raise DataError(f"{columns.id!r} is {shortened(value)} of {len(str(value)):,}; expected at most {MAX_ID}")
    return str(value)


def _names(values: Mapping[str, Any]) -> str:
    """The columns of a row, the first of them where there are many."""
    names = [shown(name) for name in list(values)[:SHOWN_COLUMNS]]
    more = [f"{len(values) - SHOWN_COLUMNS:,} more"] if len(values) > SHOWN_COLUMNS else []
    return ", ".join([*names, *more]) or "none"


def _answer(row: Row, columns: ColumnsConfig) -> str | None:
    value = row.values.get(columns.answer)
    if value is None or isinstance(value, str):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size: a float of it may be infinite
    if not whole and not (isinstance(value, float | Decimal | np.floating) and math.isfinite(value)):
        raise DataError(f"{columns.answer!r} is {shortened(value)}; expected text, a finite number or null")
    return row.spell(columns.answer)


def _teacher(value: Any, columns: ColumnsConfig) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{columns.teacher!r} is {shortened(value)}; expected the name of a teacher, or null")
