"""The answers of a run's evaluations (`evaluations/step-000050.jsonl`): a list of each file, and one answer in full.

A list has long texts shortened, so that thousands of long answers can be shown; whole texts are read when somebody
looks at them. A line that cannot be read is named among the problems, and the others are shown.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from limbeck.errors import RunError
from limbeck.files.disk import open_file
from limbeck.files.names import numbered, step_name
from limbeck.view.reading import Stamp, first_few, first_line, stamp_of
from limbeck.view.rollouts import last_question

SUFFIX = ".jsonl"
MAX_LINE = 2**24  # bytes
MAX_ANSWERS = 50_000  # of one file
MAX_BYTES = 2**29  # of one file
MAX_TURNS = 1000
KEPT_FILES = 8  # lists that are kept in memory
HEAD, TAIL = 300, 300  # characters of a shortened text


@dataclass(frozen=True)
class _File:
    """The list of one file, and where each answer is in it."""

    stamp: Stamp
    rows: list[dict[str, Any]]
    offsets: list[int]  # bytes; of the line of each row
    problems: list[str]


class Evaluations:
    """The folder `evaluations/` of one run. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, _File] = {}
        self._lock = threading.Lock()

    def steps(self) -> list[int]:
        """The steps that were evaluated, in order. Raises `RunError` where the folder cannot be read."""
        try:
            return [step for step, _ in numbered(self.folder, SUFFIX)]
        except OSError as error:
            raise RunError(f"evaluations/ cannot be read: {error.strerror or error}.") from None

    def answers(self, step: int) -> dict[str, Any]:
        """All answers of one evaluation, long texts shortened. Raises `RunError` where there is none."""
        file = self._file(step)
        return {"step": step, "rows": file.rows, "problems": file.problems}

    def answer(self, step: int, number: int) -> dict[str, Any]:
        """One answer with its whole texts. Raises `RunError` where it is not there any more."""
        file = self._file(step)
        if number >= len(file.rows):
            raise RunError(
                f"the evaluation of step {step} has {len(file.rows)} answers, not {number + 1}. Reload the page."
            )
        try:
            with open_file(self._path(step)) as handle:
                handle.seek(file.offsets[number])
                row, _ = _read_line(handle.readline(MAX_LINE + 1))
        except OSError as error:
            raise RunError(f"{self._named(step)} cannot be read: {error.strerror or error}.") from None
        if row is None:
            raise RunError(f"{self._named(step)} has changed. Reload the page.")
        return {**row, "number": number}

    def search(self, step: int, text: str) -> list[int]:
        """Numbers of the answers whose prompt or response has `text`, letter case aside."""
        wanted, file = text.casefold(), self._file(step)
        found = []
        with open_file(self._path(step)) as handle:
            for number, offset in enumerate(file.offsets):
                handle.seek(offset)
                row, _ = _read_line(handle.readline(MAX_LINE + 1))
                if row and any(wanted in row[key].casefold() for key in ("prompt_id", "prompt", "response")):
                    found.append(number)
        return found

    def _file(self, step: int) -> _File:
        with self._lock:
            path = self._path(step)
            stamp = stamp_of(path)
            if stamp is None:
                self._files.pop(step, None)
                raise RunError(f"there are no answers of an evaluation at step {step}. Reload the page.")
            known = self._files.pop(step, None)
            if known is None or known.stamp != stamp:
                known = self._read(step, stamp)
            self._files[step] = known  # the last one that was asked for is the last to go
            while len(self._files) > KEPT_FILES:
                del self._files[next(iter(self._files))]
            return known

    def _read(self, step: int, stamp: Stamp) -> _File:
        rows: list[dict[str, Any]] = []
        offsets: list[int] = []
        bad: list[str] = []
        seen: Counter[tuple[str, str, int]] = Counter()
        problems = []
        try:
            with open_file(self._path(step)) as handle:
                for line, offset, data in _lines(handle):
                    if len(rows) == MAX_ANSWERS or offset > MAX_BYTES:
                        problems.append(f"{self._named(step)} is long: only its first {len(rows):,} answers are shown.")
                        break
                    row, fault = _read_line(data)
                    if row is None:
                        bad.append(f"line {line} ({fault})")
                        continue
                    if row["sample"] is None:  # files of older versions do not say: as they come
                        row["sample"] = seen[row["set"], row["prompt_id"], -1]
                        seen[row["set"], row["prompt_id"], -1] += 1
                    rows.append({**_shortened(row), "number": len(rows)})
                    offsets.append(offset)
        except OSError as error:
            problems.append(f"{self._named(step)} cannot be read: {error.strerror or error}.")
        if bad:
            problems.append(f"{self._named(step)}: skipped {first_few(bad)}.")
        return _File(stamp, rows, offsets, problems)

    def _path(self, step: int) -> Path:
        return self.folder / step_name(step, SUFFIX)

    def _named(self, step: int) -> str:
        return f"evaluations/{step_name(step, SUFFIX)}"


def _lines(handle: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Number, byte offset and bytes of each line that is not empty; of one that is too long, its beginning."""
    line = offset = 0
    while data := handle.readline(MAX_LINE + 1):
        line += 1
        start = offset
        offset += len(data)
        if data.strip():
            yield line, start, data
        while not data.endswith(b"\n") and (data := handle.readline(MAX_LINE)):  # the rest of a long line
            offset += len(data)


def _read_line(data: bytes) -> tuple[dict[str, Any] | None, str]:
    """One answer, with every key and each of its type; or None and what is wrong with it."""
    if len(data) > MAX_LINE:
        return None, f"over {MAX_LINE:,} bytes"
    try:
        line = json.loads(data)
    except (ValueError, RecursionError) as error:
        return None, f"not JSON: {first_line(error)}" if isinstance(error, ValueError) else "nested too deep"
    if not isinstance(line, dict):
        return None, "no answer"
    if not isinstance(line.get("prompt_id"), str) or not isinstance(line.get("response"), str):
        return None, "no prompt_id and response"
    prompt = _text(line.get("prompt"))
    return {
        "set": _text(line.get("set")),
        "prompt_id": line["prompt_id"],
        "prompt": prompt,
        "question": _text(line.get("question")) or last_question(prompt),
        "answer": line["answer"] if isinstance(line.get("answer"), str) else None,
        "sample": _whole(line.get("sample")),
        "segment": _whole(line.get("segment")) or 0,
        "response": line["response"],
        "turns": _turns(line.get("turns")),
        "reward": _reward(line.get("reward")),
        "tokens": _whole(line.get("tokens")),
        "finish": _text(line.get("finish")),
    }, ""


def _shortened(row: dict[str, Any]) -> dict[str, Any]:
    """For the list: without the prompt and the turns, and `same` alike for alike responses."""
    listed = {key: value for key, value in row.items() if key not in ("prompt", "turns")}
    spoken = json.dumps([row["response"], row["turns"]])
    listed["same"] = hashlib.blake2b(spoken.encode(), digest_size=6).hexdigest()
    turns = " → ".join(turn["text"].strip() for turn in row["turns"])
    return {**listed, "question": row["question"][:HEAD], "response": shortened(turns or row["response"])}


def shortened(text: str) -> str:
    """Its beginning and its end, where it is long: the end is often the answer."""
    return text if len(text) <= HEAD + TAIL + 3 else f"{text[:HEAD]} … {text[-TAIL:]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53 else None


def _reward(value: Any) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def _turns(value: Any) -> list[dict[str, str]]:
    turns = value[:MAX_TURNS] if isinstance(value, list) else []
    return [{"role": _text(t.get("role")), "text": _text(t.get("text"))} for t in turns if isinstance(t, dict)]
