"""`metrics.jsonl` in columns, read from a byte offset on so that a page follows a run cheaply."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck.files.disk import open_file
from limbeck.formatting import shown
from limbeck.view.reading import first_few

KINDS = ("train", "eval")
MAX_FLOAT = sys.float_info.max
MAX_LINE = 2**20  # bytes: a step's line has a few thousand
MAX_KEYS = 5000  # of a line: a step has about fifty, and ten more for each teacher
MAX_STEP = 2**53 - 1  # the largest whole number of a browser


@dataclass
class Columns:
    """Lines of one kind: `values[key][i]` belongs to `step[i]`; None where that line has no such key.

    `not_finite[key]` are the steps of which the line has the key, but no finite number: None in `values` too.
    """

    step: list[int] = field(default_factory=list)
    values: dict[str, list[float | None]] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)

    def add(self, line: Mapping[str, Any]) -> None:
        """A step that comes again (a resumed run) replaces what stood from there on."""
        while self.step and self.step[-1] >= line["step"]:
            self.step.pop()
            for column in self.values.values():
                del column[len(self.step) :]
            for steps in self.not_finite.values():
                steps[:] = [step for step in steps if step < line["step"]]
        count = len(self.step)
        for key, value in line.items():
            if key == "step" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            column = self.values.setdefault(key, [])
            if len(column) < count:
                column.extend([None] * (count - len(column)))
            finite = -MAX_FLOAT <= value <= MAX_FLOAT  # no NaN, and nothing larger than JSON's
            column.append(value if finite else None)
            if not finite:
                self.not_finite.setdefault(key, []).append(line["step"])
        self.step.append(line["step"])

    def fill_up(self) -> None:
        """Make all columns as long as `step`, once after the last line: keys that ended early end in None."""
        for column in self.values.values():
            column.extend([None] * (len(self.step) - len(column)))


@dataclass
class Metrics:
    """What was read, where to go on, and what could not be read."""

    train: Columns = field(default_factory=Columns)
    eval: Columns = field(default_factory=Columns)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0  # bytes; of the first line not read yet
    reset: bool = True  # False: to be added to what was read before
    problems: list[str] = field(default_factory=list)  # of the file as it is now
    skipped: list[str] = field(default_factory=list)  # of the lines that were read, which are not read again

    def as_json(self) -> dict[str, Any]:
        return {
            "train": vars(self.train),
            "eval": vars(self.eval),
            "alarms": self.alarms,
            "offset": self.offset,
            "reset": self.reset,
            "problems": self.problems,
            "skipped": self.skipped,
        }


def read_metrics(path: Path, offset: int = 0) -> Metrics:
    """The complete lines from byte `offset` on; all of them where the file is no longer the one that was read."""
    try:
        with open_file(path) as file:
            if offset and not goes_on(file, offset):
                offset = 0
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return Metrics(problems=["metrics.jsonl is missing: the run has made no step yet, or the copy is incomplete."])
    except OSError as error:
        return Metrics(problems=[f"metrics.jsonl cannot be read: {error.strerror or error}."])
    end = data.rfind(b"\n") + 1
    metrics = Metrics(offset=offset + end, reset=offset == 0)
    bad = list(_add_lines(metrics, data[:end].split(b"\n")[:-1]))  # (which of these lines, what is wrong)
    metrics.train.fill_up()
    metrics.eval.fill_up()
    if bad:
        before = _lines_before(path, offset)
        named = first_few([f"line {before + number} ({fault})" for number, fault in bad])
        metrics.skipped.append(f"metrics.jsonl: skipped {named}.")
    if end < len(data):
        metrics.problems.append(
            "metrics.jsonl ends in a half-written line, which is skipped: the run is writing it now, or was stopped."
        )
    return metrics


def _lines_before(path: Path, offset: int) -> int:
    with open_file(path) as file:
        return file.read(offset).count(b"\n")


def goes_on(file: Any, offset: int) -> bool:
    """Whether a line ends right before `offset`: a file that was cut and written again seldom has one there."""
    file.seek(offset - 1)
    return bool(file.read(1) == b"\n")


def _add_lines(metrics: Metrics, lines: Iterable[bytes]) -> Iterable[tuple[int, str]]:
    """Adds each line; which of them cannot be, from 1 on, and what is wrong with it."""
    for number, data in enumerate(lines, start=1):
        if data.strip() and (fault := add_line(metrics, data)):
            yield number, fault


def add_line(metrics: Metrics, data: bytes) -> str | None:
    if len(data) > MAX_LINE:
        return f"{len(data):,} bytes, expected at most {MAX_LINE:,}"
    try:
        line = json.loads(data)
    except (ValueError, RecursionError):
        return "not JSON"
    step = line.get("step") if isinstance(line, dict) else None
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step <= MAX_STEP:
        return "no step"
    if len(line) > MAX_KEYS:
        return f"{len(line):,} keys, expected at most {MAX_KEYS:,}"
    kind = line.get("kind", "train")  # lines of the first versions had none
    if kind not in KINDS:
        return f"kind {shown(kind, 20)}, expected train or eval"
    (metrics.train if kind == "train" else metrics.eval).add(line)
    if kind == "train":
        metrics.alarms = [alarm for alarm in metrics.alarms if alarm["step"] < step]
        metrics.alarms += _alarms(line) + _not_finite(line)
    else:  # after the line of its step
        metrics.alarms += [alarm for alarm in _not_finite(line, "evaluation: ") if alarm not in metrics.alarms]
    return None


def _alarms(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    alarms = line.get("alarms")
    return [
        {"step": line["step"], **{key: _text(alarm.get(key, key)) for key in ("name", "message")}}
        for alarm in (alarms if isinstance(alarms, list) else [])
        if isinstance(alarm, dict)
    ]


def _not_finite(line: Mapping[str, Any], where: str = "") -> list[dict[str, Any]]:
    """An alarm of what no curve can show, so that it is not passed over in silence."""
    keys = [key for key, value in line.items() if isinstance(value, float) and not math.isfinite(value)]
    if not keys:
        return []
    named = first_few([f"{shown(key)} is {line[key]}" for key in keys], ", ")
    return [{"step": line["step"], "name": "not_finite", "message": f"{where}{named}: the curves have no value there"}]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)
