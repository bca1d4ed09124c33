"""Write docs/reference/commands.md from the command line itself. `--check` only says whether it is up to date.

python scripts/make_commands.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click
from written_page import write_page

from limbeck.cli.main import SECTIONS
from limbeck.cli.main import main as cli

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands

<!-- Written by scripts/make_commands.py from the command line; a test checks that it is up to date. -->

`limbeck --help` lists the commands, `limbeck COMMAND --help` says what is below. OVERRIDES are keys of the
[recipe](recipe.md), dotted: `rollout.temperature=0.7`. What a status means that a command exits with is in
[troubleshooting](../guides/troubleshooting.md#exit-statuses).
"""


def page() -> str:
    """The whole page, in the order of `limbeck --help`."""
    context = click.Context(cli, info_name="limbeck")
    found = HEAD
    for title, names in SECTIONS.items():
        found += f"\n## {title}\n" + "".join(part for name in names for part in section(name, context))
    return found


def section(name: str, above: click.Context) -> Iterator[str]:
    command = cli.commands[name]
    context = click.Context(command, info_name=name, parent=above)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n### `limbeck {name}`\n\n```text\nlimbeck {name} {usage}\n```\n\n{paragraphs(command.help or '')}\n"
    options = [row(p, context) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    if options:
        yield "\n| option | default | |\n|---|---|---|\n" + "".join(options)


def paragraphs(text: str) -> str:
    """The help as Markdown; what click does not wrap (its \\b) is a block of its own."""
    parts = re.split(r"\n\n+", inspect.cleandoc(text))
    blocks = [inspect.cleandoc(part.removeprefix("\b\n")) if part.startswith("\b") else part for part in parts]
    return "\n\n".join(f"```text\n{b}\n```" if b != part else b for b, part in zip(blocks, parts, strict=True))


def row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    value = "" if option.is_flag else f" {table_text(option.make_metavar(context))}"
    shown = option.default if not option.is_flag and isinstance(option.default, str | int | float) else None
    default = "" if shown is None else f"`{shown}`"
    needed = "required" if option.required else default
    return f"| {names}{value} | {needed} | {table_text(option.help or '')} |\n"


def table_text(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_page(TARGET, page, __doc__)
