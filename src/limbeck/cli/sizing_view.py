"""Shows what a run takes: a table of each process and its parts, disk, what travels, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from limbeck.formatting import size
from limbeck.sanitize import printable

if TYPE_CHECKING:
    from limbeck.assemble.fit import Sized
    from limbeck.assemble.role_sizes import Part
    from limbeck.assemble.sizing import Process

SMALL = 0.02  # parts of a process below this share of its peak are one row


def show_sizing(sized: Sized) -> None:
    sizing, found = sized.sizing, sized.misfits
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table("what the run takes", "at most", "while", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.columns[1].justify = "right"
    for process in sizing.processes:
        for where, memory in (("device", "GPU memory"), ("host", "memory")):
            peak = process.peak(where)  # type: ignore[arg-type]
            if not peak.bytes:
                continue
            times = f"{process.count} x " if process.count > 1 else ""
            table.add_row(Text(f"{times}{process.name}: {memory}", "bold"), size(peak.bytes), peak.doing)
            for name, count in _rows(process, peak.parts, peak.bytes):
                table.add_row(Text(f"  {printable(name)}", "dim"), Text(size(count), "dim"), "")
    for title, parts in (("disk, below the run's folder", sizing.disk), ("each update sends", sizing.update)):
        if parts:
            table.add_row(Text(title, "bold"), size(sum(part.bytes for part in parts)), "")
        for part in parts:
            table.add_row(Text(f"  {printable(part.what)}", "dim"), Text(size(part.bytes), "dim"), "")
    console.print(table)
    for note in sizing.notes:
        console.print(Text(printable(note), "dim"))
    for misfit in found:
        mark = Text("does not fit  ", "bold red") if misfit.certain else Text("may not fit  ", "bold yellow")
        console.print(mark + Text(printable(misfit.text)))
    console.print()


def _rows(process: Process, parts: Sequence[Part], total: int) -> list[tuple[str, int]]:
    """The parts of a peak, role by role where there are several; small ones together."""
    several = sum(len(role.parts) > 1 for role in process.roles) > 1
    rows, rest = [], 0
    for role in process.roles:
        for part in role.parts:
            if part in parts and part.bytes >= SMALL * total:
                rows.append((f"{role.name}: {part.what}" if several else part.what, part.bytes))
            elif part in parts:
                rest += part.bytes
    return [*rows, ("the rest", rest)] if rest else rows


def as_table(sized: Sized) -> Mapping[str, Any]:
    """The same for `--json`."""
    sizing, found = sized.sizing, sized.misfits
    peaks = [
        {
            "process": process.name,
            "count": process.count,
            "device_bytes": process.peak("device").bytes,
            "host_bytes": process.peak("host").bytes,
        }
        for process in sizing.processes
    ]
    return {**asdict(sizing), "peaks": peaks, "misfits": [asdict(misfit) for misfit in found]}
