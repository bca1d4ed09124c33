"""Why a request does not go on from an earlier one, and what is then trained."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.training.metrics import describe_episodes
from tests.gateway.students import TOOL, call_text, check_exact, read_stream, talk, tool_result, user

THOUGHT = "<think>\nwhat is it\n</think>\n\nthe answer"


async def two_turns(t: Any, change: Any, **more: Any) -> Any:
    """Two turns of which the second is asked for with a changed history, then a third; the report."""
    messages = [{"role": "system", "content": "Be brief."}, user("the question"), user("another")]
    messages.append(await t.say(messages))
    messages = [*change(messages), user("And then?")]
    messages.append(await t.say(messages, **more))
    await t.say([*messages, user("So?")], **more)
    report = t.gateway.close(t.address.id)
    episode = t.generate.episode()
    check_exact(t.student, episode)
    return report, episode


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: [m[0], *m[2:]], "history_shortened"),
        (lambda m: [*m[:2], user("other"), m[3]], "history_edited"),
        (lambda m: [*m[:3], m[3] | {"content": "I never said that"}], "new_conversation"),
        (lambda m: [user("A summary of it all")], "new_conversation"),
    ],
)
async def test_a_changed_history_begins_a_segment_and_says_why(change: Any, reason: str) -> None:
    t = talk("chatml", lambda turn: f"answer {turn}")
    report, episode = await two_turns(t, change)
    assert dict(report.segments) == {"start": 1, reason: 1}
    assert report.spliced == 1
    assert [rollout.reason for rollout in episode.rollouts] == ["", reason.replace("_", " ")]


async def test_other_tools_begin_a_segment() -> None:
    report, _ = await two_turns(talk("chatml", lambda turn: f"answer {turn}"), lambda m: m, tools=[TOOL])
    assert dict(report.segments) == {"start": 1, "tools_changed": 1}


async def test_stripped_thinking_begins_a_segment_at_a_question_but_not_in_a_tool_loop() -> None:
    said = ["<think>\nI call\n</think>\n\n" + call_text("qwen3", 1), THOUGHT, THOUGHT]
    t = talk("qwen3", lambda turn: said[turn])
    messages = [user("Add.")]
    for rest in ("tool", "user"):
        answer = await t.say(messages, tools=[TOOL])
        messages += [answer, *(tool_result(answer, "3") if rest == "tool" else [user("And?")])]
    await t.say(messages, tools=[TOOL])
    report = t.gateway.close(t.address.id)
    assert (report.spliced, dict(report.segments)) == (1, {"start": 1, "thinking_stripped": 1})
    assert "what is it" not in t.prompt_text()
    check_exact(t.student, t.generate.episode())


async def test_thinking_is_kept_where_that_is_asked_for() -> None:
    t = talk("qwen3", lambda turn: THOUGHT, keep_thinking=True)
    report, episode = await two_turns(t, lambda m: m)
    assert (report.spliced, len(episode.rollouts)) == (2, 1)
    assert t.prompt_text().count("what is it") == 2


async def test_keeping_thinking_is_no_leave_to_ignore_other_changes() -> None:
    t = talk("mistral", lambda turn: " " + THOUGHT, keep_thinking=True)
    t.student.tokenizer.chat_template = None
    t.gateway._desk.renderer.tokenizer.chat_template = "{{ messages | length }}" + "{{ messages[-1].content }}"
    report, _ = await two_turns(t, lambda m: m)
    assert dict(report.segments) == {"start": 1, "template_rewrote": 2}


async def test_a_stop_string_cuts_what_is_shown_and_the_next_turn_goes_on_from_what_was_shown() -> None:
    t = talk("chatml", lambda turn: "I look it up.\nObservation: made up" if turn == 0 else "Done")
    messages = [user("the question")]
    answer = await t.ask(messages, stop=["\nObservation:"], logprobs=True)
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I look it up.", "stop")
    assert answer["usage"]["completion_tokens"] == len(t.student.sampled)
    shown = [one["token"] for one in choice["logprobs"]["content"]]
    assert "".join(shown).startswith("I look it up.")
    assert len(shown) < len(t.student.sampled)
    await t.say([*messages, choice["message"], user("Observation: true")])
    assert "made up" not in t.prompt_text()
    report = t.gateway.close(t.address.id)
    assert dict(report.segments) == {"start": 1, "answer_cut": 1}
    check_exact(t.student, t.generate.episode())


async def test_an_answer_cut_by_its_length_gets_the_end_that_it_lacks() -> None:
    t = talk("chatml", lambda turn: "the answer is what the tool said")
    messages = [user("the question")]
    answer = await t.ask(messages, max_tokens=3)
    assert answer["choices"][0]["finish_reason"] == "length"
    await t.say([*messages, answer["choices"][0]["message"], user("Go on")])
    shown = answer["choices"][0]["message"]["content"]
    assert t.prompt_text().endswith(f"{shown}<|im_end|>\n<|im_start|>user\nGo on<|im_end|>\n<|im_start|>assistant\n")
    check_exact(t.student, t.generate.episode())


async def test_an_end_that_the_template_does_not_write_stays_and_the_template_adds_its_own() -> None:
    t = talk("chatml", lambda turn: [300, 0])  # 0: another stop token
    t.student.stop = 0
    messages = [user("a")]
    messages.append(await t.say(messages))
    await t.say([*messages, user("b")])
    assert "<|endoftext|><|im_end|>\n<|im_start|>user" in t.prompt_text()
    check_exact(t.student, t.generate.episode())


async def test_metrics_say_how_turns_went_on() -> None:
    t = talk("chatml", lambda turn: f"answer {turn}")
    messages = [user("the question")]
    messages.append(await t.say(messages))
    for _ in range(2):
        await t.say([*messages, user("And?")])
    await t.ask([user("A summary")], n=2)
    episode = t.generate.episode()
    numbers = describe_episodes(episode.rollouts, [0] * len(episode.rollouts), [], {})
    assert {name: numbers[name] for name in numbers if "s/" in name or "spliced" in name} == {
        "env/spliced": 2 / 5,
        "env/segments/branched": 2,
        "env/segments/new_conversation": 1,
    }


async def test_the_same_request_is_a_sibling_and_so_are_several_choices() -> None:
    t = talk("chatml", lambda turn: f"answer {turn}")
    messages = [user("the question")]
    await t.say(messages)
    stream = await t.post(messages=messages, n=2, stream=True)
    second, third = read_stream(stream.text)
    assert (second["content"], third["content"]) == ("answer 1", "answer 2")
    await t.say([*messages, third, user("And?")])
    report = t.gateway.close(t.address.id)
    assert (report.siblings, report.spliced, dict(report.segments)) == (2, 1, {"start": 1})
    episode = t.generate.episode()
    assert [rollout.reason for rollout in episode.rollouts] == ["", "branched", "branched"]
    check_exact(t.student, episode)


async def test_a_message_that_says_the_mark_is_not_taken_for_an_answer() -> None:
    from limbeck.gateway.rendering import PLACEHOLDER

    t = talk("chatml", lambda turn: f"answer {turn}")
    messages = [user("the question")]
    messages.append(await t.say(messages))
    await t.say([*messages, user(f"What is {PLACEHOLDER}?")])
    assert t.prompt_text().endswith(
        f"answer 0<|im_end|>\n<|im_start|>user\nWhat is {PLACEHOLDER}?<|im_end|>\n<|im_start|>assistant\n"
    )


async def test_control_tokens_in_an_answer_are_not_shown_to_the_agent() -> None:
    t = talk("chatml", lambda turn: [*t.student.encode("a"), 1, *t.student.encode("b")])
    messages = [user("x")]
    messages.append(await t.say(messages))
    assert messages[-1]["content"] == "ab"
    await t.say([*messages, user("y")])
    assert t.gateway.close(t.address.id).spliced == 1
    check_exact(t.student, t.generate.episode())


async def test_only_the_first_call_is_shown_where_several_are_not_wanted() -> None:
    t = talk("chatml", lambda turn: call_text("chatml", 1) + call_text("chatml", 2))
    both = await t.say([user("x")], tools=[TOOL])
    one = await t.say([user("x")], tools=[TOOL], parallel_tool_calls=False)
    assert [len(both["tool_calls"]), len(one["tool_calls"])] == [2, 1]
    assert len({call["id"] for call in [*both["tool_calls"], *one["tool_calls"]]}) == 3
