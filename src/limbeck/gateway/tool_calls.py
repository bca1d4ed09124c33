"""How students write tool calls, and how an answer is read: the text before them, and the calls.

    format            an answer
    hermes            I add. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>           Hermes, Qwen
    qwen3_coder       I add. <tool_call><function=add><parameter=a>1</parameter></function></tool_call>
    llama3            {"name": "add", "parameters": {"a": 1}}
    mistral           [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}], or [TOOL_CALLS]add[ARGS]{"a": 1}

A call that cannot be read stays text, all of the answer with it: nothing is guessed. Text after the calls is not shown
to the agent, as other servers do it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from limbeck.errors import RecipeError

Call: TypeAlias = tuple[str, dict[str, Any]]  # name, arguments
Tool: TypeAlias = Mapping[str, Any]  # as OpenAI describes one

_XML_CALL = re.compile(r"\s*<function=([^>\s]+)>(.*?)</function>\s*(?:</tool_call>|\Z)", re.DOTALL)
_XML_PARAMETER = re.compile(r"\s*<parameter=([^>\s]+)>(.*?)</parameter>\s*", re.DOTALL)
_MISTRAL_CALL = re.compile(r"\s*([\w.:/-]+)\s*(?:\[CALL_ID\]\w+\s*)?\[ARGS\]\s*")


class _MalformedError(ValueError):
    """Something that begins like a call and is none."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What an answer says. `malformed`: there is something like a call, which stays text."""

    content: str
    calls: tuple[Call, ...] = ()
    malformed: bool = False
    beside: str = ""  # text after the calls or between them, which is not shown


def parse(tool_format: str, text: str, tools: Sequence[Tool], thinking: bool = False) -> Parsed:
    """The calls of one answer, special tokens still in it.

    Thinking is never searched for calls; `thinking`: the prompt ends within it.
    """
    thought, end, said = text.rpartition("</think>")
    if not end and (thinking or "<think>" in text):
        return Parsed(text)
    marker, read = FORMATS[tool_format]
    start = marker(said)
    if start is None:
        return Parsed(text)
    try:
        calls, beside = read(said[start:], tools)
        for name, arguments in calls:
            json.dumps([name, arguments], ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # also half of a surrogate pair, which JSON can spell and no text can hold
        return Parsed(text, malformed=True)
    return Parsed((thought + end + said[:start]).rstrip(), tuple(calls), beside=beside)


def detect(template: object) -> str | None:
    """The format that a chat template shows its model. None where it shows none of those known here."""
    text = "\n".join(map(str, template.values())) if isinstance(template, Mapping) else str(template or "")
    if "<arg_key>" in text:  # GLM's, which is not read here
        return None
    if "<tool_call>" in text:
        return "qwen3_coder" if "<function=" in text else "hermes"
    if "[TOOL_CALLS]" in text:
        return "mistral"
    if "<|python_tag|>" in text or ("parameters" in text and "ipython" in text):
        return "llama3"
    return None


def check_format(name: str) -> str:
    """Raises `RecipeError` for a format that is not known."""
    if name not in FORMATS:
        raise RecipeError(f"tool_format = {name!r}, expected 'auto' or one of {', '.join(FORMATS)}")
    return name


def _read_hermes(text: str, tools: Sequence[Tool]) -> tuple[list[Call], str]:
    calls, beside = [], ""
    at = text.find("<tool_call>")
    while at >= 0:
        value, at = _json(text, at + len("<tool_call>"))
        calls.append(_call(value))
        rest = text[at:].lstrip()
        if rest and not rest.startswith("</tool_call>"):
            raise _MalformedError
        at = text.find("<tool_call>", at)
        beside += rest.partition("<tool_call>")[0].removeprefix("</tool_call>").strip()
    return calls, beside


def _read_qwen3_coder(text: str, tools: Sequence[Tool]) -> tuple[list[Call], str]:
    calls, beside = [], ""
    at = text.find("<tool_call>")
    while at >= 0:
        match = _XML_CALL.match(text, at + len("<tool_call>"))
        if match is None:
            raise _MalformedError
        name, body = match.groups()
        types = _types(name, tools)
        arguments: dict[str, Any] = {}
        place = len(body) - len(body.lstrip())
        while place < len(body):
            parameter = _XML_PARAMETER.match(body, place)
            if parameter is None:
                raise _MalformedError
            key, value = parameter.groups()
            arguments[key] = _typed(value.removeprefix("\n").removesuffix("\n"), types.get(key))
            place = parameter.end()
        calls.append((name, arguments))
        at = text.find("<tool_call>", match.end())
        beside += text[match.end() :].partition("<tool_call>")[0].strip()
    return calls, beside


def _read_llama3(text: str, tools: Sequence[Tool]) -> tuple[list[Call], str]:
    calls = []
    at, end = len(text) - len(text.removeprefix("<|python_tag|>")), len(text.rstrip())
    while at < end:
        value, at = _json(text, at)
        calls.append(_call(value))
        at += len(text[at:]) - len(text[at:].lstrip("; \t\r\n"))
    return calls, ""


def _read_mistral(text: str, tools: Sequence[Tool]) -> tuple[list[Call], str]:
    calls, beside = [], ""
    for part in text.split("[TOOL_CALLS]")[1:]:
        if part.lstrip().startswith("["):
            values, at = _json(part, 0)
            if not values:
                raise _MalformedError
            calls += [_call(value) for value in values]
        else:
            match = _MISTRAL_CALL.match(part)
            if match is None:
                raise _MalformedError
            value, at = _json(part, match.end())
            calls.append(_call({"name": match[1], "arguments": value}))
        beside += part[at:].strip()
    return calls, beside


def _json(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends. Raises `ValueError`."""
    at += len(text[at:]) - len(text[at:].lstrip())
    value, end = json.JSONDecoder().raw_decode(text, at)
    return value, end


def _call(value: object) -> Call:
    if not isinstance(value, Mapping):
        raise _MalformedError
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise _MalformedError
    return name, arguments


def _types(name: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """The declared type of each parameter of a tool."""
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping) and function.get("name") == name:
            schema = function.get("parameters")
            properties = schema.get("properties") if isinstance(schema, Mapping) else None
            if isinstance(properties, Mapping):
                return {key: one.get("type") for key, one in properties.items() if isinstance(one, Mapping)}
    return {}


def _typed(text: str, kind: object) -> Any:
    """A parameter written as XML has no quotes: what is not declared as text is JSON where it can be."""
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _at(*markers: str) -> Callable[[str], int | None]:
    def find(text: str) -> int | None:
        places = [text.find(marker) for marker in markers if marker in text]
        return min(places) if places else None

    return find


def _at_llama3(text: str) -> int | None:
    if "<|python_tag|>" in text:
        return text.index("<|python_tag|>")
    bare = text.lstrip()
    return len(text) - len(bare) if bare.startswith("{") else None


Reader: TypeAlias = Callable[[str, Sequence[Tool]], tuple[list[Call], str]]
FORMATS: dict[
    str, tuple[Callable[[str], int | None], Reader]
] = {  # where the calls begin; what they are, and what is beside
    "hermes": (_at("<tool_call>"), _read_hermes),
    "qwen3_coder": (_at("<tool_call>"), _read_qwen3_coder),
    "llama3": (_at_llama3, _read_llama3),
    "mistral": (_at("[TOOL_CALLS]"), _read_mistral),
}
