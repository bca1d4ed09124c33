"""Outcomes, counted: printed, kept as JSON, and shown in docs/concepts/trust.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[2]
FILE = ROOT / "runs" / "chaos.json"  # of the last run of the suite
LINES = FILE.with_suffix(".jsonl")  # one for each of its runs
PAGE = ROOT / "docs" / "concepts" / "trust.md"
BEGIN, END = "<!-- the table: scripts/make_trust.py writes it -->", "<!-- end of the table -->"

Result = Literal["same", "refused", "WRONG WEIGHTS", "hang", "traceback", "stuck"]
COLUMNS = ("runs", "hits", "same weights", "refused", "taken", "WRONG WEIGHTS", "hang", "traceback", "stuck")


@dataclass
class Outcome:
    """What became of one disturbed run.

    `taken` is what was delivered in place of an answer, and believed; `known` that this is a fault of which the guide
    says that it cannot be found. A run that was refused went on, undisturbed, to the right weights; else it is stuck.
    """

    setup: str
    fault: str
    seed: int
    result: Result = "same"
    hits: int = 0
    taken: list[str] = field(default_factory=list)
    message: str = ""
    known: bool = False

    @property
    def group(self) -> str:
        if self.known:
            return "Not detectable without https"
        if self.setup.startswith("stock"):
            return "Stock servers, plain HTTP"
        return "Checkpoints" if self.setup == "checkpoint" else "limbeck serve"

    @property
    def bad(self) -> bool:
        if self.known:
            return self.result in ("hang", "traceback")
        return self.result not in ("same", "refused") or bool(self.taken)


class Book:
    """The outcomes of one run of the suite, in a file that several processes add to."""

    def __init__(self, seed: int, path: Path) -> None:
        self.seed, self.path = seed, path

    def add(self, outcome: Outcome) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    @property
    def outcomes(self) -> list[Outcome]:
        if not self.path.is_file():
            return []
        return [Outcome(**json.loads(line)) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def shortage(self) -> dict[str, int]:
        """Of faults that hit fewer than ten times, and of runs that were disturbed, where they are fewer than 150."""
        hits, runs = Counter[str](), 0
        for one in self.outcomes:
            hits[one.fault] += one.hits
            runs += one.hits > 0
        return {name: n for name, n in hits.items() if n < 10} | ({"runs": runs} if runs < 150 else {})

    def as_json(self) -> dict[str, Any]:
        """Runs in which the fault did not hit are not counted."""
        return {"seed": self.seed, "groups": _groups([one for one in self.outcomes if one.hits])}

    def text(self) -> str:
        """For a terminal."""
        lines = [f"chaos seed {self.seed} (LIMBECK_CHAOS_SEED={self.seed} repeats it)"]
        for group, rows in self.as_json()["groups"].items():
            lines += ["", f"{group:30}" + "".join(f"{name:>14}" for name in COLUMNS)]
            lines += [f"{fault:30}" + "".join(f"{row[name]:>14}" for name in COLUMNS) for fault, row in rows.items()]
        return "\n".join(lines)


def _groups(outcomes: Iterable[Outcome]) -> dict[str, dict[str, dict[str, int]]]:
    groups: dict[str, dict[str, dict[str, int]]] = {}
    for one in outcomes:
        for fault in (one.fault, "all"):
            row = groups.setdefault(one.group, {}).setdefault(fault, dict.fromkeys(COLUMNS, 0))
            row["runs"] += 1
            row["hits"] += one.hits
            row["taken"] += len(one.taken)
            row["same weights" if one.result == "same" else one.result] += 1
    return {
        group: {**{k: v for k, v in rows.items() if k != "all"}, "all": rows["all"]} for group, rows in groups.items()
    }


def markdown(found: Mapping[str, Any]) -> str:
    """`Book.as_json` as tables of the page."""
    parts = []
    for group, rows in found["groups"].items():
        head = [group, *COLUMNS]
        lines = [_row(head), _row(["---", *["---:"] * len(COLUMNS)])]
        lines += [_row([fault, *(str(row[name]) for name in COLUMNS)]) for fault, row in rows.items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_table(page: str, found: Mapping[str, Any]) -> str:
    """The page with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown(found)}\n\n{END}{rest.partition(END)[2]}"
