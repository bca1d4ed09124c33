"""From a row to a prompt: what each column means, and what is wrong with one that cannot be used.

Columns without a meaning of their own travel in `Prompt.metadata`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

from limbeck.config.task import ColumnsConfig, check_template_options
from limbeck.errors import DataError
from limbeck.formatting import shown
from limbeck.models.chat import Message
from limbeck.records import Prompt
from limbeck.tasks.layouts import ANSWER, ID, SLIME_ANSWER, VERL_ANSWER, VERL_ID, Found
from limbeck.tasks.messages import checked_messages, readable, without_nulls
from limbeck.tasks.paths import column_of, value_at
from limbeck.tasks.prompts import Encoder, check_unicode
from limbeck.tasks.sources import Row, shortened

# Columns that mean something in data sets of the field and that nothing here reads, and what may be wanted instead.
_AN_ANSWER = "point task.columns.answer at it if graders are to compare with it"
_A_SYSTEM_MESSAGE = "set task.system, or put it into the messages"
_A_TEMPLATE_ARGUMENT = "set task.template_options, or point task.columns.template_options at a table of such"
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
    "response": _A_RESPONSE,
    "chosen": _A_RESPONSE,
    "rejected": _A_RESPONSE,
}
NOT_TEXT = ("image", "images", "video", "videos", "audio", "audios")  # what a prompt of text alone has none of


MAX_ID = 1000  # characters
SHOWN_COLUMNS = 20


def to_prompt(
    row: Row,
    task: str,
    columns: ColumnsConfig,
    encoder: Encoder,
    found: Found | None = None,
    tables_are_answers: bool = False,
) -> Prompt:
    """`found` is the row's layout; without one everything is where `columns` says.

    `tables_are_answers`: what verl or slime have in an answer's place, where it is a table or list, is given as JSON
    text, for a grader that can read it.

    Raises `DataError` where a column is missing, of the wrong type, or makes no tokens.
    """
    values = row.values
    found = found or Found(columns.answer or ANSWER, columns.id or ID)
    if media := next((name for name in NOT_TEXT if values.get(name)), None):
        raise DataError(
            f"it has {media!r}, and prompts are text alone: the student would answer without it. Remove the row, or "
            "the column where the prompts do not need it."
        )
    check_unicode("the name of the data", row.default_id)
    prompt, messages = _at(values, columns.prompt), _at(values, columns.messages)
    messages = found.messages if found.messages is not None else messages
    tools, options = _tools(row, columns), _options(row, columns)
    if prompt is not None and messages is not None:
        raise DataError(
            f"there is a {columns.prompt!r} and a {columns.messages!r}; expected one of the two. Remove one, "
            "or point task.columns at other names."
        )
    if isinstance(prompt, str):
        _refuse_json_chat(prompt, columns.prompt)
        text, chat, token_ids = prompt, encoder.chat_of(prompt, tools, options), encoder.text(prompt, tools, options)
    elif prompt is not None and not isinstance(prompt, list):
        raise DataError(f"{columns.prompt!r} is {shortened(prompt)}; expected text, or a list of messages")
    elif prompt is not None or messages is not None:
        name, given = (columns.messages, messages) if prompt is None else (columns.prompt, prompt)
        checked = _messages(given, name, row, encoder)
        chat, token_ids = encoder.chat_of(checked, tools, options), encoder.messages(checked, tools, options)
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
    named = {columns.prompt, columns.messages, found.id, columns.teacher, ANSWER}  # another answer has two names
    return Prompt(
        id=_id(_at(values, found.id), row.default_id, found.id, per_file=columns.id is None and found.id == VERL_ID),
        token_ids=tuple(token_ids),
        task=task,
        text=text,
        answer=_answer(row, found.answer, tables_are_answers),
        metadata={name: value for name, value in values.items() if name not in named},
        teacher=_teacher(_at(values, columns.teacher), columns),
        chat=chat,
    )


def _at(values: Mapping[str, Any], path: str) -> Any:
    value = value_at(values, path)
    check_unicode(path, value)
    return value


def _messages(chat: Any, name: str, row: Row, encoder: Encoder) -> list[Message]:
    if isinstance(chat, str):
        chat = parsed(chat, name)
    if row.nulls_are_absent and isinstance(chat, list):
        chat = [{"content": None, **without_nulls(one)} if isinstance(one, Mapping) else one for one in chat]
    messages = checked_messages(chat, name)
    if messages[-1]["role"] == "assistant" and not encoder.continued:
        raise DataError(
            f"{name!r} ends with an assistant message, so there is nothing left to answer. Remove that message (what "
            "it says may go into the answer column), or set task.continue_final_message = true to go on with it."
        )
    return messages


def _refuse_json_chat(prompt: str, name: str) -> None:
    """A chat that somebody wrote down as JSON text would be given to the student as it stands, brackets and all."""
    if not prompt.lstrip().startswith("[") or '"role"' not in prompt:
        return
    try:
        value = json.loads(prompt)
    except (ValueError, RecursionError):
        return
    if value and all(isinstance(message, Mapping) and "role" in message for message in value):
        raise DataError(
            f"{name!r} is text, and reads as a list of messages in JSON. For a chat set task.columns.messages = "
            f"{name!r} and task.columns.prompt to a column that is not there."
        )


def parsed(text: str, name: str) -> Any:
    """A column in JSON text. Raises `DataError` for text that is no JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name!r} is text that is not JSON: {error}") from error
    check_unicode(name, value)
    return value


