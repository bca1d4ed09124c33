"""`metrics.jsonl` of a run: lines are added at its end, and cut off where a run goes back to a checkpoint.

A checkpoint says how long the file was. Raises `OSError` where no other error is named: `RunFolder` says what it means.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.files.disk import read_file

logger = logging.getLogger("limbeck")


class MetricsFile:
    """The file at `path`, which need not be there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def size(self) -> int:
        """Bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def append(self, text: str) -> None:
        """One line, or nothing."""
        length = self.size
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError:
            with suppress(OSError):  # a part of the line may be there
                os.truncate(self.path, length)
            raise

    def lines(self) -> list[dict[str, Any]]:
        """All of them. Raises `RunError` naming one that is no line of metrics."""
        try:
            data = read_file(self.path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"{self.path} cannot be read: {error.strerror}.") from None
        return [self._line(number, line) for number, line in enumerate(data.split(b"\n")[:-1], start=1)]

    def check(self, step: int, length: int) -> None:
        """Raises `RunError` where the file is not the one that the checkpoint of `step` was written beside.

        It had `length` bytes then. One that is missing is a warning: the weights do not depend on it.
        """
        if not self.path.exists():
            if length:
                logger.warning("%s is missing: the run goes on, without its lines up to step %d", self.path, step)
            return
        if self.size < length:
            raise RunError(
                f"{self.path} has {self.size} bytes, fewer than the {length} of the last checkpoint. Restore it, or "
                "remove it to go on without the lines up to here."
            )
        if length and not self._ends_a_line(length):
            raise RunError(
                f"{self.path} is not the file that the checkpoint of step {step} was written beside: its first "
                f"{length} bytes end inside a line. Restore it, or remove it to go on without the lines up to here."
            )

    def cut(self, length: int) -> None:
        if self.path.exists():
            os.truncate(self.path, length)

    def _ends_a_line(self, length: int) -> bool:
        with self.path.open("rb") as file:
            file.seek(length - 1)
            return file.read(1) == b"\n"

    def _line(self, number: int, data: bytes) -> dict[str, Any]:
        try:
            line = json.loads(data)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or type(line.get("step")) is not int or line.get("kind") not in ("train", "eval"):
            raise RunError(
                f"{self.path} is damaged: line {number} is not a line of metrics. Restore it, or remove the file to go "
                "on without the lines up to here: the weights do not depend on them."
            )
        return line
