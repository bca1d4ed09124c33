"""A run's folder on disk, in which nothing half-written is ever read as complete.

    runs/demo/
      recipe.toml            the resolved recipe
      contract.jsonl         what was proven before the first step
      prompts.json           digests of the prompts it began with
      metrics.jsonl          one line a step or evaluation
      history.jsonl          one line a start or end: when, where, with what, and how it ended
      evaluations/           the answers of each evaluation
      rollouts/              recorded rollouts, one Parquet file a recorded step
      journal/               episodes since the last checkpoint that cannot be made again, one file a step
      checkpoints/step-000050/
        model/               an ordinary Hugging Face folder; with LoRA adapter/ in its place
        learner.safetensors  optimizer state
        policies/            with rollout.lag: earlier weights that the next steps are sampled with
        state.json           step, recipe, how long metrics.jsonl was, and digests of the files
      model/                 the finished student, beside the last checkpoint; with LoRA merged, and adapter/ beside it
      state.json             the step that model/ is of, and digests of its files

A checkpoint is written under a hidden name, flushed to disk, and renamed: it is complete or not there at all. What is
removed is renamed first. On resume, what came after the checkpoint is removed and made again.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.errors import RunError
from limbeck.files.digests import (
    CHECKPOINTS,
    RECIPE_FILE,
    STATE_FILE,
    DamagedError,
    check_checkpoint,
    digests_of,
    newest_whole,
    read_state,
    seal,
)
from limbeck.files.disk import (
    disk_errors,
    flush,
    flush_tree,
    make_folder,
    read_file,
    remove,
    sweep,
    take_away,
    write_by,
    write_whole,
)
from limbeck.files.metrics_file import MetricsFile
from limbeck.files.names import hidden_of_steps, numbered, step_name, step_of
from limbeck.training.finite import to_json
from limbeck.training.lock import LOCK_FILE, FolderLock
from limbeck.training.resume import read_recipe, refuse_other_recipe

FINISHED = ("adapter", "model")
HALF, REMOVED = ".half", ".removed"  # endings of hidden names: being written, being removed
ELSEWHERE = "give the run another folder (output=...)"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, after `step` updates by `recipe`."""

    folder: Path
    step: int
    metrics_bytes: int
    recipe: Mapping[str, Any]


