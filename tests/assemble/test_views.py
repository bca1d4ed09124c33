"""Views from a recipe: what is refused where a template lacks a token, who sees what, and what a person is shown."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.assemble.views import example_of, open_view, texts_of
from limbeck.config.view import PromptedViewConfig, RetokenizedViewConfig, SameViewConfig
from limbeck.errors import DataError, RecipeError
from limbeck.records import Chat, Prompt
from limbeck.teacher_views.prompted import PromptedView
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.retokenized import RetokenizedView
from limbeck.teacher_views.routed import RoutedViews
from limbeck.teacher_views.same import SameView
from limbeck.teacher_views.spelling import Speller
from tests.teacher_views.templates import CHATML, LLAMA3, PLAIN, SPECIAL, THINKING, tokenizer_of

ASKED = Chat(({"role": "user", "content": "1+1="},))


def site(template: str, support: Any = "full", max_tokens: int = 8, **objective: Any) -> Any:
    """As much of a `Site` as views look at."""
    settings = {"support": support, "discount": 0.0, "task_reward": None, "reference": None, **objective}
    rollout = SimpleNamespace(max_tokens=max_tokens, stop_ids=())
    recipe = SimpleNamespace(objective=SimpleNamespace(**settings), rollout=rollout)
    tokenizer = tokenizer_of(template)
    student = SimpleNamespace(
        name="student", tokenizer=tokenizer, vocabulary=len(tokenizer), stop_ids=(tokenizer.eos_token_id,)
    )
    return SimpleNamespace(recipe=recipe, student=student)


BIASED: list[dict[str, Any]] = [
    {"support": 20},
    {"support": "student_top"},
    {"discount": 0.5},
    {"task_reward": "given"},
    {"support": "sampled", "task_reward": "given"},
    {"support": "sampled", "reference": "given"},
]


@pytest.mark.parametrize("settings", BIASED, ids=str)
@pytest.mark.parametrize(("template", "lacks"), [(THINKING, "<think>"), (CHATML, "<|header|>")])
def test_what_would_be_biased_where_something_is_masked_is_refused(
    settings: dict[str, Any], template: str, lacks: str
) -> None:
    """Whatever the token is for: the student can sample it."""
    theirs = tokenizer_of(PLAIN, special=[token if token != lacks else "<|other|>" for token in SPECIAL])
    section = PromptedViewConfig()
    with pytest.raises(RecipeError, match=f"has no token for .*{re.escape(repr(lacks))}.* of the student's"):
        open_view(section, site(template, **settings), theirs)
    assert isinstance(open_view(section, site(template, **settings), tokenizer_of(PLAIN)), PromptedView)
    for fine in ({"support": "sampled"}, {"support": "full", "reference": "given"}):
        assert isinstance(open_view(section, site(template, **fine), theirs), PromptedView)


def test_each_teacher_has_its_own_view() -> None:
    student = site(CHATML)
    views = RoutedViews(
        {
            "a": open_view(SameViewConfig(), student, None),
            "b": open_view(PromptedViewConfig(system="S"), student, None),
        },
        default="a",
    )
    prompts = {name: Prompt("p", (5, 6), chat=ASKED, teacher=name) for name in (None, "a", "b")}
    assert views.prompt_ids(prompts[None]) == views.prompt_ids(prompts["a"]) == (5, 6)
    assert student.student.tokenizer.decode(list(views.prompt_ids(prompts["b"]))).startswith("<|im_start|>system\nS")
    assert isinstance(views.views["a"], SameView)


def test_a_prompt_that_leaves_no_room_is_named_before_the_first_step() -> None:
    where = site(CHATML)
    view = open_view(PromptedViewConfig(system="S" * 50), where, tokenizer_of(LLAMA3))
    with pytest.raises(DataError, match=r"prompt 'p' has .* tokens as the teacher sees it"):
        texts_of(view, [Prompt("p", (5,), chat=ASKED)], 64, where)


def test_a_teacher_with_other_tokens_needs_room_for_one_of_them() -> None:
    """Nobody knows before how many of its tokens a response of `max_tokens` of the student's is."""
    where, teacher = site(CHATML, max_tokens=1000), tokenizer_of(LLAMA3)
    prompts, prompt = (
        TeacherPrompts(RetokenizedViewConfig(), where.student.tokenizer, teacher),
        Prompt("p", (5,), chat=ASKED),
    )
    view = RetokenizedView(Speller(where.student.tokenizer), Speller(teacher), prompts)
    (text,) = texts_of(view, [prompt], None, where)
    assert texts_of(view, [prompt], len(text) + 1, where) == [text]
    with pytest.raises(DataError, match=rf"prompt 'p' has {len(text)} tokens of the teacher's, which leave no place"):
        texts_of(view, [prompt], len(text), where)


def test_a_person_is_shown_what_the_teacher_sees() -> None:
    where = site(CHATML)
    view, prompt = open_view(PromptedViewConfig(system="S"), where, tokenizer_of(LLAMA3)), Prompt("p", (5,), chat=ASKED)
    seen, tokens = example_of(view, [prompt], view.prompt_ids(prompt), where)
    assert "<s><|header|>system\n\nS<|eot|>" in seen.measured
    assert "<|im_end|> is the teacher's <|eot|>" in tokens.measured
    assert not example_of(SameView(), [prompt], prompt.token_ids, where)
