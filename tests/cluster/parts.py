"""Parts that fleets of the tests are made of."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import torch

from limbeck.errors import ContractError, ModelError
from limbeck.records import ProbeResult


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
