"""Recipes that ship: each has a line on itself, and a copy that runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.config import shipped
from limbeck.config.recipe import load_recipe
from limbeck.config.shipped import copy_recipe, shipped_recipe, shipped_recipes
from limbeck.errors import RecipeError

ROOT = Path(__file__).parents[2]


def test_all_of_the_folder_with_a_line_each() -> None:
    assert [recipe.path for recipe in shipped_recipes()] == sorted((ROOT / "recipes").glob("*.toml"))
    for recipe in shipped_recipes():
        assert recipe.path.read_text(encoding="utf-8").startswith("# "), recipe.name
        assert 20 < len(recipe.about) < 130, recipe.name


@pytest.mark.parametrize("name", [recipe.name for recipe in shipped_recipes()])
def test_a_copy_is_the_recipe_with_its_comments_and_files(name: str, tmp_path: Path) -> None:
    first, *others = copy_recipe(name, tmp_path)
    assert first == tmp_path / "recipes" / f"{name}.toml"
    assert first.read_bytes() == shipped_recipe(name).path.read_bytes()
    assert load_recipe(first).name == name
    path = getattr(load_recipe(first).task, "path", None)
    if path is not None:
        assert tmp_path / path in others
    again = dict.fromkeys([first, *others], False)
    assert copy_recipe(name, tmp_path) == again, "the same again is no mistake"


def test_an_example_that_a_recipe_names_comes_with_it(tmp_path: Path) -> None:
    paths = [path.relative_to(tmp_path) for path in copy_recipe("agent", tmp_path)]
    assert {Path("examples/calculator_agent.py"), Path("recipes/calculator_problems.jsonl")} <= set(paths)


@pytest.mark.parametrize(
    ("name", "scripts"),
    [("smollm2", {"smollm2/prepare.py", "smollm2/compare.py"}), ("context-distillation", {"smollm2/prepare.py"}),
     ("retokenized", {"make_other_tokenizer.py", "make_demo_models.py"}), ("demo", set())],
)  # fmt: skip
def test_scripts_that_a_recipe_names_come_with_it(name: str, scripts: set[str], tmp_path: Path) -> None:
    """Those that such a script names too: one takes the sizes of its model from another."""
    paths = [path.relative_to(tmp_path) for path in copy_recipe(name, tmp_path)]
    assert {path for path in paths if path.parts[0] == "scripts"} == {Path("scripts") / script for script in scripts}
    if "make_other_tokenizer.py" in scripts:  # it imports the other one
        script = tmp_path / "scripts" / "make_other_tokenizer.py"
        subprocess.run([sys.executable, script, "--help"], check=True, capture_output=True)


def test_every_path_that_a_recipe_names_ships() -> None:
    for recipe in shipped_recipes():
        named = re.findall(r"\b(?:recipes|examples|scripts)/[\w/.-]+\w", recipe.path.read_text(encoding="utf-8"))
        assert all((ROOT / path).is_file() for path in named), named


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    mine = tmp_path / "recipes" / "smollm2_prompts.jsonl"
    mine.write_text("mine")
    with pytest.raises(RecipeError, match=r"smollm2_prompts.jsonl exists and is another file"):
        copy_recipe("smollm2", tmp_path)
    assert [path.name for path in (tmp_path / "recipes").iterdir()] == [mine.name], "all of it or nothing"
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "../demo", "demo.toml", "dem", "recipes/demo"])
def test_other_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"ships with Limbeck\. (Did you mean 'demo'|There are: .*demo)"):
        copy_recipe(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "only.toml").write_text("# The only one that there is.\n")
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path)
    assert [(recipe.name, recipe.about) for recipe in shipped_recipes()] == [("only", "The only one that there is.")]
