"""An observer that keeps what it sees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Recorder:
    """`events` in order, and the lines of steps and evaluations."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.steps: list[Mapping[str, Any]] = []
        self.evaluations: list[Mapping[str, Any]] = []

    def started(self, step: int, steps: int) -> None:
        self.events.append(f"started {step}/{steps}")

    def phase(self, step: int, name: str) -> None:
        self.events.append(f"{name} {step}")

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.steps.append(line)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.evaluations.append(line)

    def closed(self) -> None:
        self.events.append("closed")
