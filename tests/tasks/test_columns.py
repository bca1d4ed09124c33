"""What columns mean: tools, numbers, calls of tools, text that is no Unicode, and columns that nothing reads."""

from __future__ import annotations

import json
import logging
from decimal import Decimal

import pytest

from limbeck.errors import DataError

from .conftest import TEMPLATE, character_tokenizer
from .helpers import everything, load, load_dataset_task, sums

USER = [{"role": "user", "content": "1+1="}]
ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"type": "number"}}}}}
SUB = {"type": "function", "function": {"name": "sub", "parameters": {"properties": {"b": {"type": "number"}}}}}


@pytest.fixture(scope="module")
def with_tools():
    """A chat template that writes the tools, as JSON, before the messages; calls of tools too."""
    return character_tokenizer(
        "{% for tool in tools or [] %}{{ tool | tojson }};{% endfor %}"
        "{% for message in messages %}{{ '<' + message.role + '>' if message.role != 'tool' else 'T:' }}"
        "{{ message.content or '' }}{% for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}"
        "{% endfor %}<assistant>"
    )


# Tools


@pytest.mark.parametrize("row", [{"messages": USER}, {"prompt": "1+1="}], ids=["messages", "prompt"])
@pytest.mark.parametrize("spell", [list, json.dumps], ids=["list", "json"])
def test_tools_are_written_into_the_prompt(row, spell, write, with_tools):
    prompts = everything(
        load(write({**row, "tools": spell([ADD])}, {**row, "tools": []}, {**row, "tools": None}), with_tools)
    )
    texts = [with_tools.decode(prompt.token_ids) for prompt in prompts]
    assert texts == [f"{json.dumps(ADD)};<user>1+1=<assistant>", *["<user>1+1=<assistant>"] * 2]
    assert prompts[0].metadata["tools"] == spell([ADD]), "who plays the tools wants them too"


def test_tools_can_be_in_another_column(write, with_tools):
    path = write({"messages": USER, "functions": [ADD], "tools": [SUB]})
    prompt = load(
        path, with_tools, held_out_path=write(*sums(2), name="h.jsonl"), columns={"tools": "functions"}
    ).train[0]
    assert with_tools.decode(prompt.token_ids) == f"{json.dumps(ADD)};<user>1+1=<assistant>"


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("{oops", r"'tools' is text that is not JSON"),
        (["add"], r"'tools' is \['add'\] \(list\); expected a list of tables"),
        ({"name": "add"}, r"'tools' is .*\(dict\); expected a list"),
        ('"add"', r"'tools' is 'add' \(str\); expected a list"),
    ],
)
def test_tools_that_are_none_are_refused_with_their_line(tools, message, write, with_tools):
    with pytest.raises(DataError, match=rf"line 2: {message}"):
        load(write({"messages": USER}, {"messages": USER, "tools": tools}), with_tools)


def test_tools_that_the_template_does_not_show_are_refused(write, chat, plain):
    with pytest.raises(DataError, match=r"line 1: the row has tools, but the chat template of .* does not show them"):
        load(write({"messages": USER, "tools": [ADD]}), chat)
    for tokenizer, keys in ((plain, {}), (chat, {"chat": False})):
        with pytest.raises(DataError, match=r"line 1: the row has tools.* but this prompt is raw text"):
            load(write({"prompt": "a", "tools": [ADD]}), tokenizer, **keys)


def test_arrow_gives_every_tool_the_keys_of_all_and_these_are_not_shown(tmp_path, with_tools):
    from datasets import Dataset

    calls = [{"function": {"name": "add", "arguments": {"a": 1}}}, {"function": {"name": "sub", "arguments": {"b": 1}}}]
    chats = [
        [*USER, {"role": "assistant", "content": None, "tool_calls": [c]}, {"role": "tool", "content": "2"}]
        for c in calls
    ]
    rows = [{"messages": m, "tools": [t]} for m, t in zip(chats, (ADD, SUB), strict=True)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "made")
    texts = [with_tools.decode(p.token_ids) for p in everything(load_dataset_task(with_tools, tmp_path / "made"))]
    assert texts == [
        f"{json.dumps(t)};<user>1+1=<assistant>{json.dumps(c)}T:2<assistant>"
        for t, c in zip((ADD, SUB), calls, strict=True)
    ]


# Calls of tools in the messages


