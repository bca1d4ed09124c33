"""Sides that take turns on one machine, each with a clock of its own that runs while it works.

Whoever's clock is behind goes next, so at any time all sides have had about as many seconds, under the same load. A
clock has the wall-clock seconds of a side's own turns, whatever else the machine did meanwhile; beside it stand the
seconds of processor time. Copies of the weights are written between turns and judged at the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from sides import STUDIES
from steps.peer import DEFAULT, peer_python
from steps.processes import SRC, Worker


@dataclass(frozen=True)
class Snapshot:
    """A side's weights after some updates, in the file that it wrote, and its clock."""

    folder: Path
    updates: int
    seconds: float
    cpu: float
    tokens: int


@dataclass
class Side:
    """A trainer in a process of its own, which keeps a snapshot after the updates that `evaluated_at` names.

    Each of the first `ahead_updates` is charged `ahead` (wall-clock, processor) seconds of work that was done before.
    """

    name: str
    worker: Worker
    folder: Path
    evaluated_at: Collection[int]
    ahead: tuple[float, float] = (0.0, 0.0)
    ahead_updates: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    updates: int = 0
    tokens: int = 0
    rates: list[float] = field(default_factory=list)  # of learning, of each update
    snapshots: dict[int, Snapshot] = field(default_factory=dict)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.worker.close()

    def step(self) -> None:
        made = self.worker.ask("step")
        ahead = self.ahead if self.updates < self.ahead_updates else (0.0, 0.0)
        self.seconds += made["seconds"] + ahead[0]
        self.cpu += made["cpu"] + ahead[1]
        self.tokens += made["tokens"]
        self.rates.append(made["rate"])
        self.updates += 1
        if self.updates in self.evaluated_at:
            self.snapshots[self.updates] = self.snapshot()

    def snapshot(self) -> Snapshot:
        """Off the clock."""
        path = self.folder / f"{self.name}-{self.updates}"
        if not path.exists():
            self.worker.ask("save", folder=str(path))
        return Snapshot(path, self.updates, self.seconds, self.cpu, self.tokens)


def limbeck_side(
    name: str,
    recipe: dict[str, Any],
    folder: Path,
    evaluated_at: Collection[int],
    sft: bool = False,
    teacher: bool = True,
) -> Side:
    """`teacher` False: the objective does not look at its scores, so it is not asked."""
    plan = _written({"recipe": {**recipe, "name": name}, "sft": sft, "needs_teacher": teacher}, name, folder)
    return Side(name, Worker(sys.executable, "sides.limbeck_side", plan, paths=(STUDIES, SRC)), folder, evaluated_at)


def trl_side(name: str, plan: dict[str, Any], folder: Path, evaluated_at: Collection[int]) -> Side:
    """In TRL's environment, which is made where it is not there."""
    worker = Worker(peer_python(DEFAULT), "sides.trl_side", _written(plan, name, folder), paths=(STUDIES,))
    return Side(name, worker, folder, evaluated_at)


def trl_is_there() -> bool:
    return (DEFAULT / "ready").exists()


def _written(plan: dict[str, Any], name: str, folder: Path) -> str:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(plan))
    return str(path)


def at_equal_seconds(first: Side, others: Sequence[Side]) -> dict[str, dict[int, Snapshot]]:
    """Turns until `first` has made the last of its updates that are evaluated, and all of them theirs.

    By side and updates of `first`: what each had when its clock had come to what `first` took for them, at most one
    step more.
    """
    found: dict[str, dict[int, Snapshot]] = {side.name: {} for side in others}
    for updates in sorted(first.evaluated_at):
        while first.updates < updates:
            min([first, *others], key=lambda side: side.seconds).step()
        while behind := [side for side in others if side.seconds < first.seconds]:
            min(behind, key=lambda side: side.seconds).step()
        for side in others:
            found[side.name][updates] = side.snapshot()
    while behind := [side for side in others if side.updates < max(side.evaluated_at)]:
        min(behind, key=lambda side: side.seconds).step()
    return found
