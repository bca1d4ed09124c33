"""Chat templates that cannot write a prompt: one message, which names the tokenizer and what is wrong."""

from __future__ import annotations

import threading

import pytest

from limbeck.errors import DataError, ModelError
from limbeck.models.chat import chat_ids, chat_text, prove_template
from tests.tasks.conftest import TEMPLATE, character_tokenizer

USER = [{"role": "user", "content": "Hi"}]
NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('System message first!') }}{% endif %}"
NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"  # ten billion times


def tokenizer(template):
    made = character_tokenizer(template)
    made.name_or_path = "models/mine"
    return made


def test_ids_and_text_are_those_of_the_template_with_the_header_of_the_answer():
    chat = tokenizer(TEMPLATE)
    assert chat_text(chat, USER) == "<user>Hi<assistant>"
    assert chat.decode(chat_ids(chat, USER)) == "<user>Hi<assistant>"
    assert all(type(token) is int for token in chat_ids(chat, USER))


def test_tools_reach_the_template():
    chat = tokenizer("{% for tool in tools or [] %}{{ tool.name }};{% endfor %}" + TEMPLATE)
    assert chat_text(chat, USER, [{"name": "add"}, {"name": "sub"}]) == "add;sub;<user>Hi<assistant>"
    assert chat_text(chat, USER, []) == chat_text(chat, USER) == "<user>Hi<assistant>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (NEEDS_SYSTEM + TEMPLATE, r"'models/mine' refuses these messages.*System message first!.*'user'.*task\.system"),
        ("{{ messages[7].content.x }}", r"'models/mine' refuses these messages \(UndefinedError"),
        ({"rag": TEMPLATE, "plain": TEMPLATE}, r"'models/mine' has chat templates named 'rag', 'plain'.*'default'"),
        ({"tool_use": TEMPLATE}, r"none named 'default'.*tokenizer\.chat_template\[NAME\]"),
    ],
    ids=["wants a system message", "undefined", "named ones", "only for tools"],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_named(template, message):
    for render in (chat_ids, chat_text):
        with pytest.raises(DataError, match=message):
            render(tokenizer(template), USER)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", r"'models/mine' has a syntax error in line 1"),
        ({"default": "a", "rag": 5}, r"'models/mine' is .*expected text"),
        (NESTED.replace("x", "{{ messages[0].content }}"), r"'models/mine' does not end: 1 messages of"),
    ],
    ids=["syntax error", "number", "endless"],
)
def test_a_template_that_is_no_good_for_any_chat_is_the_models_fault(template, message, monkeypatch):
    monkeypatch.setattr("limbeck.models.chat.SECONDS", 0.2)
    broken = tokenizer(None)
    broken.chat_template = template
    with pytest.raises(ModelError, match=message):
        prove_template(broken)
    if not isinstance(template, dict):
        for render in (chat_ids, chat_text):
            with pytest.raises(ModelError, match=message):
                render(broken, USER)


def test_a_template_whose_time_was_up_is_no_longer_running(monkeypatch):
    monkeypatch.setattr("limbeck.models.chat.SECONDS", 0.2)
    with pytest.raises(ModelError, match="does not end"):
        chat_text(tokenizer(NESTED), USER)
    for thread in threading.enumerate():
        if thread.name == "limbeck-template":
            thread.join(10)
            assert not thread.is_alive()


def test_a_template_that_refuses_a_short_message_is_no_fault_of_the_model():
    prove_template(tokenizer(NEEDS_SYSTEM + TEMPLATE))
    prove_template(tokenizer(None))


def test_named_templates_are_chosen_as_transformers_chooses():
    chat = tokenizer({"default": TEMPLATE, "tool_use": "tools!" + TEMPLATE})
    assert chat_text(chat, USER) == "<user>Hi<assistant>"
    assert chat_text(chat, USER, [{"name": "add"}]) == "tools!<user>Hi<assistant>"
    assert chat_text(tokenizer({"tool_use": TEMPLATE}), USER, [{"name": "add"}]) == "<user>Hi<assistant>"


def test_a_system_message_that_is_there_is_not_recommended():
    refusing = tokenizer("{{ raise_exception('no') }}")
    with pytest.raises(DataError) as caught:
        chat_ids(refusing, [{"role": "system", "content": "S"}, *USER])
    assert "task.system" not in str(caught.value)
