"""Write docs/reference/recipe.md from the recipe models. `--check` only says whether it is up to date.

python scripts/make_reference.py
"""

from __future__ import annotations

import inspect
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from written_page import write_page

from limbeck.config.base import Config, configs_of, fields_of
from limbeck.config.recipe import Recipe

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "recipe.md"
HEAD = """# Recipe reference

<!-- Written by scripts/make_reference.py from src/limbeck/config/; a test checks that it is up to date. -->

A recipe is a TOML file. Every key below can also be given on the command line, dotted:
`limbeck train recipes/demo.toml rollout.temperature=0.7 learner.lora.rank=8`. Unknown keys are errors.

A table with several kinds stands here once: first the keys that several of its kinds have, then those of each.

A name, a path or an address is one line of at most 4,000 characters; a text (`system`, `pattern`) has at most 100,000.
Control characters, halves of surrogate pairs, NaN and infinities are refused in every key, and so are integers of more
than 64 bits, recipes of more than 10,000 values and files of more than 1 MB.

"""
SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
TAGS = ("kind", "divergence", "from")


@dataclass
class Table:
    """A table of the recipe: one class of configuration, or one for each of its kinds."""

    path: str  # "teacher.view"; "" is the top level
    kinds: list[type[Config]] = field(default_factory=list)
    owners: list[type[Config]] = field(default_factory=list)  # the kinds of the table above that have it
    array: bool = False  # an array of tables in TOML
    default: Any = None

    @property
    def title(self) -> str:
        return f"`[[{self.path}]]`" if self.array else f"`[{self.path}]`" if self.path else "Top level"


def reference() -> str:
    """The whole page."""
    top = Table("", [Recipe])
    tables = [f"[`{below.path}`](#{below.path})" for below in tables_below(top)]
    return f"{HEAD}The tables: {', '.join(tables)}.\n" + "".join(sections(top, None, {}))


def sections(table: Table, above: Table | None, seen: dict[type[Config], Table]) -> typing.Iterator[str]:
    """A table, then those below it, each under its dotted name. `seen`: where each kind stands already."""
    yield f"\n## {table.title}\n\n"
    if above is not None and len(table.owners) < len(above.kinds):
        yield f"Of {above.title} with {tags_of(table.owners)}. "
    elsewhere = [kind for kind in table.kinds if kind in seen]
    new = [kind for kind in table.kinds if kind not in seen]
    for place in dict.fromkeys(seen[kind].title for kind in elsewhere):
        there = [kind for kind in elsewhere if seen[kind].title == place]
        which = f" with {tags_of(there)}" if len(table.kinds) > 1 else ""
        yield f"The keys of {place}{which}.\n" + "\n" * bool(new)
    seen.update(dict.fromkeys(new, table))
    if len(table.kinds) == 1 and new:
        yield f"{about(new[0])}\n{keys(list(rows(new[0]).values()))}"
    elif new:
        yield from kinds(table, new)
    for below in tables_below(Table(table.path, new)):
        yield from sections(below, Table(table.path, new, array=table.array), seen)


def kinds(table: Table, new: list[type[Config]]) -> typing.Iterator[str]:
    """Keys that several kinds have alike, once; then each kind with the keys of its own."""
    all_rows = {kind: rows(kind) for kind in new}
    of: dict[str, list[type[Config]]] = {}
    for kind, its in all_rows.items():
        for line in its.values():
            of.setdefault(line, []).append(kind)
    shared = {line: which for line, which in of.items() if len(which) > 1}
    if len(new) == len(table.kinds):
        yield f"One of {tags_of(new)}.\n\n"
    if shared:
        every = [line for line, which in shared.items() if len(which) == len(new)]
        if every:
            yield f"Of every kind{' here' if len(new) < len(table.kinds) else ''}:\n{keys(every)}\n"
        for group in dict.fromkeys(tuple(which) for which in shared.values() if len(which) < len(new)):
            yield f"Of {tags_of(group)}:\n{keys([line for line, which in shared.items() if tuple(which) == group])}\n"
    for place, kind in enumerate(new):
        own = [line for line in all_rows[kind].values() if line not in shared]
        default = " (the default)" if isinstance(table.default, kind) else ""
        gap = "\n" if place else ""
        yield f"{gap}### {table.title} `{tag_of(kind)}`{default}\n\n{about(kind)}\n{keys(own)}"


def tables_below(table: Table) -> list[Table]:
    """The tables that its kinds have, each once, whichever of them have it."""
    found: dict[str, Table] = {}
    for kind in table.kinds:
        for name, info in fields_of(kind).items():
            if not (configs := configs_of(info.annotation)):
                continue
            path = f"{table.path}.{name}" if table.path else name
            below = found.setdefault(name, Table(path + ".NAME" * (get_origin(info.annotation) is dict)))
            below.kinds += [one for one in configs if one not in below.kinds]
            below.owners.append(kind)
            below.array = is_list(info.annotation)
            below.default = None if info.is_required() else info.get_default(call_default_factory=True)
    return list(found.values())


def about(section: type[Config]) -> str:
    return inspect.cleandoc(section.__doc__ or "")


def keys(lines: list[str]) -> str:
    return "\n| key | type | default | |\n|---|---|---|---|\n" + "".join(lines) if lines else ""


def rows(section: type[Config]) -> dict[str, str]:
    """A line for each key of its own. The one that says which kind it is has the heading."""
    plain = {n: i for n, i in fields_of(section).items() if not configs_of(i.annotation) or is_list(i.annotation)}
    return {name: row(name, info) for name, info in plain.items() if name not in TAGS}


def tag_of(section: type[Config]) -> str:
    name, info = [(name, info) for name, info in fields_of(section).items() if name in TAGS][-1]
    return f'{name} = "{get_args(info.annotation)[0]}"'


def tags_of(sections: typing.Sequence[type[Config]]) -> str:
    """`kind = "sglang"`, `"vllm"` or `"limbeck"`."""
    first, *more = [tag_of(section) for section in sections]
    words = [f"`{first}`", *(f"`{tag.partition(' = ')[2]}`" for tag in more)]
    return words[0] if not more else f"{', '.join(words[:-1])} or {words[-1]}"


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
    bounds = {type(m): toml(getattr(m, SIGNS[type(m)][1])) for m in metadata if type(m) in SIGNS}
    if {Ge, Le} <= set(bounds):
        return f"{name} from {bounds[Ge]} to {bounds[Le]}"
    return f"{name} {', '.join(f'{SIGNS[sign][0]} {bound}' for sign, bound in bounds.items())}".strip()


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
    write_page(TARGET, reference, __doc__)
