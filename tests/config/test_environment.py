"""The environment table: limits beside options of the user's own, and what goes without it."""

from __future__ import annotations

from typing import Any

import pytest

from limbeck.config.environment import PythonEnvironmentConfig, SingleTurnConfig
from limbeck.config.recipe import parse_recipe
from limbeck.errors import RecipeError

BASE: dict[str, Any] = {"student": {"model": "a"}, "teacher": {"model": "b"}, "task": {"kind": "arithmetic"}}


def test_limits_are_no_options_of_the_factory() -> None:
    table = {"kind": "python", "factory": "a:b", "timeout": 5, "max_turns": 3, "calls": 6}
    section = parse_recipe({**BASE, "environment": table}).environment
    assert isinstance(section, PythonEnvironmentConfig)
    assert section.options == {"calls": 6}
    assert (section.timeout, section.max_turns, section.min_completed_fraction) == (5, 3, 0.5)
    assert isinstance(parse_recipe(BASE).environment, SingleTurnConfig)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "single_turn", "timeout": 5}, "unknown key 'timeout'"),
        ({"kind": "python"}, "environment.factory: missing"),
        ({"kind": "python", "factory": "a:b", "min_completed_fraction": 2}, "min_completed_fraction"),
        ({"kind": "python", "factory": "a:b", "max_turns": 0}, "max_turns"),
        ({"kind": "python", "factory": "a:b", "concurrency": True}, "concurrency is true, expected a number"),
        ({"kind": "multi"}, "kind"),
    ],
)
def test_mistakes_are_named(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**BASE, "environment": table})
