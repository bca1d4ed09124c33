"""Shows the results of a contract's probes: a table of short results with what is longer below it, or JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from limbeck.sanitize import printable

if TYPE_CHECKING:
    from limbeck.records import ProbeResult

LONGEST_CELL = 100  # characters: two lines of the table in 80 columns. What is longer is printed below it
LONGEST_REPEATED = 40  # characters of a text that the error contains as well
NOT_USED = "not taken: "  # how a result begins of a method that was tried on the way to the one that is used


def show_results(
    results: Sequence[ProbeResult],
    as_json: bool,
    problem: str | None = None,
    sizing: Mapping[str, Any] | None = None,
) -> None:
    """`problem` is the error that ended the check, which the command line prints after this, once.

    `sizing` is what the run takes, of a recipe; as a table it was shown before.
    """
    method = next((result.probe.removeprefix("method ") for result in reversed(results) if _is_used(result)), None)
    if as_json:
        rows = [asdict(result) for result in results]
        answer = {"ok": problem is None, "method": method, "problem": problem, "sizing": sizing, "results": rows}
        print(json.dumps(answer, allow_nan=False))
        return
    if not results:
        return  # it failed before the first probe: the error says it all
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(_table(results, problem or ""))
    for result in results:
        for note in _notes(result, problem or ""):
            console.print(Text(result.probe, "bold"))
            console.print(Text(f"{printable(note)}\n"))
    if method and problem is None:
        console.print(Text(f"temperature by: {method}", "bold"))


def _table(results: Sequence[ProbeResult], problem: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("probe", "result", "measured", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for result in results:
        not_used = result.measured.startswith(NOT_USED)
        shown = (
            Text("not used", "dim") if not_used else Text("ok", "green") if result.ok else Text("FAILED", "bold red")
        )
        table.add_row(result.probe, shown, Text(_cell(result, problem), "dim" if not_used else ""))
    return table


def _cell(result: ProbeResult, problem: str) -> str:
    """What was measured, beside the expected value where there is one."""
    measured = result.measured.removeprefix(NOT_USED)
    if measured == "failed" or len(measured) > (LONGEST_REPEATED if measured in problem else LONGEST_CELL):
        return "see below"
    has_value = result.expected not in ("", "proven")
    return printable(f"{measured} (expected {result.expected})" if has_value else measured)


def _notes(result: ProbeResult, problem: str) -> list[str]:
    """What has no room in the table and is not in the error that follows."""
    measured = result.measured.removeprefix(NOT_USED)
    notes = [measured] if len(measured) > LONGEST_CELL else []
    return [note for note in [*notes, result.remedy] if note and note not in problem]


def _is_used(result: ProbeResult) -> bool:
    return result.ok and result.probe.startswith("method ") and not result.measured.startswith(NOT_USED)
