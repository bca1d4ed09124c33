"""Real SIGINT and SIGTERM to real runs, in every phase: within ten seconds, at a checkpoint of the last update, with
the exit code of the signal; what goes on from there ends with the weights of a run that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import save_tiny

STEPS = 6
PHASES = ("sample", "grade", "score", "record", "update", "publish", "save", "evaluate")

# A child that reports its phases on stderr, and that sleeps in the phase it is told, as a slow one would.
CHILD = """
import json, sys, time
import limbeck
from limbeck.training.interruption import Interrupted
from limbeck.training.run import Run
from contextlib import contextmanager

slow, step = sys.argv[2], int(sys.argv[3])
inner = Run.phase

@contextmanager
def phase(self, name):
    with inner(self, name):
        if name == slow and self.step == step and not self.stop.number:
            print("THERE", flush=True)
            time.sleep(2.0)
        yield

Run.phase = phase
try:
    limbeck.train(sys.argv[1])
except Interrupted as stopped:
    print(json.dumps({"step": stopped.step, "message": str(stopped)}), flush=True)
    sys.exit(stopped.exit_code)
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    save_tiny(folder / "student", 1)
    save_tiny(folder / "teacher", 2)
    path = folder / "recipe.toml"
    path.write_text(
        f"""
steps = {STEPS}
threads = 1
output = "OUTPUT"
[student]
model = "{folder / "student"}"
[teacher]
model = "{folder / "teacher"}"
[task]
kind = "arithmetic"
digits = 2
train = 40
held_out = 8
[rollout]
temperature = 0.7
max_tokens = 6
prompts_per_step = 8
[learner]
lr = 1e-2
[eval]
every = 2
prompts = 8
[checkpoint]
every = 4
[record]
every = 1
"""
    )
    return path


def of(recipe: Path, output: Path) -> Path:
    path = output / "recipe.toml"
    output.mkdir(exist_ok=True)
    path.write_text(recipe.read_text().replace("OUTPUT", str(output)))
    return path


def start(recipe: Path, phase: str, step: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(recipe), phase, str(step)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def finish(recipe: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, str(recipe), "", "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()


def lines(output: Path) -> list[tuple[str, int]]:
    text = (output / "run" / "metrics.jsonl").read_text()
    return [(line["kind"], line["step"]) for line in map(json.loads, text.splitlines())]


@pytest.fixture(scope="module")
def straight(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    finish(of(recipe, output))
    return output


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_in_any_phase_keeps_the_last_update(recipe: Path, straight: Path, tmp_path: Path, phase: str) -> None:
    number = signal.SIGINT if PHASES.index(phase) % 2 else signal.SIGTERM
    step = 4 if phase in ("save", "evaluate") else 3
    mine = of(recipe, tmp_path / "out")
    child = start(mine, phase, step)
    assert child.stdout is not None
    for line in child.stdout:
        if line == "THERE\n":
            break
    sent = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert time.monotonic() - sent < 10
    assert child.returncode == 128 + number, err
    made = step if phase in ("update", "publish", "save", "evaluate") else step - 1
    assert json.loads(out.splitlines()[-1])["step"] == made
    assert (tmp_path / "out" / "run" / "checkpoints" / f"step-{made:06d}" / "state.json").exists()
    finish(mine)
    assert weights(tmp_path / "out") == weights(straight)
    assert lines(tmp_path / "out") == lines(straight)