def unused(values: Mapping[str, Any], columns: ColumnsConfig, found: Found) -> set[str]:
    """The columns of a row that mean something elsewhere and that nothing here reads."""
    paths = [path for path in (*columns.model_dump().values(), found.answer, found.id, *found.parts) if path]
    used = {column_of(values, path) for path in paths}
    return {name for name, value in values.items() if name in KNOWN_COLUMNS and name not in used and value is not None}


def unused_columns_message(names: Iterable[str]) -> str:
    """One line about all of them."""
    return "; ".join(f"{name!r} ({KNOWN_COLUMNS[name]})" for name in sorted(names))


def _tools(row: Row, columns: ColumnsConfig) -> list[Message] | None:
    """The JSON schemas of the row's tools: a list of tables, or the same as JSON text, as some data sets keep it."""
    tools = _at(row.values, columns.tools)
    if isinstance(tools, str) and tools.strip():
        tools = parsed(tools, columns.tools)
    if not tools:
        return None
    if isinstance(tools, list):  # of JSON text, for Arrow's tables have one shape
        tools = [parsed(tool, f"{columns.tools}[{i}]") if _is_a_table(tool) else tool for i, tool in enumerate(tools)]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(f"{columns.tools!r} is {shortened(tools)}; expected a list of tables, a JSON schema each")
    return [without_nulls(tool) for tool in tools] if row.nulls_are_absent else tools


def _is_a_table(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("{")


def _options(row: Row, columns: ColumnsConfig) -> Mapping[str, Any]:
    """What the chat template is given besides, of this row alone."""
    options = _at(row.values, columns.template_options)
    if isinstance(options, str) and options.strip():
        options = parsed(options, columns.template_options)
    if not options:
        return {}
    if not isinstance(options, Mapping):
        raise DataError(f"{columns.template_options!r} is {shortened(options)}; expected a table of options")
    try:
        return check_template_options(without_nulls(options) if row.nulls_are_absent else options)
    except ValueError as error:
        raise DataError(f"{columns.template_options!r}: {error}") from None


def _id(value: Any, default: str, name: str, per_file: bool) -> str:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{name!r} is {shortened(value)}; expected text or a whole number")
    if len(str(value)) > MAX_ID:
        raise DataError(f"{name!r} is {shortened(value)} of {len(str(value)):,}; expected at most {MAX_ID}")
    if per_file:  # counted anew in each
        return f"{default.rpartition('-')[0]}-{value}"
    return str(value)


def _names(values: Mapping[str, Any]) -> str:
    """The columns of a row, the first of them where there are many."""
    names = [shown(name) for name in list(values)[:SHOWN_COLUMNS]]
    more = [f"{len(values) - SHOWN_COLUMNS:,} more"] if len(values) > SHOWN_COLUMNS else []
    return ", ".join([*names, *more]) or "none"


def _answer(row: Row, path: str, tables_are_answers: bool) -> str | None:
    value = _at(row.values, path)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Mapping | list) and tables_are_answers and path in (VERL_ANSWER, SLIME_ANSWER):
        return json.dumps(value, ensure_ascii=False, default=str)
    whole = isinstance(value, int) and not isinstance(value, bool)  # of any size: a float of it may be infinite
    if not whole and not (isinstance(value, float | Decimal | np.floating) and math.isfinite(value)):
        part = f" {path}.0 is the first of a list." if isinstance(value, list) else ""
        raise DataError(
            f"{path!r} is {shortened(value)}; expected text, a finite number or null.{part}"
            + (" Point task.columns.answer at a part of it." if isinstance(value, Mapping) else "")
        )
    return row.spell(path)


def _teacher(value: Any, columns: ColumnsConfig) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise DataError(f"{columns.teacher!r} is {shortened(value)}; expected the name of a teacher, or null")
