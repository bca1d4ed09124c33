"""Odd chat templates: contents in parts or as text, messages and tools that a template leaves out, options it reads."""

from __future__ import annotations

import logging

import pytest

from limbeck.errors import DataError
from limbeck.tasks.prompts import Encoder
from tests.tasks.conftest import TEMPLATE, character_tokenizer

USER = {"role": "user", "content": "hi"}
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endfor %}<assistant>"
)
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}"
    "{% endif %}{% endfor %}<assistant>"
)
SHOUTS = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}<assistant>"
LAST_ONLY = "<user>{{ messages[-1].content }}<assistant>"
NO_SYSTEM = "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
NO_TOOL = "{% for m in messages if m.role != 'tool' %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}{% endfor %}<assistant>"
    "{% if enable_thinking is defined and enable_thinking is false %}no{% endif %}"
)


def encoder(template: str | None, chat: bool = True, **more: object) -> Encoder:
    return Encoder(character_tokenizer(template), chat, **more)  # type: ignore[arg-type]


def text(made: Encoder, *messages: dict[str, object], **more: object) -> str:
    return str(made.tokenizer.decode(made.messages(messages, **more)))  # type: ignore[arg-type]


@pytest.mark.parametrize("template", [TEMPLATE, PARTS, EITHER, NO_TOOL])
def test_contents_reach_the_template_in_the_shape_that_it_takes(template: str) -> None:
    assert text(encoder(template), {"role": "system", "content": "S"}, USER) == "<system>S<user>hi<assistant>"
    assert text(encoder(template, system="S"), USER) == "<system>S<user>hi<assistant>"
    assert encoder(template).tokenizer.decode(encoder(template).text("hi")) == "<user>hi<assistant>"


def test_a_template_that_changes_letters_shows_them_all_the_same() -> None:
    assert text(encoder(SHOUTS), USER) == "<user>HI<assistant>"


def test_messages_that_a_template_leaves_out_are_refused_or_named(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"does not show message 0, of role 'system'"):
        text(encoder(NO_SYSTEM), {"role": "system", "content": "S"}, USER)
    with pytest.raises(DataError, match=r"does not show message 0, of role 'system'"):
        encoder(NO_SYSTEM, system="S").text("hi")
    with pytest.raises(DataError, match=r"does not show message 1, of role 'tool'"):
        text(encoder(NO_TOOL), USER, {"role": "tool", "content": "7"})
    made = encoder(LAST_ONLY)
    with caplog.at_level(logging.WARNING, "limbeck"):
        for count in (2, 3):
            assert text(made, *[USER] * count) == "<user>hi<assistant>"
    assert caplog.text.count("does not show message 0, of role 'user'") == 1


def test_every_order_of_roles_is_examined() -> None:
    """A template may show tools beside a system message alone."""
    made = encoder(
        "{% if tools and messages[0].role == 'system' %}{{ tools | tojson }}{% endif %}" + TEMPLATE,
    )
    tools = [{"name": "add"}]
    assert "add" in text(made, {"role": "system", "content": "S"}, USER, tools=tools)
    with pytest.raises(DataError, match="does not show them"):
        text(made, USER, tools=tools)


# Options


def test_options_reach_the_template_and_those_of_a_row_come_first() -> None:
    made = encoder(THINKS, options={"enable_thinking": False})
    assert text(made, USER) == "<user>hi<assistant>no"
    assert text(made, USER, options={"enable_thinking": True}) == "<user>hi<assistant>"
    chat = made.chat_of([USER], options={"enable_thinking": True})
    assert chat is not None
    assert chat.options == {"enable_thinking": True}


def test_options_that_would_change_nothing_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"template_options has 'enable_thinkin', which the chat template .* does not read"
    ):
        encoder(THINKS, options={"enable_thinkin": False})
    with pytest.raises(DataError, match=r"has 'thinking', which the chat template"):
        text(encoder(TEMPLATE), USER, options={"thinking": False})
    with pytest.raises(DataError, match=r"task\.template_options needs a chat template"):
        encoder(None, options={"enable_thinking": False})
    with pytest.raises(DataError, match=r"template_options, which a chat template writes.*this prompt is raw text"):
        encoder(THINKS, chat=False, options={"enable_thinking": False}).text("hi")


# Going on with the last message


@pytest.mark.parametrize(
    ("template", "content", "ends"),
    [
        (TEMPLATE, "The sum is ", "<assistant>The sum is "),
        (PARTS, "The sum is ", "<assistant>The sum is "),
        (
            "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<eos>{% endfor %}",
            "The sum ",
            "<assistant>The sum",
        ),
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}", "hi", "<assistant>hi"),
        (TEMPLATE, "", "<assistant>"),
    ],
)
def test_a_last_message_of_the_assistant_is_gone_on_with(template: str, content: str, ends: str) -> None:
    made = encoder(template, continued=True)
    found = text(made, USER, {"role": "assistant", "content": content})
    assert found.startswith("<user>hi")
    assert found.endswith(ends)
    assert found.count("<assistant>") == 1
    chat = made.chat_of([USER, {"role": "assistant", "content": content}])
    assert chat is not None
    assert chat.continued
    assert text(made, USER).startswith("<user>hi"), "others are answered"


def test_a_last_message_that_the_template_changes_cannot_be_gone_on_with() -> None:
    made = encoder(THINKS, continued=True)
    with pytest.raises(DataError, match="continue_final_message is set but the final message does not appear"):
        text(made, USER, {"role": "assistant", "content": "<think>hm</think>"})
