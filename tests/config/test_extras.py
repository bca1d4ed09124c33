"""A package that is missing is named before anything is loaded, whatever table needs it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from limbeck.config import extras
from limbeck.config.base import configs_of
from limbeck.config.extras import NEEDS, require_extras
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import RecipeError

ROOT = Path(__file__).parents[2]
MINIMAL = {
    "student": {"model": "demo:student"},
    "teacher": {"model": "demo:teacher"},
    "task": {"kind": "arithmetic"},
}
ALL = {
    "task": {"kind": "dataset", "name": "some/rows", "grader": {"kind": "math_verify"}},
    "learner": {"lora": {"rank": 2}},
    "trackers": [{"kind": "tensorboard"}, {"kind": "wandb"}],
}


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: None)


def missing(table: dict[str, Any], **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        require_extras(parse_recipe({**MINIMAL, **table}), **more)
    return str(caught.value)


def test_a_recipe_without_extras_needs_none(nothing_installed: None) -> None:
    require_extras(parse_recipe(MINIMAL))


def test_what_is_installed_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda package: object())
    require_extras(parse_recipe({**MINIMAL, **ALL}))


def test_all_that_is_missing_is_one_message_and_one_command(nothing_installed: None) -> None:
    message = missing(ALL)
    for part in ("task needs the package 'datasets'", "task.grader needs the package 'math_verify'",
                 "learner.lora needs the package 'peft'", "trackers.1 needs the package 'wandb'"):  # fmt: skip
        assert part in message
    assert message.endswith("pip install 'limbeck[data,lora,math,tensorboard,wandb]'")


def test_what_is_not_used_is_not_needed(nothing_installed: None) -> None:
    assert "datasets" not in missing(ALL, unused=("task", "trackers"))
    require_extras(parse_recipe({**MINIMAL, **ALL}), unused=("task", "trackers", "learner"))


def test_a_source_needs_data_sets_only_from_the_hub(nothing_installed: None) -> None:
    def table(**place: str) -> dict[str, Any]:
        source = {"from": "dataset", "name": "texts", "share": 0.5, **place}
        return {"rollout": {"sources": [{"from": "student", "share": 0.5}, source]}, "objective": {"support": "full"}}

    require_extras(parse_recipe({**MINIMAL, **table(path="rows.jsonl")}))
    assert "limbeck[data]" in missing(table(hub="some/rows"))


def tables(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for info in section.model_fields.values():
        for below in configs_of(info.annotation):
            yield below
            yield from tables(below)


def test_every_table_that_names_an_extra_is_looked_at() -> None:
    """What the recipe reference prints of it says the same; and the extra has the package."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for table in set(tables(Recipe)):
        texts = [kind.__doc__ or "" for kind in table.__mro__]
        texts += [info.description or "" for info in table.model_fields.values()]
        named = re.search(r"\(extra `(\w+)`\)", "\n".join(texts))
        assert (named[1] if named else None) == (NEEDS[table][1] if table in NEEDS else None), table.__name__
    for package, extra in NEEDS.values():
        assert any(line.startswith((package, package.replace("_", "-"))) for line in declared[extra])
