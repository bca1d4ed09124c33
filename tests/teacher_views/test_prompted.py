"""What a teacher with a prompt of its own sees: its prompt, the answer, and what stands between the student's turns."""

from __future__ import annotations

import numpy as np
import pytest

from limbeck.config.view import PromptedViewConfig
from limbeck.errors import DataError, RecipeError
from limbeck.models.chat import chat_text
from limbeck.records import Chat, Failure, Key, Prompt, Rollout, Sampled, Sampling, Turn, single_turn
from limbeck.teacher_views.prompted import PromptedView
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.relabelling import relabelling_of

from .templates import CHATML, LLAMA3, MISTRAL, OPENS_THINKING, PLAIN, THINKING, tokenizer_of

SHOTS = ({"prompt": "2+2=", "completion": "4"},)
ASKED = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "1+1="})


def prompt_of(student, messages=ASKED, **more) -> Prompt:
    text = chat_text(student, messages)
    ids = tuple(student(text, add_special_tokens=False)["input_ids"])
    return Prompt("p", ids, text="1+1=", chat=Chat(tuple(messages)), **{"answer": "2", **more})


def view_of(student, teacher, **keys) -> PromptedView:
    prompts = TeacherPrompts(PromptedViewConfig(**keys), student, teacher)
    return PromptedView(prompts, relabelling_of(student, prompts.tokenizer))


def seen_text(view: PromptedView, prompt: Prompt) -> str:
    return view.prompts.tokenizer.decode(list(view.prompt_ids(prompt)))


def test_the_teachers_messages_in_the_teachers_template() -> None:
    student, teacher = tokenizer_of(CHATML), tokenizer_of(LLAMA3)
    view = view_of(student, teacher, system="Be sure.", context="It is {answer}.", few_shot=SHOTS)
    assert seen_text(view, prompt_of(student)) == (
        "<s><|header|>system\n\nBe sure.<|eot|><|header|>user\n\n2+2=<|eot|><|header|>assistant\n\n4<|eot|>"
        "<|header|>user\n\n1+1=\n\nIt is 2.<|eot|><|header|>assistant\n\n"
    )


def test_a_template_in_a_file(tmp_path) -> None:
    student, file = tokenizer_of(CHATML), tmp_path / "chat.jinja"
    file.write_text(PLAIN)
    seen = seen_text(view_of(student, student, template=str(file)), prompt_of(student))
    assert seen == "### system:\nBe kind.\n\n### user:\n1+1=\n\n### assistant:\n"
    with pytest.raises(RecipeError, match="cannot be read"):
        view_of(student, student, template=str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("context", "seen"),
    [
        ("{hint}", "carry"),
        ("{table.deep} {table[deep]} {list[1]} {json.a}", "down down y 1"),
        ("{list[-1]} {list.-2}", "y x"),
        ("{table}", '{"deep": "down"}'),
        ("{{{answer}}}", "{2}"),
        ("{missing}", None),
        ("{table.missing}", None),
        ("{empty}", None),
        ("{list[2]}", None),
        ("{list[-3]}", None),
        ("{answer.__class__}", None),
    ],
)
def test_the_context_is_filled_from_columns_of_the_row_and_nothing_else(context, seen) -> None:
    student = tokenizer_of(CHATML)
    row = {"hint": "carry", "table": {"deep": "down"}, "list": ["x", "y"], "json": '{"a": 1}', "empty": None}
    view, prompt = view_of(student, student, context=context), prompt_of(student, metadata=row)
    if seen is None:
        with pytest.raises(DataError, match=r"prompt 'p', as the teacher is to see it: .*which the row does not have"):
            view.prompt_ids(prompt)
    else:
        assert f"1+1=\n\n{seen}<|im_end|>" in seen_text(view, prompt)


@pytest.mark.parametrize("context", ["{}", "{0}", "{answer", "answer}"])
def test_a_context_that_names_no_column_is_refused_in_the_recipe(context) -> None:
    with pytest.raises(ValueError, match="brace"):
        PromptedViewConfig(context=context)


def test_raw_text_stays_raw_text_and_becomes_a_message_where_only_the_teacher_chats() -> None:
    student, teacher = tokenizer_of(None), tokenizer_of(CHATML)
    prompt = Prompt("p", tuple(student("1+1=")["input_ids"]), text="1+1=", answer="2")
    keys = {"system": "S;", "context": "{answer};", "few_shot": SHOTS}
    assert seen_text(view_of(student, student, **keys), prompt) == "S;2+2=42;1+1="
    assert seen_text(view_of(student, teacher), prompt) == "<|im_start|>user\n1+1=<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(DataError, match="neither which chat nor which text"):
        view_of(student, teacher).prompt_ids(Prompt("p", (20, 21), text="what a person reads"))


def test_what_the_teachers_template_refuses_is_named() -> None:
    student, teacher = tokenizer_of(CHATML), tokenizer_of(MISTRAL)
    with pytest.raises(DataError, match=r"as the teacher is to see it: the chat template of .* refuses"):
        view_of(student, teacher).prompt_ids(prompt_of(student))
    with pytest.raises(DataError, match="has no chat template"):
        view_of(student, tokenizer_of(None)).prompt_ids(prompt_of(student))


