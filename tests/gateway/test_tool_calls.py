"""Tool calls as students write them: read exactly, or left as text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.errors import RecipeError
from limbeck.gateway.tool_calls import FORMATS, Parsed, check_format, detect, parse
from tests.gateway.students import TEMPLATES, TOOL

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
VALUES = PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=4), PLAIN, max_size=2)
PIECES = [
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    '{"name": ',
    '"arguments": ',
    '"a"',
    "{",
    "}",
    "]",
    "1",
    ", ",
    "<think>",
]
CALLS = st.lists(
    st.tuples(
        st.from_regex(r"[a-z_][a-z0-9_.]{0,8}", fullmatch=True),
        st.dictionaries(st.text(max_size=4), VALUES, max_size=2),
    ),
    min_size=1,
    max_size=3,
)


def written(fmt: str, calls: list[tuple[str, dict[str, Any]]], ascii_: bool) -> str:
    def dumped(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_)

    if fmt == "hermes":
        bodies = [dumped({"name": name, "arguments": arguments}) for name, arguments in calls]
        return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)
    if fmt == "llama3":
        return "; ".join(dumped({"name": name, "parameters": arguments}) for name, arguments in calls)
    return "[TOOL_CALLS]" + dumped([{"name": name, "arguments": arguments} for name, arguments in calls])


@pytest.mark.parametrize("fmt", ["hermes", "llama3", "mistral"])
@settings(max_examples=20, deadline=None)
@given(calls=CALLS, ascii_=st.booleans())
def test_calls_are_read_as_they_were_written(fmt: str, calls: list[tuple[str, dict[str, Any]]], ascii_: bool) -> None:
    text = written(fmt, calls, ascii_)
    if fmt == "mistral" and text.count("[TOOL_CALLS]") > 1:
        return  # a token of its own: no text has it
    assert parse(fmt, text, [TOOL]) == Parsed("", tuple(calls))


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=40, deadline=None)
@given(text=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_is_calls_or_stays_text(fmt: str, text: str) -> None:
    parsed = parse(fmt, text, [TOOL])
    assert parsed.calls or parsed.content == text
    assert not (parsed.calls and parsed.malformed)


@pytest.mark.parametrize(
    ("fmt", "text", "content", "calls"),
    [
        ("hermes", 'I add. <tool_call>{"name": "add", "arguments": {"a": 1}}', "I add.", [("add", {"a": 1})]),
        ("hermes", '<tool_call>{"name": "add"}</tool_call> and so on', "", [("add", {})]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("f", {"a": 1})]),
        ("qwen3_coder",
         "Well.\n<tool_call>\n<function=add>\n<parameter=a>\n12\n</parameter>\n<parameter=b>\n12\n</parameter>\n"
         "</function>\n</tool_call>", "Well.", [("add", {"a": 12, "b": "12"})]),
        ("qwen3_coder", "<tool_call><function=now></function></tool_call>", "", [("now", {})]),
        ("llama3", '<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [("add", {"a": 1})]),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1}[TOOL_CALLS]now[ARGS]{}', "", [("add", {"a": 1}), ("now", {})]),
        ("mistral", 'Well. [TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}, "id": "abcdefghi"}]', "Well.",
         [("add", {"a": 1})]),
        ("hermes", '<think>\n<tool_call>{"name": "x"}</tool_call>\n</think>\nNo.', None, []),
        ("hermes", '<think>\n<tool_call>{"name": "x"}</tool_call>', None, []),
        ("hermes", '<think>a</think>b<tool_call>{"name": "x"}</tool_call>', "<think>a</think>b", [("x", {})]),
        ("hermes", "No call.", None, []),
        ("llama3", "No {call}.", None, []),
    ],
)  # fmt: skip
def test_examples(fmt: str, text: str, content: str | None, calls: list[Any]) -> None:
    parsed = parse(fmt, text, [TOOL])
    assert (parsed.content, parsed.calls) == (text if content is None else content, tuple(calls))
    assert parsed.beside == ("and so on" if text.endswith("and so on") else "")


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>'),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "a"} or so</tool_call>'),
        ("hermes", '<tool_call>{"name": "a"}</tool_call><tool_call>{"nam</tool_call>'),
        ("hermes", '<tool_call>{"name": "a", "arguments": {"b": "\\ud83d"}}</tool_call>'),
        ("hermes", "<tool_call>" + '{"a":' * 100_000),
        ("qwen3_coder", "<tool_call><function=add><parameter=a>1</function></tool_call>"),
        ("llama3", '{"name": "add", "parameters": {"a": 1}} and so on'),
        ("mistral", "[TOOL_CALLS][]"),
        ("mistral", "[TOOL_CALLS]add{}"),
    ],
)
def test_a_call_that_cannot_be_read_is_text_and_counted(fmt: str, text: str) -> None:
    assert parse(fmt, text, [TOOL]) == Parsed(text, malformed=True)


def test_thinking_that_the_prompt_began_is_not_searched() -> None:
    text = 'I may <tool_call>{"name": "x"}</tool_call>'
    assert parse("hermes", text, [TOOL], thinking=True) == Parsed(text)
    assert parse("hermes", f"no</think>{text}", [TOOL], thinking=True).calls == (("x", {}),)


def test_formats_are_seen_in_templates() -> None:
    for name, (template, _, fmt) in TEMPLATES.items():
        assert detect(template) == (None if name == "no_tools" else fmt)
    assert detect({"default": "{{ messages }}", "tool_use": "<tool_call>\n<function="}) == "qwen3_coder"
    assert detect("<tool_call>{name}\n<arg_key>") is None
    assert detect(None) is None
    with pytest.raises(RecipeError, match="hermes"):
        check_format("python")
