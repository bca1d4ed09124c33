"""A run's folder on disk, in which nothing half-written is ever read as complete.

    runs/demo/
      recipe.toml            the resolved recipe
      contract.jsonl         what was proven before the first step
      prompts.json           digests of the prompts it began with
      metrics.jsonl          one line a step or evaluation
      evaluations/           the answers of each evaluation
      rollouts/              recorded rollouts, one Parquet file a recorded step
      checkpoints/step-000050/
        model/               an ordinary Hugging Face folder; with LoRA adapter/ in its place
        learner.safetensors  optimizer state
        state.json           step, and how long metrics.jsonl was
      model/                 the finished student, beside the last checkpoint; with LoRA merged, and adapter/ beside it

A checkpoint is written under a temporary name, flushed to disk, and renamed: it is complete or
not there at all. On resume, metrics lines and rollouts after the checkpoint are cut off and written again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from limbeck.errors import RunError
from limbeck.training.finite import to_json

FORMAT = 1
STATE_FILE = "state.json"
# Changing these does not change the steps that were already made.
FREE_TO_CHANGE = ("steps", "checkpoint", "eval", "device", "threads", "output", "name", "trackers", "record")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, after `step` updates."""

    folder: Path
    step: int
    metrics_bytes: int


class RunFolder:
    """One run's folder, locked by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self._lock = FileLock(path / ".lock", blocking=False)

    def open(self, recipe_toml: str, recipe: Mapping[str, Any]) -> Checkpoint | None:
        """Take the folder for this recipe; the newest checkpoint of it, or None for a fresh start.

        Raises `RunError` where another process has locked the folder or another recipe was run in it.
        """
        with _disk_errors(f"cannot make the run folder {self.path}"):
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise RunError(
                f"{self.path} is in use by another process. Wait for it, or give this run another name."
            ) from None
        self._refuse_other_recipe(recipe)
        with _disk_errors(f"cannot write to {self.path}"):
            _write(self.path / "recipe.toml", recipe_toml.encode())
            for half in self.checkpoints.glob(".*"):
                shutil.rmtree(half)
        newest = self.newest()
        self._cut_metrics(newest.metrics_bytes if newest else 0)
        self._cut_rollouts(newest.step if newest else 0)
        return newest

    def close(self) -> None:
        self._lock.release()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint. Raises `RunError` where its state cannot be read."""
        folders = sorted(self.checkpoints.glob("step-*"))
        return read_checkpoint(folders[-1]) if folders else None

    def append(self, line: Mapping[str, Any]) -> None:
        """One line of metrics. Raises `NonFiniteError`, with nothing written, where a number is NaN or infinite."""
        text = to_json(line, f"metrics of step {line['step']} ({line.get('kind', 'train')})")
        with _disk_errors(f"cannot write {self.metrics}"), self.metrics.open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """A JSONL file `name` in this folder, complete or not at all. Raises `NonFiniteError` as `append` does."""
        path = self.path / name
        lines = [to_json(row, f"row {i} of {name}", ascii_only=False) + "\n" for i, row in enumerate(rows)]
        with _disk_errors(f"cannot write {path}"):
            path.parent.mkdir(exist_ok=True)
            _write(path, "".join(lines).encode())
        return path

    def lines(self) -> list[dict[str, Any]]:
        """All lines of metrics so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def save(self, step: int, write: Callable[[Path], None], keep_last: int) -> Checkpoint:
        """A checkpoint of `step`, its files written by `write`, then the oldest ones removed.

        Raises `RunError`, with earlier checkpoints intact, where the disk does not take it.
        """
        final = self.checkpoints / f"step-{step:06d}"
        half = self.checkpoints / f".{final.name}.half"
        metrics_bytes = self.metrics.stat().st_size if self.metrics.exists() else 0
        state = {"format": FORMAT, "step": step, "metrics_bytes": metrics_bytes}
        try:
            with _disk_errors(f"cannot write checkpoint {final}; earlier checkpoints are intact"):
                half.mkdir(parents=True)
                write(half)
                _write(half / STATE_FILE, json.dumps(state, allow_nan=False).encode())
                _flush_tree(half)
                if self.metrics.exists():
                    _flush(self.metrics)
                if final.exists():  # a finished run that is run again
                    shutil.rmtree(final)
                half.rename(final)
                _flush(self.checkpoints)
        except RunError:
            shutil.rmtree(half, ignore_errors=True)
            raise
        for old in sorted(self.checkpoints.glob("step-*"))[:-keep_last]:
            shutil.rmtree(old)
        return Checkpoint(final, step, metrics_bytes)

    def write_file(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file `name` in this folder by `write`, complete or not at all."""
        path = self.path / name
        half = path.with_name(f".{path.name}.half")
        with _disk_errors(f"cannot write {path}"):
            path.parent.mkdir(exist_ok=True)
            write(half)
            _flush(half)
            half.replace(path)
        return path

    def replace(self, name: str, write: Callable[[Path], None]) -> Path:
        """A subfolder written by `write`, swapped in at once."""
        final, half = self.path / name, self.path / f".{name}.half"
        with _disk_errors(f"cannot write {final}"):
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            write(half)
            _flush_tree(half)
            shutil.rmtree(final, ignore_errors=True)
            half.rename(final)
        return final

    def _refuse_other_recipe(self, recipe: Mapping[str, Any]) -> None:
        import tomllib

        path = self.path / "recipe.toml"
        if not path.exists() or not any(self.checkpoints.glob("step-*")):
            return
        before = tomllib.loads(path.read_text(encoding="utf-8"))
        before, now = _flat(before), _flat(recipe)
        differing = [
            f"{key} ({before.get(key)!r} then, {now.get(key)!r} now)"
            for key in sorted({*before, *now})
            if before.get(key) != now.get(key) and key.partition(".")[0] not in FREE_TO_CHANGE
        ]
        if differing:
            raise RunError(
                f"{self.path} holds a run of another recipe: {'; '.join(differing[:5])}. Give this one another "
                "name=..., or start over with --fresh."
            )

    def _cut_metrics(self, length: int) -> None:
        if not self.metrics.exists():
            return
        size = self.metrics.stat().st_size
        if size < length:
            raise RunError(
                f"{self.metrics} has {size} bytes, fewer than the {length} of the last checkpoint. Restore it, or use "
                "--fresh."
            )
        with _disk_errors(f"cannot write {self.metrics}"):
            os.truncate(self.metrics, length)

    def _cut_rollouts(self, step: int) -> None:
        """Remove what was recorded after `step`: those steps are made again."""
        with _disk_errors(f"cannot write to {self.rollouts}"):
            for path in self.rollouts.glob("step-*.parquet"):
                if recorded_step(path) > step:
                    path.unlink()
            for half in self.rollouts.glob(".*.half"):
                half.unlink()