def test_a_turn_that_calls_a_tool_is_readable(write, with_tools):
    calls = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}]
    flat = [{"name": "sub", "arguments": '{"a": 1}'}, {"odd": True}]
    turns = [
        *[*USER, {"role": "assistant", "content": None, "tool_calls": calls}, {"role": "tool", "content": "2"}],
        *[{"role": "assistant", "content": "And:", "tool_calls": flat}, {"role": "tool", "content": "0"}],
    ]
    prompt = load(write({"messages": turns}, {"prompt": "a"}), with_tools, held_out=1, seed=0)
    [prompt] = [p for p in everything(prompt) if p.text != "a"]
    assert prompt.text.splitlines() == [
        *["user: 1+1=", 'assistant: add({"a": 1, "b": "é"})', "tool: 2"],
        *["assistant: And:", 'sub({"a": 1})', '{"odd": true}', "tool: 0"],
    ]


def test_a_turn_without_content_needs_a_call(write, with_tools):
    for calls in (None, []):
        row = {"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": calls}, *USER]}
        with pytest.raises(DataError, match=r"line 1: messages\[1\]\.content is None"):
            load(write(row), with_tools)
    row = {"messages": [*USER, {"role": "assistant", "content": None, "tool_calls": "add"}, *USER]}
    with pytest.raises(DataError, match=r"messages\[1\]\.tool_calls is 'add' \(str\); expected a list"):
        load(write(row), with_tools)


# Numbers


@pytest.mark.parametrize(
    "text", ["0.00001", "72.0", "72", "1e-05", "1E5", "-0", "0.10", "123456789012345678901234567890"]
)
def test_a_number_in_json_keeps_its_text(text, write, chat):
    line = f'{{"prompt": "a", "level": 1.50, "answer": {text}}}'
    prompt = load(write(line, line), chat).train[0]
    assert prompt.answer == text
    assert prompt.metadata == {"level": 1.5}
    assert type(prompt.metadata["level"]) is float


FLOATS = [0.00001, 1e22, 72.0, None, 0.1, -2.5]
AS_TEXT = ["0.00001", "10000000000000000000000.0", "72.0", None, "0.1", "-2.5"]


@pytest.mark.parametrize("kind", ["parquet", "dataset"])
@pytest.mark.parametrize(
    ("type_", "values", "texts"),
    [
        ("float64", FLOATS, AS_TEXT),
        ("float32", [0.1, 1 / 3, 0.00001], ["0.1", "0.33333334", "0.00001"]),
        ("float64", [72.0, None, -3.0], ["72", None, "-3"]),  # integers that pandas wrote beside a gap
        ("int64", [72, None, 0], ["72", None, "0"]),
        ("decimal", [Decimal("1.50"), Decimal("0.00"), Decimal("1000.00")], ["1.50", "0.00", "1000.00"]),
    ],
)
def test_binary_numbers_become_the_shortest_exact_text(kind, type_, values, texts, tmp_path, chat):
    import pyarrow
    from datasets import Dataset
    from pyarrow import parquet

    types = {
        "float64": pyarrow.float64(),
        "float32": pyarrow.float32(),
        "int64": pyarrow.int64(),
        "decimal": pyarrow.decimal128(9, 2),
    }
    table = pyarrow.table({"prompt": list("abcdef")[: len(values)], "answer": pyarrow.array(values, types[type_])})
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "made.parquet")
        task = load(str(tmp_path / "made.parquet"), chat)
    else:
        Dataset(table).save_to_disk(tmp_path / "made")
        task = load_dataset_task(chat, tmp_path / "made")
    assert [prompt.answer for prompt in everything(task)] == texts