class RunFolder:
    """One run's folder, locked by one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self._metrics = MetricsFile(self.metrics)
        self.checkpoints = path / CHECKPOINTS
        self.rollouts = path / "rollouts"
        self.evaluations = path / "evaluations"
        self.journal = path / "journal"
        self._lock = FolderLock(path)
        self._recipe: Mapping[str, Any] = {}

    def open(
        self, recipe_toml: str, recipe: Mapping[str, Any], fresh: bool = False, from_checkpoint: int | None = None
    ) -> Checkpoint | None:
        """Take the folder for this recipe; the checkpoint to go on from, or None for a start from nothing.

        That is the newest checkpoint, or the one of step `from_checkpoint`. `fresh` removes what is there. Raises
        `RunError` where another process has locked the folder, another recipe was run in it, or the checkpoint is not
        as it was written; then nothing was changed.
        """
        if from_checkpoint is not None and not self.path.is_dir():
            raise RunError(f"there is no run in {self.path}, and so no checkpoint of step {from_checkpoint}.")
        with self.writing(f"cannot open the run folder {self.path}"):
            make_folder(self.path, ELSEWHERE)
            if fresh:
                self._refuse_to_remove()
            self._lock.acquire()
            if fresh and any(path.name != LOCK_FILE for path in self.path.iterdir()):
                self._start_over()
            self._sweep_removed()
            self.checkpoints.mkdir(exist_ok=True)
        with self.writing(f"cannot read {self.checkpoints}"):
            checkpoint = self._chosen(from_checkpoint)
        if checkpoint is not None:
            refuse_other_recipe(self.path, checkpoint.recipe, recipe)
        self._recipe = recipe
        with self.writing(f"cannot write to {self.path}"):
            self._remove_after(checkpoint)
            if checkpoint is None or checkpoint.step <= recipe.get("steps", checkpoint.step):
                write_whole(self.path / RECIPE_FILE, recipe_toml.encode())  # with fewer steps nothing is made by it
        return checkpoint

    def close(self) -> None:
        self._lock.release()

    def newest_step(self) -> int:
        """Updates in the newest checkpoint; 0 where there is none."""
        return max((step for step, _ in numbered(self.checkpoints)), default=0)

    def append(self, line: Mapping[str, Any]) -> None:
        """One line of metrics. Raises `NonFiniteError`, with nothing written, where a number is NaN or infinite."""
        text = to_json(line, f"metrics of step {line['step']} ({line.get('kind', 'train')})")
        with self.writing(f"cannot write {self.metrics}"):
            self._metrics.append(text)

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """A JSONL file `name` in this folder, complete or not at all. Raises `NonFiniteError` as `append` does."""
        path = self.path / name
        lines = [to_json(row, f"row {i} of {name}", ascii_only=False) + "\n" for i, row in enumerate(rows)]
        with self.writing(f"cannot write {path}"):
            path.parent.mkdir(exist_ok=True)
            write_whole(path, "".join(lines).encode("utf-8", "backslashreplace"))
        return path

    def read_table(self, name: str, kinds: Mapping[str, type], without: str) -> dict[str, Any] | None:
        """The one line of the JSONL file `name`, whose values are of these `kinds`; None where there is no file.

        Raises `RunError` where it is damaged. `without` says what is left out once the file is removed.
        """
        path = self.path / name
        try:
            table = json.loads(read_file(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict) or not all(isinstance(table.get(key), kind) for key, kind in kinds.items()):
            raise RunError(
                f"{path} is damaged, expected a JSON object with {', '.join(kinds)}. Restore it, or remove it: "
                f"{without}."
            )
        return table

    def lines(self) -> list[dict[str, Any]]:
        """All lines of metrics so far. Raises `RunError` naming a line that is none."""
        return self._metrics.lines()

    def save(self, step: int, write: Callable[[Path], None], keep_last: int | None) -> None:
        """A checkpoint of `step`, its files written by `write`, then all but the newest `keep_last` removed.

        None removes none. Raises `RunError`, with earlier checkpoints intact, where the disk does not take it.
        """
        final = self.checkpoints / step_name(step)
        half, removed = _hidden(final, HALF), _hidden(final, REMOVED)
        values = {"step": step, "metrics_bytes": self._metrics.size, "recipe": dict(self._recipe)}
        try:
            kept = "; earlier checkpoints are intact" if self.newest_step() else ""
            with self.writing(f"cannot write checkpoint {final}{kept}"):
                remove(half)
                half.mkdir(parents=True)
                write(half)
                seal(half, values)
                flush_tree(half)
                if self.metrics.exists():
                    flush(self.metrics)
                if final.exists():
                    take_away(final, removed)
                half.rename(final)
                flush(self.checkpoints)
        except BaseException:
            with suppress(OSError):  # swept by the next run
                remove(half)
            raise
        with self.writing(f"cannot remove old checkpoints in {self.checkpoints}"):
            for _, old in numbered(self.checkpoints)[: 0 if keep_last is None else -keep_last]:
                take_away(old, _hidden(old, REMOVED))
        with self.writing(f"cannot remove what checkpoint {final} covers in {self.journal}"):
            for covered, path in numbered(self.journal, ".jsonl"):
                if covered <= step:
                    remove(path)

    def write_file(self, name: str, write: Callable[[Path], None]) -> Path:
        """A file `name` in this folder by `write`, complete or not at all."""
        path = self.path / name
        with self.writing(f"cannot write {path}"):
            path.parent.mkdir(exist_ok=True)
            write_by(path, write)
        return path

    def finish(self, step: int, parts: Mapping[str, Callable[[Path], None]]) -> None:
        """The finished student of `step`: folders by name, written by their functions, then swapped in.

        `state.json` comes first. So folders of which one is old and one new do not match it, and are found.
        """
        halves = {self.path / name: _hidden(self.path / name, HALF) for name in parts}
        with self.writing(f"cannot write the finished model to {self.path}"):
            files: dict[str, str] = {}
            for final, half in halves.items():
                remove(half)
                half.mkdir()
                parts[final.name](half)
                flush_tree(half)
                files |= digests_of(half, f"{final.name}/")
            seal(self.path, {"step": step}, files)
            for final, half in halves.items():
                if final.exists():
                    take_away(final, _hidden(final, REMOVED))
                half.rename(final)
            flush(self.path)

    def writing(self, what: str) -> AbstractContextManager[None]:
        """Around everything that is written. Raises `RunError` where the folder is not the one that is locked."""
        self._lock.check()
        return disk_errors(what, ELSEWHERE)

    # --- opening --------------------------------------------------------------------------------------

    def _refuse_to_remove(self) -> None:
        """Only a folder that looks like a run's is removed: by what it holds, or by holding nothing but our own."""
        names = {path.name for path in self.path.iterdir()}
        ours = {LOCK_FILE, CHECKPOINTS, f".{RECIPE_FILE}{HALF}"}
        if RECIPE_FILE not in names and not names <= ours and not numbered(self.checkpoints):
            raise RunError(f"{self.path} does not look like a run folder (no {RECIPE_FILE}); it was not removed.")

    def _start_over(self) -> None:
        """The folder goes under a hidden name, still locked, a new one takes its place, and then it is removed."""
        old, real = self._lock, self.path.resolve()
        hidden = real.with_name(f".{real.name}{REMOVED}-{secrets.token_hex(4)}")
        real.rename(hidden)
        self._lock = FolderLock(self.path)
        try:
            real.mkdir()
            self._lock.acquire()
            sweep(hidden)
        finally:
            old.release()

    def _sweep_removed(self) -> None:
        """What an earlier `fresh` did not get to remove."""
        real = self.path.resolve()
        with suppress(OSError):  # a parent that cannot be listed hides nothing that is read
            for path in real.parent.iterdir():
                if path.name.startswith(f".{real.name}{REMOVED}-"):
                    sweep(path)

    def _chosen(self, step: int | None) -> Checkpoint | None:
        """The newest checkpoint, or that of `step`. Raises `RunError` where it is not as it was written."""
        there = dict(numbered(self.checkpoints))
        if step is None and not there:
            return None
        if step is not None and step not in there:
            steps = ", ".join(map(str, there)) or "none at all"
            raise RunError(f"there is no checkpoint of step {step} in {self.checkpoints}; there are those of: {steps}.")
        folder = there[max(there) if step is None else step]
        try:
            state = check_checkpoint(folder)
        except DamagedError as error:
            raise RunError(f"{error}. {self._way_out()}") from None
        before = state.recipe
        if before is None and (before := read_recipe(self.path)) is None:
            raise RunError(
                f"{self.path} has checkpoints but no {RECIPE_FILE}, so the recipe they are of is not known. Restore "
                "it, or start over with --fresh."
            )
        self._metrics.check(state.step, state.metrics_bytes)
        return Checkpoint(folder, state.step, state.metrics_bytes, before)

    def _way_out(self) -> str:
        whole = newest_whole(self.checkpoints)
        if whole is None:
            return (
                f"No checkpoint in {self.checkpoints} is whole. Restore one from a backup, or start over with --fresh."
            )
        step = step_of(whole.name)
        return (
            f"The newest whole checkpoint is of step {step}. To go on from there, add this to the same command:  "
            f"--from-checkpoint {step}\n"
            f"What came after step {step} (checkpoints, metrics, rollouts, evaluations) is removed and made again."
        )

    def _remove_after(self, checkpoint: Checkpoint | None) -> None:
        """What is half there, and what came after the checkpoint: those steps are made again."""
        step = checkpoint.step if checkpoint else 0
        for later, folder in reversed(numbered(self.checkpoints)):
            if later > step:
                take_away(folder, _hidden(folder, REMOVED))
        self._metrics.cut(checkpoint.metrics_bytes if checkpoint else 0)
        for folder, suffix in ((self.checkpoints, ""), (self.rollouts, ".parquet"), (self.evaluations, ".jsonl")):
            for recorded, path in numbered(folder, suffix):
                if recorded > step:
                    remove(path)
            for path in hidden_of_steps(folder, suffix, (HALF, REMOVED)):
                remove(path)
        self._remove_journal_but_after(step)
        for name in FINISHED:
            for ending in (HALF, REMOVED):
                remove(_hidden(self.path / name, ending))
        self._remove_finished_after(step)

    def _remove_journal_but_after(self, step: int) -> None:
        """Steps that follow `step` without a gap are made again from it; others are of weights that are gone."""
        following = step + 1
        for journalled, path in numbered(self.journal, ".jsonl"):
            if journalled == following:
                following += 1
            else:
                remove(path)
        for path in hidden_of_steps(self.journal, ".jsonl", (HALF,)):
            remove(path)

    def _remove_finished_after(self, step: int) -> None:
        """A finished model of a later step than the run goes on from."""
        try:
            finished = read_state(self.path).step
        except DamagedError:
            return  # none, or one that is refused where it is read; the end of the run writes it anew
        if finished > step:
            for name in FINISHED:
                if (self.path / name).is_dir():
                    take_away(self.path / name, _hidden(self.path / name, REMOVED))
            remove(self.path / STATE_FILE)


def _hidden(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name}{ending}")
