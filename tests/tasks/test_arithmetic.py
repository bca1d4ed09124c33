"""The built-in task: right answers by construction, and no leak between the two parts."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.config.task import ArithmeticTaskConfig
from limbeck.errors import DataError
from limbeck.tasks import load_task
from limbeck.tasks.arithmetic import Arithmetic, _prompt, draw_pairs, question, worked_solution

from .helpers import build

operands = st.integers(1, 8).flatmap(lambda digits: st.tuples(st.just(digits), *[st.integers(0, 10**digits - 1)] * 2))


def task_of(digits: int, **sizes: int) -> Arithmetic:
    return Arithmetic(ArithmeticTaskConfig(digits=digits, **sizes), lambda text: [ord(c) for c in text], seed=0)


def prompt_of(digits, a, b):
    return _prompt(a, b, digits, lambda text: [ord(c) for c in text])


GRADE = task_of(1, train=1, held_out=1).grade


def test_the_documented_example():
    assert question(347, 586, 3) == "347+586="
    assert worked_solution(347, 586, 3) == "7+6+0=13;4+8+1=13;3+5+1=09;0933"


@given(operands)
def test_the_worked_solution_is_graded_right_and_its_columns_add_up(problem):
    digits, a, b = problem
    solution = worked_solution(a, b, digits)
    assert GRADE(prompt_of(digits, a, b), solution) == 1.0
    *columns, answer = solution.split(";")
    assert int(answer) == a + b
    assert len(answer) == digits + 1
    carry = 0
    for column in columns:
        summands, total = column.split("=")
        x, y, carried = map(int, summands.split("+"))
        assert (x + y + carried, carried) == (int(total), carry)
        carry = int(total) // 10


@given(operands, st.data())
def test_any_other_final_answer_is_wrong_however_good_the_scratchpad(problem, data):
    digits, a, b = problem
    scratchpad, _, right = worked_solution(a, b, digits).rpartition(";")
    wrong = data.draw(st.text("0123456789", max_size=digits + 2).filter(lambda text: text != right))
    assert GRADE(prompt_of(digits, a, b), f"{scratchpad};{wrong}") == 0.0


@given(operands, st.data())
def test_one_changed_digit_of_the_answer_is_wrong(problem, data):
    digits, a, b = problem
    solution = worked_solution(a, b, digits)
    place = data.draw(st.integers(1, digits + 1))
    digit = data.draw(st.sampled_from("0123456789").filter(lambda d: d != solution[-place]))
    changed = solution[: len(solution) - place] + digit + solution[len(solution) - place + 1 :]
    assert GRADE(prompt_of(digits, a, b), changed) == 0.0


def test_the_answer_may_stand_alone_but_not_before_the_end():
    prompt = prompt_of(3, 347, 586)
    assert GRADE(prompt, "0933") == 1.0
    assert GRADE(prompt, "0933\n") == 1.0
    assert GRADE(prompt, "933") == 0.0
    assert GRADE(prompt, "0933;0000") == 0.0
    assert GRADE(prompt, "") == 0.0


def test_train_and_held_out_share_no_problem_even_where_every_problem_is_used():
    task = task_of(1, train=70, held_out=30)
    train, held_out = ({p.text for p in part} for part in (task.train, task.held_out))
    assert (len(train), len(held_out), len(train | held_out)) == (70, 30, 100)


def test_the_seed_decides():
    assert draw_pairs(3, 50, seed=1) == draw_pairs(3, 50, seed=1)
    assert draw_pairs(3, 50, seed=1) != draw_pairs(3, 50, seed=2)


def test_more_problems_than_there_are_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match=r"101 problems.*only 100.*raise task\.digits"):
        task_of(1, train=100, held_out=1)


def test_load_task_tokenizes_raw_text_even_where_there_is_a_chat_template(chat):
    task = load_task(ArithmeticTaskConfig(digits=2, train=3, held_out=2), build(chat), longest_prompt=None)
    assert [chat.decode(p.token_ids) for p in task.train] == [f"<bos>{p.text}" for p in task.train]
    assert task.dropped == 0


def test_load_task_refuses_prompts_that_leave_no_room(chat):
    section = ArithmeticTaskConfig(digits=2, train=3, held_out=2)
    assert load_task(section, build(chat), longest_prompt=7).train  # "<bos>12+34="
    with pytest.raises(DataError, match=r"'arithmetic-\d\d\+\d\d' has 7 tokens, but at most 6") as caught:
        load_task(section, build(chat), longest_prompt=6)
    assert "rollout.max_tokens" in str(caught.value)
    assert "too_long" not in str(caught.value), "there is no such key in [task] for this kind"


def test_importing_tasks_imports_nothing_heavy():
    code = (
        "import sys, limbeck.tasks; print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', "
        "'reasoning_gym', 'math_verify', 'sympy') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
