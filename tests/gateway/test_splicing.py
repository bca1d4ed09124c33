"""Histories that go on keep the very tokens that were sampled; others begin a segment and say why."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from limbeck.gateway.rendering import Chat, Renderer
from limbeck.records import Sampling
from tests.gateway.students import CHATML_TOOLS as TOOLS
from tests.gateway.students import (
    HERMES_CALLS,
    TEMPLATES,
    TOOL,
    as_the_template_wants,
    call_text,
    check_exact,
    split_at_random,
    talk,
    tokenizer_of,
    tool_result,
    user,
)


@pytest.mark.parametrize("template", TEMPLATES)
async def test_a_history_that_goes_on_is_what_the_template_alone_would_write(template: str) -> None:
    """With answers in the tokenizer's own tokens the two must agree to the token: nothing doubled, nothing missing."""
    said = ["Hello there.", "Fine, thanks.", "Good bye."]
    blank = " " if template == "mistral" else ""  # which its template puts before an answer
    t = talk(template, lambda turn: blank + said[turn])
    messages = [user("Hi")]
    for turn in range(3):
        messages.append(await t.say(messages))
        messages.append(user(f"And {turn}?"))
    ends = [] if template != "plain" else [t.student.stop]
    for turn in range(3):
        expected = t.rendered(messages[: 2 * turn + 1])
        found = [i for i in t.student.requests[turn].token_ids.tolist() if i not in ends]
        assert found == expected, t.prompt_text(turn)
    report = t.gateway.close(t.address.id)
    assert (report.spliced, dict(report.segments)) == (2, {"start": 1})
    episode = t.generate.episode()
    assert len(episode.rollouts) == 1
    check_exact(t.student, episode)


async def test_tools_are_described_where_the_template_knows_none() -> None:
    t = talk("no_tools", lambda turn: call_text("no_tools", turn) * 2 if turn == 0 else "Done.", max_tokens=256)
    messages = [{"role": "system", "content": "Be brief."}, user("Add.")]
    messages.append(await t.say(messages, tools=[TOOL]))
    messages += tool_result(messages[-1], "3")
    assert (await t.say(messages, tools=[TOOL]))["content"] == "Done."
    text = t.prompt_text()
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools")
    assert '{"type": "function", "function": {"name": "add"' in text
    result = "<tool_response>\n3\n</tool_response>"
    assert text.endswith(
        f"</tool_call><|im_end|>\n<|im_start|>user\n{result}\n{result}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert t.gateway.close(t.address.id).spliced == 1
    check_exact(t.student, t.generate.episode())


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "no_tools"])
async def test_a_tool_loop_goes_on_after_the_exact_tokens_of_a_call(template: str) -> None:
    t = talk(template, lambda turn: call_text(template, turn) if turn < 2 else "Done.")
    messages = [user("Add.")]
    for _ in range(2):
        answer = await t.say(messages, tools=[TOOL])
        messages += [answer, *tool_result(answer, "3")]
    assert (await t.say(messages, tools=[TOOL]))["content"] == "Done."
    ends = [] if template != "plain" else [t.student.stop]
    found = [i for i in t.student.requests[-1].token_ids.tolist() if i not in ends]
    parsed = as_the_template_wants(messages)
    assert t.student.tokenizer.decode(found) == t.student.tokenizer.decode(t.rendered(parsed, tools=[TOOL]))
    report = t.gateway.close(t.address.id)
    assert (report.spliced, dict(report.segments)) == (2, {"start": 1})
    check_exact(t.student, t.generate.episode())