def test_thinking_begins_in_the_teachers_prompt_just_where_it_begins_in_the_students() -> None:
    closed, opened = tokenizer_of(THINKING), tokenizer_of(OPENS_THINKING)
    assert seen_text(view_of(closed, opened), prompt_of(closed)).endswith("<|header|>assistant\n")
    assert seen_text(view_of(opened, closed), prompt_of(opened)).endswith("<|im_start|>assistant\n<think>\n")
    assert seen_text(view_of(opened, opened), prompt_of(opened)).endswith("<|header|>assistant\n[THINK]\n")


def test_a_thought_that_the_students_prompt_opens_is_opened_by_the_token_of_that_name_too() -> None:
    opens = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    student = tokenizer_of(opens)
    view = view_of(student, tokenizer_of(CHATML))
    assert seen_text(view, prompt_of(student)).endswith("<|im_start|>assistant\n<think>\n")


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_answer_after_another_prompt() -> None:
    """Same tokens but for the end of the turn; scored where they are trained; the student's ids of a support too."""
    student, teacher = tokenizer_of(CHATML), tokenizer_of(LLAMA3)
    view, prompt = view_of(student, teacher), prompt_of(student)
    said = ids(student, "two<|im_end|>")
    sampled = Sampled(np.array(said), np.zeros(len(said), np.float32), "stop", 0)
    rollout = single_turn(prompt, Key("p"), sampled, Sampling(1.0, max_tokens=8))
    support = np.tile(np.array(said[-2:]), (len(said), 1))
    seen = view.see(rollout, support)
    assert not isinstance(seen, Failure)
    assert teacher.decode(seen.request.scored_ids) == "two<|eot|>"
    assert tuple(seen.request.token_ids[: seen.request.start]) == view.prompt_ids(prompt)
    assert isinstance(seen.request.support, np.ndarray)
    assert seen.request.support[0].tolist() == ids(teacher, "o<|eot|>")


def two_turns(student, prompt: Prompt, between: str, shown: Turn, said: str) -> Rollout:
    parts = [list(prompt.token_ids), ids(student, said), ids(student, between), ids(student, "done<|im_end|>")]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    trained = np.concatenate([np.full(len(part), n % 2 == 1) for n, part in enumerate(parts)])
    turns = (
        Turn(0, ends[0], "context"),
        Turn(ends[0], ends[1], "student", Key("p"), "stop"),
        Turn(ends[1], ends[2], shown.role, text=shown.text),
        Turn(ends[2], ends[3], "student", Key("p", turn=1), "stop"),
    )
    count = int(trained.sum())
    return Rollout(
        prompt, Key("p"), 0, np.concatenate(parts).astype(np.int64), trained, np.zeros(count, np.float32),
        np.zeros(count, np.int64), Sampling(1.0, max_tokens=8), turns,
    )  # fmt: skip


BETWEEN = "\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("said", ["add 2<|im_end|>", "add 2"], ids=["ended", "cut off"])
def test_what_stands_between_turns_is_rendered_again_in_the_teachers_template(said) -> None:
    student, teacher = tokenizer_of(CHATML), tokenizer_of(LLAMA3)
    view, prompt = view_of(student, teacher, system="Be sure."), prompt_of(student)
    rollout = two_turns(student, prompt, BETWEEN, Turn(0, 0, "tool", text="4"), said)
    seen = view.see(rollout, "sampled")
    assert not isinstance(seen, Failure)
    text = teacher.decode(seen.request.token_ids[len(view.prompt_ids(prompt)) :])
    assert text == "add 2<|eot|><|header|>tool\n\n4<|eot|><|header|>assistant\n\ndone<|eot|>"
    assert teacher.decode(seen.request.scored_ids) == said.replace("<|im_end|>", "<|eot|>") + "done<|eot|>"


def test_what_has_no_words_is_kept_in_one_template_and_refused_in_two() -> None:
    student = tokenizer_of(CHATML)
    prompt = prompt_of(student)
    rollout = two_turns(student, prompt, BETWEEN, Turn(0, 0, "context"), "add 2<|im_end|>")
    kept = view_of(student, student, system="Be sure.").see(rollout, "sampled")
    assert not isinstance(kept, Failure)
    assert student.decode(kept.request.token_ids).endswith(f"add 2<|im_end|>{BETWEEN}done<|im_end|>")
    refused = view_of(student, tokenizer_of(LLAMA3)).see(rollout, "sampled")
    assert isinstance(refused, Failure)
    assert "Give each Context its `role`" in refused.message


def test_a_rollout_that_begins_otherwise_is_refused() -> None:
    student = tokenizer_of(CHATML)
    prompt = prompt_of(student)
    rollout = single_turn(prompt, Key("p"), Sampled(np.array([20]), np.zeros(1, np.float32), "stop", 0), Sampling(1, 8))
    other = Prompt("p", (20, *prompt.token_ids[1:]), chat=prompt.chat)
    moved = Rollout(
        other, rollout.key, 0, rollout.token_ids, rollout.trained, rollout.logprobs, rollout.versions, rollout.sampling
    )
    failure = view_of(student, student).see(moved, "sampled")
    assert isinstance(failure, Failure)
    assert failure.kind == "other_prompt"
