"""Tracker `tensorboard`: event files in the run's folder. `tensorboard --logdir runs` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoardSink:
    """Scalars by their names, alarms as text."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder = folder
        self.make: Any = SummaryWriter
        self.writer: Any = None

    def open(self, start: int) -> None:
        # What an earlier process wrote after the checkpoint is made again.
        self.writer = self.make(str(self.folder), purge_step=start + 1 if start else None)

    def log(self, step: int, values: Mapping[str, float], alarms: tuple[str, ...]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        for alarm in alarms:
            self.writer.add_text("alarms", alarm, step)

    def close(self) -> None:
        self.writer.close()
