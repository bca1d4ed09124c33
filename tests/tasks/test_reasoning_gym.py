"""Generated tasks: the package's own verifier, and no question in both parts."""

from __future__ import annotations

import logging
import sys

import pytest

from limbeck.config.task import ReasoningGymTaskConfig
from limbeck.errors import DataError
from limbeck.tasks import load_task

from .conftest import TEMPLATE, character_tokenizer
from .helpers import build


def load(tokenizer, name="chain_sum", seed=0, longest_prompt=None, **keys):
    keys.setdefault("train", 20)
    keys.setdefault("held_out", 5)
    return load_task(ReasoningGymTaskConfig(name=name, **keys), build(tokenizer, seed), longest_prompt)


def test_prompts_go_through_the_chat_template(chat, plain):
    prompt = load(chat, system="S").train[0]
    assert chat.decode(prompt.token_ids) == f"<system>S<user>{prompt.text}<assistant>"
    assert chat.decode(load(chat, chat=False).train[0].token_ids) == f"<bos>{prompt.text}"
    assert plain.decode(load(plain).train[0].token_ids) == f"<bos>{prompt.text}"
    assert (prompt.task, prompt.id) == ("chain_sum", "chain_sum-000005")
    assert prompt.answer == prompt.metadata["answer"]


def test_the_packages_verifier_grades_tagged_and_bare_answers(chat):
    task = load(chat, options={"min_digits": 4, "max_digits": 4, "min_terms": 2, "max_terms": 2})
    prompt = next(p for p in task.train if int(p.answer) > 1000)
    assert task.grade(prompt, prompt.answer) == 1.0
    assert task.grade(prompt, f" {prompt.answer}\n") == 1.0
    assert task.grade(prompt, f"{int(prompt.answer):,}.00") == 1.0, "its own leniency, not ours"
    assert task.grade(prompt, f"<answer>1</answer> no, <answer> {prompt.answer} </answer> so.") == 1.0
    assert task.grade(prompt, f"{prompt.answer} <answer>1</answer>") < 0.5
    assert task.grade(prompt, "") == 0.0


def test_every_own_answer_is_right(chat):
    task = load(chat, name="letter_counting")
    assert {task.grade(p, p.answer) for p in [*task.train, *task.held_out]} == {1.0}


def test_a_template_that_refuses_is_named_with_the_problem():
    wants = "{% if messages[0].role != 'system' %}{{ raise_exception('System!') }}{% endif %}"
    tokenizer = character_tokenizer(wants + TEMPLATE)
    with pytest.raises(DataError, match=r"'chain_sum', problem 0: the chat template of .* refuses .*System!"):
        load(tokenizer)
    assert load(tokenizer, system="S").train


def test_the_seed_decides(chat):
    first, same, other = (load(chat, seed=seed) for seed in (1, 1, 9_000))
    assert [p.text for p in first.train] == [p.text for p in same.train]
    assert [p.text for p in first.held_out] == [p.text for p in same.held_out]
    assert [p.text for p in first.train] != [p.text for p in other.train]


SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 problems


def test_no_question_is_in_both_parts_even_where_there_are_few(chat, caplog):
    with caplog.at_level(logging.WARNING, "limbeck"):
        task = load(chat, options=SMALL, train=300, held_out=50)
    held_out = {p.text for p in task.held_out}
    assert len(task.held_out) == 50
    assert not held_out & {p.text for p in task.train}
    assert 0 < len(task.train) < 300
    assert f"dropped {300 - len(task.train)} of 300 problems" in caplog.text


def test_nothing_left_to_train_on_is_an_error(chat):
    with pytest.raises(DataError, match=r"leaves nothing to train on.*Lower task\.held_out"):
        load(chat, options=SMALL, train=1, held_out=2000)


def test_too_long_prompts_stop_the_run_or_are_dropped(chat):
    lengths = sorted(len(p.token_ids) for p in load(chat).train)
    limit = lengths[len(lengths) // 2]
    with pytest.raises(DataError, match=rf"tokens, but at most {limit} leave room.*too_long"):
        load(chat, longest_prompt=limit)
    task = load(chat, longest_prompt=limit, too_long="drop")
    assert task.dropped > 0
    assert max(len(p.token_ids) for p in [*task.train, *task.held_out]) <= limit
    assert len(task.train) + len(task.held_out) + task.dropped == 25


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "chain_sums"}, r"no data set 'chain_sums'. Did you mean .*'chain_sum'"),
        ({"name": "zzzzzzzz"}, r"no data set 'zzzzzzzz'. It has .*basic_arithmetic"),
        ({"options": {"max_term": 3}}, r"no option 'max_term'. It has: .*max_terms"),
        ({"options": {"seed": 3}}, r"task\.options\.seed = 3 cannot be set"),
        ({"options": {"size": 3}}, r"task\.options\.size = 3 cannot be set"),
        ({"options": {"min_terms": 9}}, r"refuses task\.options = .*max_terms must be >= min_terms"),
        ({"options": {"min_terms": "two"}}, r"refuses task\.options"),
    ],
)
def test_wrong_names_and_options(keys, message, chat):
    with pytest.raises(DataError, match=message):
        load(chat, **keys)


def test_an_answer_that_the_verifier_chokes_on_is_wrong_and_said_once(chat, caplog):
    task = load(chat, name="prime_factorization")
    with caplog.at_level(logging.WARNING, "limbeck"):
        assert [task.grade(task.train[0], "no idea") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert caplog.text.count("raised ValueError") == 1
    assert task.grade(task.train[0], task.train[0].answer) == 1.0


def test_a_verifier_that_chokes_on_its_own_answer_is_an_error(chat, monkeypatch):
    task = load(chat)

    def score_answer(answer, entry):
        raise KeyError("broken")

    monkeypatch.setattr(task._dataset, "score_answer", score_answer)
    with pytest.raises(DataError, match=r"verifier of 'chain_sum' raised KeyError on prompt 'chain_sum-"):
        task.grade(task.train[0], "1")


def test_missing_reasoning_gym_names_the_extra(monkeypatch, chat):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install 'limbeck\[gym\]'"):
        load(chat)
