"""What a person reads of rollouts: the question, and the turns of an evaluation's answers."""

from __future__ import annotations

from pathlib import Path

from limbeck.records import Chat, Prompt
from limbeck.testing import FakeTask
from limbeck.training.evaluation import evaluate
from limbeck.training.transcripts import question_of
from tests.training.test_collect import PROMPTS, Script, run_of, soon
from tests.training.test_episodes import FREE, two_turns


def test_the_question_is_the_last_user_message() -> None:
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2+2?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]},
        {"role": "tool", "content": "4"},
    )
    assert question_of(Prompt("p", (1,), text="system: Be brief.\nuser: ...", chat=Chat(messages))) == "What is 2+2?"
    assert question_of(Prompt("p", (1,), text="2+2=", chat=Chat(messages[:1]))) == "2+2="
    assert question_of(Prompt("p", (1,), text="2+2=")) == "2+2="


async def test_the_answers_of_an_evaluation_have_their_turns(tmp_path: Path) -> None:
    run = run_of(tmp_path, environment=Script(two_turns), limits=FREE, task=FakeTask(PROMPTS, held_out=2))
    prompt = run.task.held_out[0]
    one, other = (await soon(evaluate(run))).answers
    assert (one.prompt_id, one.sample, one.segment, one.answer) == (prompt.id, 0, 0, prompt.answer)
    assert [turn["role"] for turn in one.turns] == ["student", "tool", "student"]
    assert one.turns[1]["text"] == "five"
    assert " ".join(turn["text"] for turn in one.turns if turn["role"] == "student") == one.response
    assert other.turns != one.turns


async def test_an_answer_of_one_turn_is_its_response(tmp_path: Path) -> None:
    run = run_of(tmp_path, task=FakeTask(PROMPTS, held_out=2))
    assert [answer.turns for answer in (await soon(evaluate(run))).answers] == [(), ()]
