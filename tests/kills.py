"""Processes that kill themselves with SIGKILL exactly at the n-th event on the disk, and what a user does then.

An event is what changes a run's folder: a file opened for writing, a rename, a removal, a folder made or removed, a
truncation, a flush to the disk, half of a file's bytes. The process dies before it happens, or with half of it done.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import RunError
from tests.tiny_runs import table_of

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["limbeck.api", "transformers.models.llama.modeling_llama"])
AUDITED = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
WRITING = os.O_WRONLY | os.O_RDWR
STEPS = 3


def table(models: Path) -> dict[str, Any]:
    return table_of(
        models,
        steps=STEPS,
        eval={"every": 2, "prompts": 4},
        checkpoint={"every": 1, "keep_last": 2},
    )


class Events:
    """Counts the events below `folder`; at number `last` the process is no more."""

    def __init__(self, folder: Path, last: int) -> None:
        self.folder, self.last, self.count = str(folder), last, 0

    def install(self) -> None:
        import safetensors.torch

        fsync, write_bytes, serialize = os.fsync, Path.write_bytes, safetensors.torch.serialize_file

        def flushed(handle: int) -> None:
            self.happens()
            fsync(handle)

        def written(path: Path, data: bytes) -> int:
            if self.is_ours(path):
                self.happens(lambda: write_bytes(path, data[: len(data) // 2]))
            return write_bytes(path, data)

        def serialized(tensors: Any, path: Any, metadata: Any) -> None:
            def half() -> None:
                serialize(tensors, path, metadata)
                os.truncate(path, os.stat(path).st_size // 2)

            if self.is_ours(path):
                self.happens(half)
            serialize(tensors, path, metadata)

        os.fsync, Path.write_bytes = flushed, written  # type: ignore[assignment,method-assign]
        safetensors.torch.serialize_file = serialized
        sys.addaudithook(self.audit)

    def audit(self, event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = values
            if isinstance(flags, int) and flags & WRITING and self.is_ours(path):
                self.happens()
        elif event in AUDITED and (self.is_ours(values[0]) or not os.path.isabs(str(values[0]))):
            self.happens()  # a relative path is one of a folder that is being removed

    def is_ours(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def happens(self, half: Callable[[], object] | None = None) -> None:
        self.count += 1
        if self.count == self.last:
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)


def _child(recipe: Recipe, more: dict[str, Any], last: int, counted: Path | None) -> None:
    events = Events(Path(recipe.output), last)
    events.install()
    limbeck.train(recipe, **more)
    if counted is not None:
        Path.write_text(counted, str(events.count))


@dataclass(frozen=True)
class Scenario:
    """What is in the folder before, and how the run is started that is killed."""

    name: str
    seed_before: int | None = None
    damaged: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    def prepare(self, models: dict[str, Any], output: Path) -> None:
        if self.seed_before is not None:
            limbeck.train(parse_recipe({**models, "output": str(output), "seed": self.seed_before}))
        if self.damaged:
            path = output / "run" / "checkpoints" / f"step-{STEPS:06d}" / "learner.safetensors"
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(bytes(data))


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("from nothing"),
        Scenario("fresh", seed_before=9, more=(("fresh", True),)),
        Scenario("from a checkpoint", seed_before=0, damaged=True, more=(("from_checkpoint", STEPS - 1),)),
    )
}


class Bench:
    """One scenario, prepared once and killed again and again."""

    def __init__(self, scenario: Scenario, models: dict[str, Any], work: Path) -> None:
        self.scenario, self.models, self.work = scenario, models, work
        self.before = work / "before"
        scenario.prepare(models, self.before)
        self.before.mkdir(exist_ok=True)
        limbeck.train(parse_recipe({**models, "output": str(work / "straight")}))
        self.expected = weights(work / "straight")

    def count(self) -> int:
        """Events of a run that nothing disturbs."""
        counted = self.work / "counted"
        assert self.start(-1, counted) == 0
        return int(counted.read_text())

    def start(self, last: int, counted: Path | None = None) -> int | None:
        self.output = self.work / "disturbed"
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.before, self.output)
        recipe = parse_recipe({**self.models, "output": str(self.output)})
        child = context.Process(target=_child, args=(recipe, dict(self.scenario.more), last, counted))
        child.start()
        child.join(120)
        return child.exitcode

    def kill_and_go_on(self, last: int) -> None:
        """Killed at event `last`; then the plain command, and what its message says to do."""
        assert self.start(last) == -signal.SIGKILL
        recipe = parse_recipe({**self.models, "output": str(self.output)})
        try:
            limbeck.train(recipe)
        except RunError as error:  # the command that was killed had not got to it: the folder is as it was before
            text = str(error)
            if self.scenario.seed_before not in (None, 0):
                assert "another recipe: seed (9 then, 0 now)" in text
                limbeck.train(recipe, fresh=True)
            else:
                step = re.search(r"--from-checkpoint (\d+)", text)
                assert step, text
                limbeck.train(recipe, from_checkpoint=int(step[1]))
        assert weights(self.output) == self.expected, f"{self.scenario.name}, event {last}: other weights"
        left = [path.name for path in self.output.rglob(".*") if path.name != ".lock"]
        assert not left, f"{self.scenario.name}, event {last}: left over {left}"


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()
