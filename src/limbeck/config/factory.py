"""Parts of your own: `kind = "python"` in a table of the recipe, and how the function it names is found and called.

    [task]
    kind = "python"
    factory = "my_package.tasks:riddles"      # called as riddles(build, level=3)
    level = 3                                 # every other key of the table is an option

`build` is a `Build`. What the factory must return is the protocol of the part (`limbeck.protocols`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from limbeck.config.base import Config
from limbeck.config.values import Line
from limbeck.errors import LimbeckError, RecipeError


class PythonPartConfig(Config):
    """A part of your own. Every key besides `kind` and `factory` is passed to the factory."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["python"] = "python"
    factory: Line = Field(description="`package.module:name`, called as `name(build, **options)`")

    @property
    def options(self) -> dict[str, Any]:
        """The table without `kind` and `factory`."""
        return dict(self.model_extra or {})


@dataclass(frozen=True)
class Build:
    """What a factory may need to make its part. All of it is there to read, not to change."""

    recipe: Any  # config.recipe.Recipe
    info: Any  # records.ModelInfo of the student
    tokenizer: Any  # transformers.PreTrainedTokenizerBase of the student
    device: Any  # torch.device
    seed: int
    folder: Path | None  # the run's; None where nothing is written


def build_part(section: PythonPartConfig, where: str, build: Build, given: Mapping[str, Any] | None = None) -> Any:
    """What the factory of `section` returns; `given` are arguments of the seam besides the options.

    `where` is the table, such as "task". Raises `RecipeError` where the factory cannot be found, does not take
    these options or fails; a `LimbeckError` of its own passes as it is.
    """
    factory = resolve_factory(section.factory, f"{where}.factory")
    arguments = {**section.options, **(given or {})}
    name = f"{where}.factory = {section.factory!r}"
    try:
        signature: inspect.Signature | None = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables written in C have none
        signature = None
    if signature is not None:
        try:
            signature.bind(build, **arguments)
        except TypeError as error:
            raise RecipeError(
                f"{name} cannot be called as (build{''.join(f', {key}=...' for key in arguments)}): {error}. It takes "
                f"{signature}; every key of the [{where}] table besides kind and factory is passed to it."
            ) from None
    try:
        return factory(build, **arguments)
    except (LimbeckError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too: a part that cannot be made must not end the run in silence
        raise RecipeError(f"{name} raised {type(error).__name__}: {error}") from error


def resolve_factory(name: str, where: str) -> Callable[..., Any]:
    """The function or class named by `name`, of the form `package.module:name`.

    `where` is the recipe's key, for the messages. Raises `RecipeError` for another form, a module that cannot be
    imported, a name that is not in it, and what cannot be called.
    """
    setting = f"{where} = {name!r}"
    module_name, _, path = name.partition(":")
    if not module_name or not path or module_name.startswith("."):
        raise RecipeError(f"{setting} is not of the form package.module:name, such as my_package.parts:make")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(
            f"{setting}: cannot import {module_name!r} ({error}). Install it, or put its folder on the path, such as "
            "PYTHONPATH=. limbeck train ..."
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module runs whatever it likes, exit() included
        raise RecipeError(f"{setting}: importing {module_name!r} raised {type(error).__name__}: {error}") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise RecipeError(f"{setting}: {getattr(found, '__name__', found)!r} has no {attribute!r}")
        found = getattr(found, attribute)
    if not callable(found):
        raise RecipeError(f"{setting} is {found!r}; expected a function or a class")
    return found  # type: ignore[no-any-return]  # callable() narrows Any to an unknown signature