async def test_tokens_that_no_tokenizer_would_choose_are_kept() -> None:
    import random

    t = talk(
        "chatml",
        lambda turn: split_at_random(t.student.tokenizer, "the answer is what the tool said", random.Random(turn)),
    )
    messages = [user("the question was another one")]
    messages.append(await t.say(messages))
    await t.say([*messages, user("the question")])
    first, second = t.student.requests
    exact = [*first.token_ids.tolist(), *[i for i, _ in t.student.sampled[: -len(t.student.sampled) // 2]]]
    assert second.token_ids.tolist()[: len(exact)] == exact
    check_exact(t.student, t.generate.episode())


ASKED = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LAST = "{% set m = messages | selectattr('role', 'equalto', 'assistant') | list | last %}"


def turns(role: str = "m.role", suffix: str = "") -> str:
    turn = "<|im_start|>{{ " + role + " }}\n{{ m.content }}" + HERMES_CALLS + suffix + "<|im_end|>\n"
    return TOOLS + "{% set ns = namespace(role='') %}{% for m in messages %}" + turn


WRITES_OTHERWISE = {  # by what the answer says, or beside it
    "repeats the answer": turns()
    + "{% endfor %}" + LAST + "{% if m %}Said: {{ m.content }}{{ m.tool_calls }}.\n{% endif %}",
    "counts the answer": turns() + "{% endfor %}" + LAST + "{% if m %}{{ m | string | length }}\n{% endif %}",
    "role by the answer": turns("ns.role or m.role")
    + "{% set ns.role = 'sum' if '12' in m | string and m.role == 'assistant' else '' %}{% endfor %}",
    "suffix by the answer": turns(suffix="{% if '12' in m | string %} (12){% endif %}") + "{% endfor %}",
    "before the end": turns(suffix="{% if m.role == 'assistant' %}<no_think>{% endif %}") + "{% endfor %}",
    "one call": turns().replace("m.tool_calls or []", "(m.tool_calls or [])[:1]") + "{% endfor %}",
    "arguments": turns().replace("arguments | tojson", "arguments | tojson | replace('1', '3')") + "{% endfor %}",
    "before the call": turns().replace("{{ '\n<tool_call>", "{{ 'I call\n<tool_call>") + "{% endfor %}",
}  # fmt: skip
OF_CALLS = ("one call", "arguments", "before the call")


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("kind", WRITES_OTHERWISE)
async def test_a_template_that_writes_otherwise_by_the_answer_begins_a_segment(
    kind: str, called: bool, monkeypatch: Any
) -> None:
    monkeypatch.setitem(TEMPLATES, "odd", (WRITES_OTHERWISE[kind] + ASKED, "<|im_end|>", "hermes"))
    say = call_text("odd", 12) + call_text("odd", 2) if called else "12"
    t = talk("odd", lambda turn: say, max_tokens=128)
    messages = [user("Add.")]
    for _ in range(2):
        answer = await t.say(messages, tools=[TOOL])
        messages += [answer, *(tool_result(answer, "x") if called else [user("And?")])]
    await t.say(messages, tools=[TOOL])
    report = t.gateway.close(t.address.id)
    if not called and kind in OF_CALLS:
        assert (report.spliced, dict(report.segments)) == (2, {"start": 1})
    else:
        assert (report.spliced, dict(report.segments)) == (0, {"start": 1, "template_rewrote": 2})
    parsed = as_the_template_wants(messages)
    assert t.prompt_text() == t.student.tokenizer.decode(t.rendered(parsed, tools=[TOOL]))
    check_exact(t.student, t.generate.episode())


@pytest.mark.parametrize(("stop", "end"), [("\n", "\n"), ("\n", " \n"), (" ", " \n"), ("\n", "\n\n")])
async def test_an_end_of_blanks_is_not_written_twice(stop: str, end: str, monkeypatch: Any) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '" + end + "' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    ).replace("\n", "\\n")
    monkeypatch.setitem(TEMPLATES, "blank", (template, "<|endoftext|>", "hermes"))
    t = talk("blank", lambda turn: "forty six")
    (t.student.stop,) = t.student.encode(stop)
    t.generate.sampling = Sampling(0.7, 64, stop_ids=(t.student.stop,))
    messages = [user("12+34")]
    messages.append(await t.say(messages))
    messages.append(user("And?"))
    await t.say(messages)
    assert t.gateway.close(t.address.id).spliced == 1
    rest = end[end.index(stop) + len(stop) :]
    assert t.prompt_text().endswith(f"assistant: forty six{stop}{rest}user: And?{end}assistant: ")
    check_exact(t.student, t.generate.episode())


@pytest.mark.parametrize("kind", ["byte level", "metaspace first", "metaspace always", "end that takes blanks"])
@pytest.mark.parametrize("template", ["chatml", "mistral", "llama3"])
def test_what_follows_an_answer_has_the_tokens_that_it_has_in_the_whole_chat(template: str, kind: str) -> None:
    """Tokenizers treat the beginning of a text in another way than its middle; some ends of turn swallow blanks."""
    text, end, _ = TEMPLATES[template]
    tokenizer = tokenizer_of(template)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if kind.startswith("metaspace"):
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.rpartition(" ")[2])
        backend.decoder = decoders.Metaspace(prepend_scheme=kind.rpartition(" ")[2])
        backend.add_tokens(["\u2581", "\n"])
    elif kind.startswith("end"):
        backend.add_special_tokens([AddedToken(end, rstrip=True, special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    tokenizer.chat_template = text
    renderer, stop = Renderer(tokenizer), tokenizer.convert_tokens_to_ids(end)
    chat = Chat([user("Hi"), {"role": "assistant", "content": "Hello"}, user("And?")])
    whole = renderer.encode_whole(renderer.text(chat))
    answered = renderer.encode_whole(renderer.text(chat.first(1)))
    end_at = whole.index(stop, len(answered)) + 1
    after = renderer.after_answer(chat, 1, end)
    assert after is not None
    assert [*whole[:end_at], *renderer.encode(after, stop)] == whole
