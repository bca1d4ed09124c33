"""The table of a contract, or its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.records import ProbeResult


def show_results(verdicts: Sequence[ProbeResult], as_json: bool, problem: str | None = None) -> None:
    """What each probe measured and how it ended; `problem` is why the whole failed."""
    method = next((v.probe.removeprefix("method ") for v in reversed(verdicts) if _taken(v)), None)
    if as_json:
        rows = [asdict(verdict) for verdict in verdicts]
        print(json.dumps({"ok": problem is None, "method": method, "problem": problem, "verdicts": rows}))
        return
    if not verdicts:
        return  # it failed before the first probe: the error says it all
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("probe", "measured", "expected", "verdict")
    for verdict in verdicts:
        passed_over = verdict.measured.startswith("not taken")
        mark = Text("-", "dim") if passed_over else Text("ok", "green") if verdict.ok else Text("FAILED", "bold red")
        table.add_row(verdict.probe, Text(verdict.measured, "dim" if passed_over else ""), verdict.expected, mark)
    console = Console()
    console.print(table)
    if method and problem is None:
        console.print(Text(f"temperature by: {method}", "bold"))


def _taken(verdict: ProbeResult) -> bool:
    return verdict.ok and "method " in verdict.probe and not verdict.measured.startswith("not taken")