def recorded_step(path: Path) -> int:
    """`rollouts/step-000010.parquet` to 10."""
    return int(path.stem.removeprefix("step-"))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Raises `RunError` where the folder is not a checkpoint of this format."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise RunError(f"{folder} has checkpoint format {state['format']}, expected {FORMAT}")
        return Checkpoint(folder, state["step"], state["metrics_bytes"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder} is not a checkpoint: {error}. Remove it to go on from the one before.") from None


def remove_run(path: Path) -> None:
    """Delete a run, for --fresh; only a folder that looks like one. Raises `RunError` otherwise."""
    if not path.exists():
        return
    if not (path / "recipe.toml").exists() and any(path.iterdir()):
        raise RunError(f"{path} does not look like a run folder (no recipe.toml); it was not removed.")
    shutil.rmtree(path)


class _disk_errors:  # noqa: N801 (used as a statement)
    """Turn what the file system (or safetensors, on a full disk) raises into a `RunError`."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        from safetensors import SafetensorError

        if isinstance(error, OSError | SafetensorError):
            raise RunError(f"{self.what}: {error}. Free some space or fix the permissions; `train` resumes.") from error


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _write(path: Path, data: bytes) -> None:
    """A small file, complete or not at all."""
    half = path.with_name(f".{path.name}.half")
    half.write_bytes(data)
    _flush(half)
    half.replace(path)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _flush(path)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError) if path.is_dir() else nullcontext():  # some file systems cannot sync folders
            os.fsync(handle)
    finally:
        os.close(handle)
