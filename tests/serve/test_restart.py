"""`limbeck serve` killed in the middle of a run and started again: the run waits, and ends with the same weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from tests import tiny


class Process:
    """A server of the tiny model at one port. `--batch-invariant`: what else is asked must not show in the last bit."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limbeck", "serve", tiny.folder_of("llama-tied"), "--batch-invariant", "--port",
             str(self.port)],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stderr is not None
        printed = []
        for line in self.process.stderr:
            printed.append(line)
            if address := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(address[1])
                return
        raise AssertionError("".join(printed))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class InTheMiddle:
    """Kills the server as the second step is scored, and starts it again meanwhile."""

    def __init__(self, server: Process) -> None:
        self.server = server
        self.restart = threading.Thread(target=server.start)

    def phase(self, step: int, name: str) -> None:
        if (step, name) == (2, "score"):
            self.server.kill()
            self.restart.start()

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, line: Any) -> None: ...

    def evaluated(self, line: Any) -> None: ...

    def closed(self) -> None: ...


def recipe(server: Process, folder: Path, name: str) -> Recipe:
    return parse_recipe(
        {
            "name": name, "output": str(folder), "steps": 3, "threads": 1,
            "student": {"model": tiny.folder_of("llama")},
            "teacher": {"kind": "limbeck", "url": f"http://127.0.0.1:{server.port}", "retry_seconds": 120.0},
            "task": {"kind": "arithmetic", "digits": 1, "train": 32, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 8, "prompts_per_step": 4},
            "objective": {"support": 5}, "learner": {"lr": 1e-3}, "eval": {"prompts": 2},
        }
    )  # fmt: skip


def weights(run: api.TrainResult) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "model" / "model.safetensors")


@pytest.mark.slow
def test_a_teacher_that_is_killed_and_restarted_changes_no_bit(tmp_path: Path) -> None:
    server = Process()
    try:
        calm = weights(api.train(recipe(server, tmp_path, "calm")))
        middle = InTheMiddle(server)
        run = api.train(recipe(server, tmp_path, "killed"), observers=[middle])
        assert middle.restart.ident is not None
        middle.restart.join()
    finally:
        server.kill()
    killed = weights(run)
    assert all(torch.equal(calm[name], killed[name]) for name in calm)
