"""The file of a recipe: where it is, and the table in it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from limbeck.config.shipped import shipped_recipes
from limbeck.errors import RecipeError
from limbeck.files.digests import RECIPE_FILE
from limbeck.formatting import shown

MAX_BYTES = 2**20


def recipe_file(path: Path) -> tuple[Path, Path | None]:
    """The file that `path` stands for, and the run's folder where it is one. Raises `RecipeError`."""
    try:
        return (path / RECIPE_FILE, path) if path.is_dir() else (path, None)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {shown(str(path))}: {error}") from None


def read_table(path: Path) -> dict[str, Any]:
    """Raises `RecipeError` for a file that is missing, cannot be read, is too large, or is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(_missing(path)) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        raise RecipeError(f"cannot read the recipe {shown(str(path))}: {error}") from None
    if len(data) > MAX_BYTES:
        raise RecipeError(f"{path} has more than {MAX_BYTES:,} bytes: it is no recipe")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"cannot read the recipe {path}: it is not in UTF-8 ({error})") from None
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep; ValueError: a number too long too
        raise RecipeError(f"{path} is not TOML: {error}") from None


def _missing(path: Path) -> str:
    if path.name == RECIPE_FILE:
        return (
            f"no recipe at {path}: {path.parent} is no run's folder. Give one that `limbeck train` wrote, such as "
            "runs/demo, or a recipe's file."
        )
    name = path.stem if path.suffix == ".toml" else path.name
    if name in {recipe.name for recipe in shipped_recipes()}:
        return (
            f"no recipe at {path}, and no run's folder. `limbeck init {name}` copies the shipped recipe of that name "
            f"here, as recipes/{name}.toml."
        )
    return (
        f"no recipe at {path}, and no run's folder. `limbeck recipes` lists those that ship, and `limbeck init NAME` "
        "copies one."
    )
