"""The parent's end: worker processes, and models and prompts for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steps.cases import Case, Work

HERE = Path(__file__).parents[1]
SRC = HERE.parent / "src"


class Worker:
    """One side, in a process of its own: a module that is found in one of `paths`."""

    def __init__(self, python: Path | str, module: str, *args: str, paths: Sequence[Path]) -> None:
        self.name = module
        # OpenMP as it comes: a side that waits has its threads asleep a millisecond later.
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        self.process = subprocess.Popen(
            [str(python), "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.ready = self._hear()

    def ask(self, do: str, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **what}) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}; its messages are above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def prepare(case: Case, steps: int, threads: int, cache: str, models: str, folder: Path) -> tuple[Work, Path]:
    """Models, and prompts of `steps` steps; also written to a file in `folder` for the workers."""
    command = [sys.executable, "-m", "steps.models", cache, models, json.dumps(asdict(case)), str(steps)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(SRC)])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    work = Work(case, **json.loads(done.stdout.splitlines()[-1]), threads=threads)
    return work, work.write(folder / f"{case.name}.json")


def tell(message: str) -> None:
    """To people."""
    print(message, file=sys.stderr, flush=True)
