"""Tasks of one's own: the factory, what it may return, and what is named when it returns something else."""

from __future__ import annotations

import sys

import pytest

from limbeck.config.recipe import parse_recipe
from limbeck.errors import DataError, RecipeError
from limbeck.tasks import PythonTask, load_task

from .helpers import build

TASKS = """
from types import SimpleNamespace
from limbeck.records import Prompt

def prompts(build, count, start=0, **more):
    ids = range(start, start + count)
    encode = lambda n: build.tokenizer(f"{n}=")["input_ids"]
    return [Prompt(id=f"n{n}", token_ids=encode(n), text=f"{n}=", answer=str(n), **more) for n in ids]

class Counting:
    def __init__(self, build, count=3, worth=1):
        self.train, self.held_out, self.worth = prompts(build, count), prompts(build, 2, start=count), worth
    def grade(self, prompt, response):
        return self.worth * (response == prompt.answer)

class Leaves(Counting):
    def grade(self, prompt, response): exit()

def empty(build): return Counting(build, count=0)
def no_grade(build): return SimpleNamespace(train=prompts(build, 1), held_out=prompts(build, 1, start=1))
def texts(build): return SimpleNamespace(train=["1="], held_out=["2="], grade=None)
def twice(build): return SimpleNamespace(train=prompts(build, 2), held_out=prompts(build, 1), grade=lambda p, r: 1)
def strange(build):
    prompt = Prompt(id="x", token_ids=(1, -1))
    return SimpleNamespace(train=[prompt], held_out=prompts(build, 1), grade=lambda p, r: 1)
def surrogate(build):
    prompt = Prompt(id="x", token_ids=(1,), answer="\\ud800")
    return SimpleNamespace(train=[prompt], held_out=prompts(build, 1), grade=lambda p, r: 1)
"""


@pytest.fixture(autouse=True)
def my_tasks(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_tasks", None)


def load(tokenizer, name, longest_prompt=None, **options):
    table = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}}
    recipe = parse_recipe({**table, "task": {"kind": "python", "factory": f"my_tasks:{name}", **options}})
    return load_task(recipe.task, build(tokenizer), longest_prompt)


def test_a_task_of_ones_own_gets_its_options_and_grades(chat):
    task = load(chat, "Counting", count=5, worth=2)
    assert ([p.id for p in task.train], [p.id for p in task.held_out]) == (["n0", "n1", "n2", "n3", "n4"], ["n5", "n6"])
    assert (task.grade(task.train[3], "3"), task.grade(task.train[3], "4"), task.dropped) == (2.0, 0.0, 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", r"my_tasks:empty\.train is empty"),
        ("no_grade", r"my_tasks:no_grade is SimpleNamespace, which has no 'grade'; expected a task"),
        ("texts", r"my_tasks:texts\.train\[0\] is '1='; expected a limbeck\.records\.Prompt"),
        ("twice", r"my_tasks:twice: the id 'n0' is there twice"),
        ("strange", r"my_tasks:strange: prompt 'x' has the token id -1"),
        ("surrogate", r"my_tasks:surrogate\.train\[0\]: 'answer' has a lone surrogate"),
    ],
)
def test_what_is_no_task_is_named(name, message, chat):
    with pytest.raises(DataError, match=message):
        load(chat, name)


def test_options_that_the_factory_does_not_take_are_named(chat):
    with pytest.raises(RecipeError, match=r"task\.factory = 'my_tasks:Counting' cannot be called.*'counts'.*count=3"):
        load(chat, "Counting", counts=5)


def test_prompts_that_leave_no_room_are_refused(chat):
    assert load(chat, "Counting", longest_prompt=3).train  # "<bos>0="
    with pytest.raises(DataError, match=r"'n0' has 3 tokens, but at most 2"):
        load(chat, "Counting", longest_prompt=2)


def test_token_ids_beyond_the_students_vocabulary_are_refused(chat):
    task = load(chat, "Counting")
    largest = max(token for prompt in (*task.train, *task.held_out) for token in prompt.token_ids)
    assert PythonTask(task, "mine", None, vocabulary=largest + 1).train
    with pytest.raises(DataError, match=rf"mine: prompt 'n\d' has the token id {largest}.* from 0 to {largest - 1}\."):
        PythonTask(task, "mine", None, vocabulary=largest)


def test_a_grade_that_exits_names_task_and_prompt(chat):
    task = load(chat, "Leaves")
    with pytest.raises(DataError, match=r"my_tasks:Leaves\.grade raised SystemExit on prompt 'n0'"):
        task.grade(task.train[0], "0")
