"""For the API pages: the fields of a class as one table, with the comment beside each; sessions of Python as code."""

from __future__ import annotations

import io
import re
import tokenize
from typing import Any

from griffe import Attribute, Class, Docstring, Extension, Function, Module

TOOLS = ("fmt:", "noqa", "type:", "ruff:", "pragma")  # comments that are for no reader


class FieldTables(Extension):
    """`tokens: Ints  # [n] the response` becomes a row below the docstring of its class."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        tabulate(pkg)


def tabulate(place: Module | Class) -> None:
    """All classes of a module, and those within them."""
    for member in list(place.members.values()):
        if isinstance(member, Module | Class) and not member.is_alias:
            tabulate(member)
        if isinstance(member, Module | Class | Function | Attribute) and not member.is_alias and member.docstring:
            member.docstring.value = with_sessions(member.docstring.value)
    recipe = "Config" in [str(base) for base in place.bases] if isinstance(place, Class) else False
    if not isinstance(place, Class) or recipe:  # the keys of a recipe have a reference of their own
        return
    fields = [m for m in place.members.values() if isinstance(m, Attribute) and is_field(m)]
    if fields:
        text = place.docstring.value if place.docstring else ""
        rows = "".join(row(field) for field in fields)
        place.docstring = Docstring(f"{text}\n\n| field | type | |\n|---|---|---|\n{rows}", parent=place)
        for field in fields:
            place.del_member(field.name)


def with_sessions(text: str) -> str:
    """`>>>` begins a session up to the next empty line; Markdown would take it for a quotation."""
    return re.sub(r"^>>> (?:.+\n?)+", lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", text, flags=re.M)


def is_field(member: Attribute) -> bool:
    return member.annotation is not None and not member.name.startswith("_") and "property" not in member.labels


def row(field: Attribute) -> str:
    default = re.sub(r"^field\(default_factory=(\w+)\)$", r"\1()", str(field.value))
    kind = str(field.annotation) if field.value is None else f"{field.annotation} = {default}"
    about = comment(field.lines) or (field.docstring.value if field.docstring else "")
    return f"| `{field.name}` | `{kind}` | {about.replace('|', chr(92) + '|')} |\n"


def comment(lines: list[str]) -> str:
    """The comments of a definition, without those for tools."""
    source = io.StringIO("\n".join(line.strip() for line in lines))
    try:
        found = [t.string[1:].strip() for t in tokenize.generate_tokens(source.readline) if t.type == tokenize.COMMENT]
    except tokenize.TokenError:
        return ""
    return " ".join(text for text in found if not text.startswith(TOOLS))
