"""Write docs/reference/recipe.md from the recipe models. `--check` only says whether it is up to date.

python scripts/make_reference.py
"""

from __future__ import annotations

import argparse
import inspect
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from limbeck.config.base import Config, configs_of, fields_of
from limbeck.config.recipe import Recipe

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "recipe.md"
HEAD = """# Recipe reference

<!-- Written by scripts/make_reference.py from src/limbeck/config/; a test checks that it is up to date. -->

A recipe is a TOML file. Every key below can also be given on the command line, dotted:
`limbeck train recipes/demo.toml rollout.temperature=0.7 learner.lora.rank=8`. Unknown keys are errors.

A name, a path or an address is one line of at most 4,000 characters; a text (`system`, `pattern`) has at most 100,000.
Control characters, halves of surrogate pairs, NaN and infinities are refused in every key, and so are integers of more
than 64 bits, recipes of more than 10,000 values and files of more than 1 MB.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        sys.exit(0 if TARGET.read_text() == reference() else f"{TARGET} is out of date: run {sys.argv[0]}")
    TARGET.write_text(reference())


def reference() -> str:
    """The whole page."""
    return HEAD + "".join(tables(Recipe, "", {}))


def tables(section: type[Config], path: str, seen: dict[type[Config], str], many: bool = False) -> typing.Iterator[str]:
    """This section's own keys, then the sections below it, each under its dotted name.

    A section that several tables share stands there once, and is named at the others: `seen` says where it is.
    `many`: it is one of several, an array of tables in TOML.
    """
    title = f"`[[{path}]]`" if many else f"`[{path}]`" if path else "Top level"
    tags = {n: get_args(f.annotation)[0] for n, f in fields_of(section).items() if n in ("kind", "divergence", "from")}
    title += "".join(f' with `{name} = "{tag}"`' for name, tag in list(tags.items())[-1:])
    if section in seen:
        if seen[section] != title:
            yield f"\n## {title}\n\nThe keys of {seen[section]}.\n"
        return
    seen[section] = title
    rows = [
        row(name, info)
        for name, info in fields_of(section).items()
        if not configs_of(info.annotation) or is_list(info.annotation)
    ]
    table = "".join(["| key | type | default | |\n|---|---|---|---|\n", *rows]) if rows else ""
    yield f"\n## {title}\n\n{inspect.cleandoc(section.__doc__ or '')}\n\n{table}"
    for name, info in fields_of(section).items():
        for below in configs_of(info.annotation):
            where = f"{path}.{name}" if path else name
            yield from tables(below, where, seen, many=is_list(info.annotation))


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is tuple


def row(name: str, info: FieldInfo) -> str:
    default = "required" if info.is_required() else f"`{toml(info.get_default(call_default_factory=True))}`"
    about = (info.description or "").replace("|", "\\|")
    return f"| `{name}` | {kind(info.annotation, info.metadata)} | {default} | {about} |\n"


def kind(annotation: Any, metadata: list[Any] = []) -> str:  # noqa: B006 (never changed)
    """A type in words, with its bounds."""
    if get_origin(annotation) is typing.Annotated:
        inner, *extra = get_args(annotation)
        found = [m for e in extra for m in (e.metadata if isinstance(e, FieldInfo) else [e])]
        return kind(inner, [*metadata, *found])
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(kind(part) for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is tuple:
        return "list of tables" if configs_of(annotation) else f"list of {kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "table"
    name = {int: "integer", float: "number", bool: "boolean", str: "string"}[annotation]
    signs = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
    bounds = [f"{signs[type(m)][0]} {toml(getattr(m, signs[type(m)][1]))}" for m in metadata if type(m) in signs]
    return f"{name} {', '.join(bounds)}".strip()


def toml(value: Any) -> str:
    if value is None or value is PydanticUndefined:
        return "absent"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    if isinstance(value, int) and abs(value) >= 10**5:
        return f"{value:_}"
    if isinstance(value, float) and value >= 10**5:
        return f"{value:g}"
    return f'"{value}"' if isinstance(value, str) else str(value)


if __name__ == "__main__":
    main()
