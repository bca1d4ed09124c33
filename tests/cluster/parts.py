"""Parts that fleets of the tests are made of."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.cluster.ahead import Unit
from limbeck.cluster.teachers import TeacherPart
from limbeck.config.base import ModelConfig
from limbeck.errors import ContractError, ModelError
from limbeck.models.loading import load_model
from limbeck.records import ProbeResult, ScoreRequest
from limbeck.teachers.local import LocalTeacher


class Counter:
    """Counts from where it was last set; it can be asked to die, to fail and to take its time."""

    def __init__(self, start: int = 0) -> None:
        self.value = start

    async def set(self, value: int) -> None:
        self.value = value

    async def add(self, number: int) -> int:
        self.value += number
        return self.value

    def pid(self) -> int:
        return os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def die_once(self, mark: str) -> int:
        if not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), 9)
        return self.value

    def die(self) -> None:
        os.kill(os.getpid(), 9)

    def wait_for(self, mark: str) -> int:
        while not Path(mark).exists():
            time.sleep(0.01)
        return self.value

    def warn(self, message: str) -> None:
        logging.getLogger("limbeck").warning(message)

    def refuse(self) -> None:
        raise ContractError("no such teacher", [ProbeResult("a", "b", "c", ok=False)])

    def fail(self) -> None:
        raise KeyError("a bug")

    def no_space(self) -> None:
        raise OSError(28, "No space left on device", "/some/file")


def broken() -> Counter:
    raise ModelError("no model folder at 'x'")


class GatedTeacher(TeacherPart):
    """A teacher whose n-th unit is computed once the file `open-n` is there, or `open`; it fails while `fail` is."""

    def __init__(self, model: str, budget: int, folder: Path) -> None:
        self.folder, self.begun, self.fetched = folder, 0, 0
        lm = load_model(ModelConfig(model=model), torch.device("cpu"))
        super().__init__(LocalTeacher("teacher", lm, budget), cap=10**6)

    def _compute(self, requests: Sequence[ScoreRequest]) -> list[torch.Tensor]:
        if (self.folder / "fail").exists():
            raise torch.OutOfMemoryError("no memory left")
        gates = self.folder / "open", self.folder / f"open-{self.begun}"
        self.begun += 1
        while not any(gate.exists() for gate in gates):
            time.sleep(0.01)
        return super()._compute(requests)

    async def fetch(self, unit_id: str, row: int, unit: Unit | None) -> Any:
        found = await super().fetch(unit_id, row, unit)
        self.fetched += found is not None
        return found

    def progress(self) -> tuple[int, int]:
        """Units that were begun, and rows that were fetched."""
        return self.begun, self.fetched
