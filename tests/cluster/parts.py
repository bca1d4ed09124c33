"""Parts that fleets of the tests are made of."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from limbeck.assemble import fleet
from limbeck.cluster.ahead import Unit
from limbeck.cluster.teachers import TeacherPart
from limbeck.config.base import ModelConfig
from limbeck.errors import ContractError, ModelError
from limbeck.learners import checkpoint, policy
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

    def folder(self) -> str:
        return os.getcwd()

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


class Deadly:
    """Kills this process in the middle of something, once for each mark: the file says that it was there."""

    def __init__(self, folder: str, name: str, calls: int = 1) -> None:
        self.mark, self.left = Path(folder) / name, calls

    def strike(self) -> None:
        self.left -= 1
        if self.left == 0 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)

    def before(self, owner: Any, name: str) -> None:
        """Strike in place of a call of `owner.name`."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def struck(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            return function(*args, **kwargs)

        setattr(owner, name, struck)


def deadly_sampler(plan: Any, *, folder: str) -> Any:
    """Dies while weights are copied, and while it decodes."""
    engine = fleet.build_sampler(plan)
    Deadly(folder, "sampler-load", 3).before(engine.copy, "take")
    Deadly(folder, "sampler-sample", 6).before(type(engine.copy.lm), "head")
    return engine


def deadly_rank(plan: Any, mark: Any, rank: int, count: int, where: str, *, folder: str) -> Any:
    """The last rank dies in a backward pass, and while its weights are published; the first one while it writes."""
    learner = fleet.build_rank(plan, mark, rank, count, where)
    if rank == count - 1:
        Deadly(folder, "rank-backward", 2).before(torch.Tensor, "backward")
        Deadly(folder, "rank-publish", 40).before(policy, "whole")
    if rank == 0:
        Deadly(folder, "rank-save", 2).before(checkpoint, "write_tensors")
    return learner


def deadly_teacher(*args: Any, folder: str) -> Any:
    """Dies while it computes, and when it is asked for what it has computed."""
    part = fleet.build_teacher(*args)
    Deadly(folder, "teacher-compute", 12).before(part.ahead, "compute")
    Deadly(folder, "teacher-fetch", 60).before(part.ahead, "fetch")
    return part


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
