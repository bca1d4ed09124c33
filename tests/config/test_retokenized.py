"""What a recipe may not ask of a teacher with another tokenizer, each refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import RecipeError


def recipe(*overrides: str, **teacher: Any) -> Recipe:
    table = {
        "student": {"model": "demo:student"},
        "teacher": {"model": "demo:teacher", "view": {"kind": "retokenized"}, **teacher},
        "task": {"kind": "arithmetic"},
    }
    return parse_recipe(table, overrides)


def test_the_support_is_the_sampled_tokens_where_a_recipe_names_none() -> None:
    assert recipe().objective.support == "sampled"
    routed = {"kind": "routed", "default": "a"}
    members = {
        "a": {"kind": "local", "model": "m", "view": {"kind": "retokenized"}},
        "b": {"kind": "local", "model": "m"},
    }
    table = {"student": {"model": "m"}, "task": {"kind": "arithmetic"}, "teacher": {**routed, "teachers": members}}
    assert parse_recipe(table).objective.support == "sampled"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "objective.support=full",
            "which of the student's tokens has one of the teacher's.*Set objective.support = 'sampled'",
        ),
        ("objective.support=20", "would be biased"),
        ("objective.divergence=jsd", "objective.divergence = 'jsd'.*Set objective.divergence = 'reverse_kl'"),
        ("rollout.temperature=0.7", "no two distributions over the same texts.*view.accept_temperature = true"),
    ],
)
def test_what_would_be_biased_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(override)


def test_another_temperature_is_accepted_by_name() -> None:
    assert recipe("rollout.temperature=0.7", "teacher.view.accept_temperature=true").rollout.temperature == 0.7


def test_a_served_teacher_needs_its_tokenizer_here() -> None:
    served = {"kind": "vllm", "url": "http://127.0.0.1:1"}
    table = {"student": {"model": "m"}, "task": {"kind": "arithmetic"}}
    with pytest.raises(RecipeError, match="needs the teacher's tokenizer"):
        parse_recipe({**table, "teacher": {**served, "view": {"kind": "retokenized"}}})
    parse_recipe({**table, "teacher": {**served, "tokenizer": "t", "view": {"kind": "retokenized"}}})
