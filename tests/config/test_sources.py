"""Sources of sequences: what a recipe may ask for, and what would be biased."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from limbeck.config.recipe import Recipe, checked_again, parse_recipe
from limbeck.errors import RecipeError

STUDENT, TEACHER = {"from": "student", "share": 0.5}, {"from": "teacher", "share": 0.5}
DATA = {"from": "dataset", "share": 0.5, "path": "rows.jsonl"}
SERVED = {"kind": "vllm", "url": "http://host:1"}


def recipe_of(*sources: dict[str, Any], **tables: Any) -> Recipe:
    base = {"student": {"model": "a"}, "teacher": {"model": "b"}, "task": {"kind": "arithmetic"}}
    rollout = {"sources": list(sources), **tables.pop("rollout", {})}
    return parse_recipe({**base, "rollout": rollout, **tables})


def test_sources_are_written_and_read_again_as_they_are() -> None:
    recipe = recipe_of(STUDENT, DATA)
    assert [source.label for source in recipe.rollout.sources] == ["student", "rows"]
    assert checked_again(recipe) == recipe
    assert parse_recipe(tomllib.loads(recipe.to_toml())) == recipe
    assert recipe.model_dump(mode="json")["rollout"]["sources"][1]["from"] == "dataset"


@pytest.mark.parametrize(
    ("sources", "tables", "why"),
    [
        ([STUDENT], {}, "add up to 0.5, expected 1"),
        ([STUDENT, STUDENT], {}, "two of rollout.sources are called 'student'"),
        ([DATA, DATA], {}, "two of rollout.sources are called 'rows'"),
        ([{"from": "dataset"}], {}, "needs its rows"),
        ([{**DATA, "share": 1.0, "split": "x"}], {}, "config and split go with hub"),
        ([{**DATA, "share": 1.0, "name": "teacher"}], {}, "cannot be called 'teacher'"),
        ([{"from": "nobody"}], {}, "rollout.sources.0: from is expected to be"),
        ([{"share": 1.0}], {}, "rollout.sources.0: from is expected to be"),
        ([{**STUDENT, "path": "x"}, TEACHER], {}, "rollout.sources.0: unknown key 'path'"),
        ([STUDENT, DATA], {"objective": {"support": "sampled"}}, "nobody knows with which probability"),
        ([STUDENT, DATA], {"objective": {"support": 20}}, "nobody knows with which probability"),
        ([STUDENT, DATA], {"teacher": SERVED}, "nobody knows with which probability"),
        ([STUDENT, DATA], {"objective": {"divergence": "forward_kl", "support": 20}}, "nobody knows"),
        ([STUDENT, TEACHER], {"objective": {"support": 20}}, "importance_cap = 2 would cut"),
        ([STUDENT, TEACHER], {"objective": {"support": "student_top", "k": 4}}, "the teacher sampled has none"),
        ([STUDENT, DATA], {"objective": {"discount": 0.5}}, "discount = 0.5 weighs what a token of the student"),
        ([STUDENT, TEACHER], {"objective": {"discount": 0.5}}, "discount = 0.5 weighs what a token of the student"),
        (
            [{**DATA, "share": 1.0}],
            {"objective": {"task_reward": {}}, "rollout": {"samples_per_prompt": 2}},
            "rollout.sources has none",
        ),
        ([STUDENT, TEACHER], {"teacher": {"kind": "limbeck", "url": "http://host:1", "head": "m"}}, "does not sample"),
        ([STUDENT, TEACHER], {"teacher": {"model": "b", "devices": 2}}, "spans 2 devices"),
        ([STUDENT, TEACHER], {"teacher": {"model": "b", "view": {"kind": "prompted", "system": "x"}}}, "has a view"),
        ([], {"teacher": {"kind": "dataset"}}, "set rollout.sources"),
        ([STUDENT, DATA], {"teacher": {"kind": "dataset"}}, "without student or teacher among them"),
        ([{**DATA, "share": 1}], {"teacher": {"kind": "dataset"}, "objective": {}}, "support = 1. Remove"),
        (
            [{**DATA, "share": 1}],
            {"teacher": {"kind": "dataset"}, "objective": {"divergence": "forward_kl", "support": 1, "discount": 0.1}},
            "objective.discount needs what the student samples",
        ),
        (
            [{**DATA, "share": 1}],
            {
                "teacher": {"kind": "dataset"},
                "objective": {"divergence": "forward_kl", "support": 1, "reference": {"weight": 1}},
            },
            "objective.reference needs what the student samples",
        ),
    ],
)
def test_what_would_be_biased_or_cannot_be_is_refused(sources: Any, tables: Any, why: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe_of(*sources, **tables)
    assert why in str(error.value)


@pytest.mark.parametrize(
    ("sources", "tables"),
    [
        ([STUDENT, DATA], {}),
        ([STUDENT, TEACHER], {"objective": {"divergence": "jsd", "beta": 0.5}}),
        ([STUDENT, TEACHER], {"teacher": SERVED, "objective": {"support": 20, "importance_cap": 1e30}}),
        ([STUDENT, DATA], {"objective": {"task_reward": {}}, "rollout": {"samples_per_prompt": 2}}),
        ([STUDENT, DATA], {"rollout": {"top_p": 0.9, "lag": 1}, "cluster": {}}),
        ([{**DATA, "share": 1}], {"teacher": {"kind": "dataset"}}),
        ([{"from": "student"}], {"objective": {"discount": 0.5}}),
    ],
)
def test_what_is_exact_is_taken(sources: Any, tables: Any) -> None:
    assert recipe_of(*sources, **tables).rollout.sources


def test_the_objective_of_the_data_itself_is_their_forward_kl() -> None:
    recipe = recipe_of({**DATA, "share": 1}, teacher={"kind": "dataset"})
    assert (recipe.objective.divergence, recipe.objective.support) == ("forward_kl", 1)
