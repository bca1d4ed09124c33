"""What the table of runs needs of a run's files: first and last values, the best of evaluations, and how it went.

A folder may hold hundreds of runs of many steps. Their files are looked at again only where they changed, and only a
line of metrics that matters here is parsed: the first, the last few, evaluations, and lines with alarms.
"""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from limbeck.files.disk import open_file
from limbeck.view.metrics import Columns, Metrics, add_line, goes_on

TAIL = 20  # of the last steps, over which the time of one is averaged
EVALUATIONS = 40  # of the last ones, each by itself: runs of one group are compared at a step that most of them have
PARTS = ("/se", "/low", "/high")  # of a key's uncertainty, which the table has no column for
ROUTINE = (b'"kind": "train"', b'"alarms": []')  # in every line of a step without an alarm, as a run writes it
NOT_FINITE = (b"NaN", b"Infinity")  # in no line that a run of ours writes
MAX_HISTORY = 2**20  # bytes
PLACE = (
    "host", "pid", "device", "device_name", "python", "limbeck", "torch", "transformers", "commit", "uncommitted",
)  # fmt: skip


class MetricsSummary:
    """Of one `metrics.jsonl`, followed as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._offset = 0
        self._metrics = Metrics()  # of the first step, of evaluations, and of steps with alarms
        self._tail: deque[bytes] = deque(maxlen=TAIL)

    def read(self) -> dict[str, Any]:
        """What `runs.describe` has under `summary`.

        `step`, `alarms`, `alarm_names`, `seconds_per_step`; `train`: key -> [first, last]; `eval`: key -> see `_range`.
        `evaluations`: the last ones in columns, as `metrics.Columns`.
        """
        lines = self._new_lines()
        if lines and self._goes_back(lines[0]):
            self._forget()
            lines = self._new_lines()
        for line in lines:
            self._add(line)
        last = Metrics()
        for line in self._tail:
            add_line(last, line)
        last.train.fill_up()
        self._metrics.eval.fill_up()
        return {
            "step": last.train.step[-1] if last.train.step else 0,
            "alarms": len(self._metrics.alarms),
            "alarm_names": sorted({alarm["name"] for alarm in self._metrics.alarms}),
            "seconds_per_step": _mean(last.train.values.get("seconds/step", ())),
            "train": _first_and_last(self._metrics.train, last.train),
            "eval": {key: _range(self._metrics.eval.step, column) for key, column in self._metrics.eval.values.items()},
            "evaluations": _last_ones(self._metrics.eval),
        }

    def _new_lines(self) -> list[bytes]:
        """The complete ones since the last time; all of them where the file is another."""
        try:
            with open_file(self.path) as file:
                if self._offset and not goes_on(file, self._offset):
                    self._forget()
                file.seek(self._offset)
                data = file.read()
        except OSError:  # said where the run is shown
            self._forget()
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        return data[:end].split(b"\n")[:-1]

    def _add(self, line: bytes) -> None:
        read = self._metrics.train.step
        if not read or not all(part in line for part in ROUTINE) or any(part in line for part in NOT_FINITE):
            before = read[-1:], len(read)
            add_line(self._metrics, line)
            if (read[-1:], len(read)) == before:  # an evaluation, or no line of metrics
                return
        self._tail.append(line)

    def _goes_back(self, line: bytes) -> bool:
        """Whether a line is of a step that had come before: the run went back to a checkpoint."""
        new, last = Metrics(), Metrics()
        add_line(new, line)
        for one in list(self._tail)[-1:]:
            add_line(last, one)
        before = last.train.step[-1] if last.train.step else -1
        return any(step <= before for step in new.train.step) or any(step < before for step in new.eval.step)


def _last_ones(evals: Columns) -> dict[str, Any]:
    values = {key: column[-EVALUATIONS:] for key, column in evals.values.items() if not key.endswith(PARTS)}
    return {"step": evals.step[-EVALUATIONS:], "values": values}


def _first_and_last(first: Columns, tail: Columns) -> dict[str, list[float]]:
    found = {}
    for key, column in tail.values.items():
        known = [value for value in column if value is not None]
        if known:
            start = next(iter(first.values.get(key, [])), None)
            found[key] = [known[0] if start is None else start, known[-1]]
    return found


def _range(steps: Sequence[int], column: Sequence[float | None]) -> list[float]:
    """[first, last, least, greatest, step of the least, step of the greatest]; the first of several that are equal."""
    known = [(value, step) for value, step in zip(column, steps, strict=True) if value is not None]
    if not known:
        return []
    least, greatest = min(known), max(known, key=lambda one: (one[0], -one[1]))
    return [known[0][0], known[-1][0], least[0], greatest[0], least[1], greatest[1]]


def _mean(column: Sequence[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    return sum(known) / len(known) if known else None


def read_history(path: Path) -> dict[str, Any]:
    """When a run was started (`started`, unix time), on what, and how it ended.

    `place` is that of its last start, `began` what its first one had else: a run may be resumed elsewhere.

    `worked` are the seconds of its processes that ended; `since` is when the last one started, if it has not. A line
    that is none is left out. Empty where there is no such file.
    """
    try:
        with open_file(path) as file:
            lines = file.read(MAX_HISTORY).split(b"\n")
    except OSError:
        return {}
    events = [event for event in map(_event, lines) if event]
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        return {}
    worked, since = 0.0, None
    for event in events:
        if event["event"] == "end" and since is not None:
            worked += max(0.0, event["at"] - since)
        since = event["at"] if event["event"] == "start" else None
    end = events[-1] if events[-1]["event"] == "end" else {}
    first, last = _place(starts[0]), _place(starts[-1])
    return {
        "starts": len(starts),
        "started": starts[0]["at"],
        "worked": worked,
        "since": since,
        "place": last,
        "began": {key: value for key, value in first.items() if value != last.get(key)},
        **{key: end[key] for key in ("outcome", "message") if isinstance(end.get(key), str)},
    }


def _place(start: Mapping[str, Any]) -> dict[str, Any]:
    return {key: start[key] for key in PLACE if isinstance(start.get(key), str | int)}


def is_alive(history: Mapping[str, Any]) -> bool | None:
    """Whether the process of a run that has not ended is there. None where it is on another machine, or not known."""
    place = history.get("place", {})
    pid = place.get("pid")
    if history.get("since") is None or place.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if not 0 < pid < 2**31:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        pass
    return True


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
        if not isinstance(event, dict) or event.get("event") not in ("start", "end"):
            return None
        when = datetime.fromisoformat(event["time"])
        at = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, RecursionError, KeyError, TypeError, OverflowError):
        return None
    return {**event, "at": at}
