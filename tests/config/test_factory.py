"""`kind = "python"`: options pass through the recipe, and a factory that cannot be had is named with the reason."""

from __future__ import annotations

import sys
import tomllib
from typing import Any

import pytest

from limbeck.config.factory import Build, PythonPartConfig, build_part, resolve_factory
from limbeck.config.recipe import parse_recipe
from limbeck.errors import DataError, RecipeError

BUILD = Build(recipe=None, info=None, tokenizer=None, device=None, seed=7, folder=None)


@pytest.fixture
def my_parts(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        """
from limbeck.errors import DataError
constant = 1.0
class Part:
    def __init__(self, build, size=1, *, rest=()): self.seed, self.size, self.rest = build.seed, size, rest
    @classmethod
    def large(cls, build): return cls(build, 100)
def anything(build, **options): return options
def wrong(build): raise ValueError("no such file")
def bad_data(build): raise DataError("row 3 is empty")
def leaves(build): exit()
def inner_type_error(build): return len(5)
"""
    )
    (tmp_path / "broken_parts.py").write_text("1 / 0")
    (tmp_path / "leaving_parts.py").write_text("exit()")
    (tmp_path / "missing_parts.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("my_parts", "broken_parts", "leaving_parts", "missing_parts"):
        sys.modules.pop(name, None)


def table(**task: Any) -> dict[str, Any]:
    return {"student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}, "task": task}


def test_options_pass_through_the_recipe_and_come_back_from_its_toml():
    recipe = parse_recipe(table(kind="python", factory="a:b", level=3, rest={"x": [1, 2]}), ["task.more=true"])
    assert isinstance(recipe.task, PythonPartConfig)
    assert recipe.task.options == {"level": 3, "rest": {"x": [1, 2]}, "more": True}
    assert parse_recipe(tomllib.loads(recipe.to_toml())) == recipe


def test_other_tables_still_refuse_unknown_keys_and_a_factory_is_needed():
    with pytest.raises(RecipeError, match=r"unknown key 'digit'. Did you mean 'digits'"):
        parse_recipe(table(kind="arithmetic", digit=3))
    with pytest.raises(RecipeError, match=r"task\.factory: missing"):
        parse_recipe(table(kind="python", level=3))


def test_a_factory_gets_the_build_and_its_options(my_parts):
    part = build_part(PythonPartConfig(factory="my_parts:Part", size=3, rest=[1]), "task", BUILD)
    assert (part.seed, part.size, part.rest) == (7, 3, [1])
    assert build_part(PythonPartConfig(factory="my_parts:Part.large"), "task", BUILD).size == 100
    assert build_part(PythonPartConfig(factory="my_parts:anything", a=1), "task", BUILD, {"b": 2}) == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("my_parts:Part", {"sizes": 3}, r"\(build, sizes=\.\.\.\).*unexpected keyword argument 'sizes'.*size=1"),
        ("my_parts:wrong", {}, r"task\.factory = 'my_parts:wrong' raised ValueError: no such file"),
        ("my_parts:leaves", {}, r"task\.factory = 'my_parts:leaves' raised SystemExit"),
        ("my_parts:inner_type_error", {}, r"raised TypeError: object of type 'int' has no len"),
    ],
)
def test_a_factory_that_fails_is_named(factory, options, message, my_parts):
    with pytest.raises(RecipeError, match=message):
        build_part(PythonPartConfig(factory=factory, **options), "task", BUILD)


def test_an_error_of_limbecks_own_passes_as_it_is(my_parts):
    with pytest.raises(DataError, match=r"^row 3 is empty$"):
        build_part(PythonPartConfig(factory="my_parts:bad_data"), "task", BUILD)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_parts", r"x\.y = 'my_parts' is not of the form package\.module:name"),
        (":Part", r"not of the form"),
        ("my_parts:", r"not of the form"),
        (".my_parts:Part", r"not of the form"),
        ("no_such_module:make", r"cannot import 'no_such_module'.*PYTHONPATH"),
        ("missing_parts:make", r"cannot import 'missing_parts' \(No module named 'no_such_package'\)"),
        ("broken_parts:make", r"importing 'broken_parts' raised ZeroDivisionError"),
        ("leaving_parts:make", r"importing 'leaving_parts' raised SystemExit"),
        ("my_parts:missing", r"'my_parts' has no 'missing'"),
        ("my_parts:Part.missing", r"'Part' has no 'missing'"),
        ("my_parts:constant", r"is 1\.0; expected a function or a class"),
    ],
)
def test_names_that_cannot_be_resolved(name, message, my_parts):
    with pytest.raises(RecipeError, match=message):
        resolve_factory(name, "x.y")
