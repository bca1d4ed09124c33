"""The recipes that ship with Limbeck: files of one folder, each with a first line of comment that says what it is.

    [recipe.name for recipe in shipped_recipes()]      ["agent", "calculator", ...]
    copy_recipe("demo", Path.cwd())                     {Path("recipes/demo.toml"): True}

They, the examples and the scripts that they name are at the top of a checkout, and inside the package that a wheel
installs. Copies have the same places: a recipe names its files by them, and so do the commands of the documentation.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from limbeck.errors import RecipeError
from limbeck.files.disk import disk_errors, write_whole

PACKAGE = Path(__file__).parents[1]
RECIPES = "recipes"
FOLDERS = (RECIPES, "examples", "scripts")


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe's file, and what its first lines of comment say."""

    path: Path
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def about(self) -> str:
        """One line: what the recipe does."""
        return self.notes[0] if self.notes else ""


def shipped_recipes() -> list[ShippedRecipe]:
    """All of them, by name."""
    return [ShippedRecipe(path, _notes(path)) for path in sorted((_root() / RECIPES).glob("*.toml"))]


def shipped_recipe(name: str) -> ShippedRecipe:
    """The one of this name. Raises `RecipeError` naming those that there are."""
    recipes = {recipe.name: recipe for recipe in shipped_recipes()}
    if name not in recipes:
        near = difflib.get_close_matches(name[:100], list(recipes), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(recipes)}."
        raise RecipeError(f"no recipe {name!r} ships with Limbeck. {hint}")
    return recipes[name]


def copy_recipe(name: str, here: Path) -> dict[Path, bool]:
    """Copy a recipe, comments and all, and the files that it names, to `here`/recipes and so on.

    By the copies' paths, the recipe's first: whether it was written, or was there already.
    Raises `RecipeError` for a name that there is not, and where a file that differs is in the way.
    """
    root, recipe = _root(), shipped_recipe(name)
    named = _named_files(root, recipe.path)
    wanted = {here / path.relative_to(root): path.read_bytes() for path in (recipe.path, *named)}
    new = {target: data for target, data in wanted.items() if not target.exists()}
    for target, data in wanted.items():
        if target not in new and not (target.is_file() and target.read_bytes() == data):
            raise RecipeError(f"{target} exists and is another file. Rename it, or go to another folder.")
    with disk_errors(f"cannot write to {here}"):
        for target, data in new.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, data)
    return {target: target in new for target in wanted}


def _root() -> Path:
    """Where the folders of recipes and examples are."""
    return PACKAGE if (PACKAGE / RECIPES).is_dir() else PACKAGE.parents[1]


def _named_files(root: Path, recipe: Path) -> list[Path]:
    """The shipped files that a recipe's text names by their paths, and those that these name."""
    there = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.is_file()]
    named, unread = {recipe: None}, [recipe]
    while unread:
        text = unread.pop().read_text(encoding="utf-8")
        found = [path for path in there if path not in named and path.relative_to(root).as_posix() in text]
        named |= dict.fromkeys(found)
        unread += [path for path in found if path.suffix == ".py"]
    return list(named)[1:]


def _notes(path: Path) -> tuple[str, ...]:
    """The lines of comment that the file begins with."""
    with path.open(encoding="utf-8") as file:
        return tuple(line.lstrip("#").strip() for line in takewhile(lambda line: line.startswith("#"), file))