def test_numbers_that_are_compared_as_text_are_reported_once(write, chat, caplog):
    path = write('{"prompt": "a", "answer": 72.0}', '{"prompt": "b", "answer": 1e-05}', '{"prompt": "c", "answer": 7}')
    for grader, reported in (({"kind": "exact"}, 1), ({"kind": "numeric"}, 0), (None, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "limbeck"):
            load(path, chat, grader=grader)
        assert caplog.text.count("2 of 3 answers are numbers") == reported
        assert caplog.text.count('task.grader.kind = "numeric"') == reported


def test_an_answer_that_numeric_cannot_read_is_refused_with_its_line(write, chat):
    path = write({"prompt": "a", "answer": r"\frac{3}{4}"}, {"prompt": "b", "answer": r"\sqrt{2}"})
    with pytest.raises(DataError, match=r"sums\.jsonl line 2: .*sqrt.*not one number.*math_verify"):
        load(path, chat, grader={"kind": "numeric"})
    load(path, chat, grader={"kind": "exact"})


# Text that is no Unicode


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (r'{"prompt": "a\ud800"}', "'prompt'"),
        (r'{"prompt": "a", "answer": "\udfff"}', "'answer'"),
        (r'{"prompt": "a", "id": "\ud800"}', "'id'"),
        (r'{"prompt": "a", "teacher": "\ud800"}', "'teacher'"),
        (r'{"messages": [{"role": "user", "content": "a\ud800"}]}', r"'messages\[0\]\.content'"),
        (r'{"messages": [{"role": "\ud800", "content": "a"}]}', r"'messages\[0\]\.role'"),
        (r'{"messages": [{"role": "user", "content": "a", "name": "\ud800"}]}', r"'messages\[0\]\.name'"),
        (r'{"messages": [{"role": "user", "content": "a", "\ud800": 1}]}', r"'a key of messages\[0\]'"),
        (r'{"prompt": "a", "tools": [{"name": "\ud800"}]}', r"'tools\[0\]\.name'"),
        (r'{"prompt": "a", "tools": "[{\"name\": \"\\ud800\"}]"}', r"'tools\[0\]\.name'"),
    ],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_is_used(line, where, write, chat):
    with pytest.raises(DataError, match=rf"sums\.jsonl line 2: {where} has a lone surrogate '\\u"):
        load(write({"prompt": "fine"}, line, {"prompt": "fine too"}), chat)


def test_a_whole_pair_is_fine_and_so_is_a_column_that_nothing_reads(write, chat):
    line = r'{"prompt": "\ud83d\ude42", "answer": "\ud83d\ude42", "note": "\ud800"}'
    assert load(write(line, line), chat).train[0].answer == "\U0001f642"


# Columns of a known meaning that are not used


def test_columns_that_mean_something_and_are_not_used_are_named_once(write, chat, caplog):
    rows = [{"prompt": "a", "ground_truth": "7", "system": "S", "images": None, "level": 3, "solution": "s"}] * 3
    with caplog.at_level(logging.WARNING, "limbeck"):
        load(write(*rows), chat, columns={"answer": "solution"})
    [record] = [r for r in caplog.records if "not used" in r.getMessage()]
    message = record.getMessage()
    assert "'ground_truth' (point task.columns.answer at it" in message
    assert "'system' (set task.system" in message
    assert not any(name in message for name in ("images", "level", "'solution'"))


def test_what_a_template_would_be_given_is_named_too(write, chat, caplog):
    rows = [{"prompt": "a", "tools": [ADD], "documents": [{"text": "b"}], "enable_thinking": False}] * 3
    with caplog.at_level(logging.WARNING, "limbeck"):
        load(write(*rows), chat, columns={"tools": "absent"})
    [record] = [r for r in caplog.records if "not used" in r.getMessage()]
    assert all(name in record.getMessage() for name in ("'tools'", "'documents'", "'enable_thinking'"))


# Chat templates


def test_a_template_that_refuses_a_row_is_named_with_the_row(write):
    needs_system = "{% if messages[0].role != 'system' %}{{ raise_exception('System first!') }}{% endif %}" + TEMPLATE
    tokenizer = character_tokenizer(needs_system)
    path = write({"messages": [{"role": "system", "content": "S"}, *USER]}, {"prompt": "a"})
    with pytest.raises(
        DataError, match=r"sums\.jsonl line 2: the chat template of .* refuses these messages.*System first!"
    ):
        load(path, tokenizer)
    assert load(write(*sums(2)), tokenizer, system="S").train, "task.system gives one"


def test_a_prompt_keeps_the_chat_that_it_was_rendered_from(write, with_tools):
    """A teacher may see it rendered otherwise; an answer of another name can be shown by both names."""
    path = write({"prompt": "1+1=", "solution": "2", "tools": [ADD]}, {"messages": USER, "solution": "2"})
    prompts = everything(load(path, with_tools, system="Be brief.", columns={"answer": "solution"}))
    for prompt, tools in zip(prompts, ((ADD,), ()), strict=True):
        assert prompt.chat is not None
        assert [message["content"] for message in prompt.chat.messages] == ["Be brief.", "1+1="]
        assert prompt.chat.tools == tools
        assert (prompt.answer, prompt.metadata["solution"]) == ("2", "2")
    assert all(prompt.chat is None for prompt in everything(load(write(*sums(2)), with_tools, chat=False)))
