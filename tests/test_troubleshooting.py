"""The page on troubleshooting has every error, alarm, probe and exit status, and quotes what the code says."""

from __future__ import annotations

import ast
import errno
import os
import re
from functools import cache
from pathlib import Path
from typing import get_args

from limbeck.cli.streams import FAILED, PIPE_CLOSED
from limbeck.training.interruption import SIGNALS, Interrupted
from limbeck.wire.score import Kind

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "limbeck"
PAGE = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
OTHERS = {"Interrupted", "TrainingStopped"}  # no errors, but they end a run with a message


@cache
def nodes() -> tuple[ast.AST, ...]:
    """All of the source, read once."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))]
    return tuple(node for tree in trees for node in ast.walk(tree))


def section(title: str) -> str:
    """What is below a heading of level 2."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def headings(title: str) -> set[str]:
    return set(re.findall(r"^### `(\w+)`$", section(title), re.M))


def first_column(title: str) -> set[str]:
    cells = re.findall(r"^\| (`.*?`) \|", section(title), re.M)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def text_of(node: ast.AST) -> str | None:
    """A text of the source with `{}` for what is filled in."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or "{}" for part in node.values)
    return None


def first_arguments(*functions: str) -> set[str]:
    calls = [node for node in nodes() if isinstance(node, ast.Call) and node.args]
    named = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id in functions]
    return {text for call in named if (text := text_of(call.args[0])) is not None}


def errors() -> set[str]:
    """`LimbeckError` and whatever is derived from it, anywhere. Private ones never leave their module."""
    bases = {n.name: {ast.unparse(base) for base in n.bases} for n in nodes() if isinstance(n, ast.ClassDef)}
    found = {"LimbeckError"}
    while more := {name for name, above in bases.items() if above & found} - found:
        found |= more
    return {name for name in found if not name.startswith("_")}


def test_every_error_has_a_section() -> None:
    assert len(errors()) > 12
    assert headings("Errors") == errors() | OTHERS


def test_every_alarm_has_a_section() -> None:
    source = (SOURCE / "training" / "alarms.py").read_text(encoding="utf-8")
    alarms = set(re.findall(r'^\s+\("(\w+)", (?:self\.)?_\w+\(line\)\),$', source, re.M))
    assert len(alarms) > 7
    assert headings("Alarms") == alarms


def test_every_kind_of_a_bad_answer_is_listed() -> None:
    assert first_column("Answers of servers") == set(get_args(Kind))


def test_every_probe_is_listed() -> None:
    probes = {re.sub(r"^method .*", "method ...", name) for name in first_arguments("ProbeResult", "refusal")}
    assert first_column("Probes of a teacher") == probes - {""}


def test_every_exit_status_is_listed() -> None:
    numbers = re.findall(r"^\| ([\d, ]+) \|", section("Exit statuses"), re.M)
    usage = 2  # click's
    codes = {0, FAILED, usage, PIPE_CLOSED, *(Interrupted(number).exit_code for number in SIGNALS)}
    assert {int(number) for cell in numbers for number in cell.split(",")} == codes


def messages() -> list[str]:
    return re.findall(r"^#### `([^`]+)`$", section("Errors"), re.M) + re.findall(
        r"^`([^`]+)`$", section("Alarms"), re.M
    )


@cache
def texts_of_the_source() -> str:
    """Every text with more than one word, one a line. Backticks are left out, as where the page quotes a message."""
    found = (text_of(node) for node in nodes() if isinstance(node, ast.JoinedStr | ast.Constant))
    return "\n".join({text.replace("\n", " ").replace("`", "") for text in found if text and " " in text})


def test_quoted_messages_are_those_of_the_code() -> None:
    quoted = messages()
    assert len(quoted) > 90
    texts = texts_of_the_source()
    assert not [message for message in quoted if not re.search(pattern(message), texts)]


def pattern(message: str) -> str:
    """`...` stands for anything, and so does a reason of the system's own: people search for it."""
    for number in errno.errorcode:
        message = message.replace(f": {os.strerror(number)}.", ": ....")
    parts = [re.escape(part.strip(" .;:,")) for part in message.split("...") if part.strip(" .;:,()")]
    assert parts, message
    return "[^\n]*".join(parts)
