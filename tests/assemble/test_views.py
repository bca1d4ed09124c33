"""Views from a recipe: what is refused where a template lacks a token, who sees what, and what a person is shown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from limbeck.assemble.views import example_of, open_view, texts_of
from limbeck.config.view import PromptedViewConfig, SameViewConfig
from limbeck.errors import DataError, RecipeError
from limbeck.records import Chat, Prompt
from limbeck.teacher_views.prompted import PromptedView
from limbeck.teacher_views.routed import RoutedViews
from limbeck.teacher_views.same import SameView
from tests.teacher_views.templates import CHATML, LLAMA3, THINKING, tokenizer_of

ASKED = Chat(({"role": "user", "content": "1+1="},))


def site(template: str, support: Any = "full", discount: float = 0.0, max_tokens: int = 8) -> Any:
    """As much of a `Site` as views look at."""
    recipe = SimpleNamespace(
        objective=SimpleNamespace(support=support, discount=discount), rollout=SimpleNamespace(max_tokens=max_tokens)
    )
    return SimpleNamespace(recipe=recipe, student=SimpleNamespace(tokenizer=tokenizer_of(template)))


@pytest.mark.parametrize(("support", "discount"), [(20, 0.0), ("student_top", 0.0), ("full", 0.5)])
def test_what_would_be_biased_where_something_is_masked_is_refused(support: Any, discount: float) -> None:
    theirs = tokenizer_of(CHATML)
    with pytest.raises(RecipeError, match="has no token for '<think>', '</think>' of the student's"):
        open_view(PromptedViewConfig(), site(THINKING, support, discount), theirs)
    assert isinstance(open_view(PromptedViewConfig(), site(CHATML, support, discount), theirs), PromptedView)
    assert isinstance(open_view(PromptedViewConfig(), site(THINKING, "sampled"), theirs), PromptedView)


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


def test_a_person_is_shown_what_the_teacher_sees() -> None:
    where = site(CHATML)
    view, prompt = open_view(PromptedViewConfig(system="S"), where, tokenizer_of(LLAMA3)), Prompt("p", (5,), chat=ASKED)
    seen, tokens = example_of(view, [prompt], view.prompt_ids(prompt), where)
    assert "<s><|header|>system\n\nS<|eot|>" in seen.measured
    assert "<|im_end|> is the teacher's <|eot|>" in tokens.measured
    assert not example_of(SameView(), [prompt], prompt.token_ids, where)
