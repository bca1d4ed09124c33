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

from tests import tiny
from tests.fake_server import FakeServer, in_thread
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
    assert "THERE\n" in child.stdout  # reads up to it
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


def limbeck(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "limbeck", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "eval", "train"])
@pytest.mark.parametrize("seconds", [0.7, 1.2, 2.0, 3.0])
def test_a_signal_while_parts_are_imported_and_loaded_is_one_line(
    recipe: Path, tmp_path: Path, command: str, seconds: float
) -> None:
    number = signal.SIGINT if command != "eval" else signal.SIGTERM
    child = limbeck(command, str(of(recipe, tmp_path / "out")), "task.held_out=20000", "eval.prompts=20000")
    time.sleep(seconds)
    child.send_signal(number)
    out, _ = child.communicate(timeout=10)
    assert child.returncode == 128 + number, out
    last = out.splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(number).name}")
    assert "Traceback" not in out
    assert len([line for line in out.splitlines() if "stopped by" in line]) == 1


REMOTE = """
steps = 60
threads = 1
output = "{output}"
[student]
model = "{student}"
[teacher]
kind = "sglang"
url = "{url}"
vocabulary = {vocabulary}
top_logprobs = 90
retry_seconds = 600
[task]
kind = "arithmetic"
digits = 1
train = 32
held_out = 4
[rollout]
temperature = 0.7
max_tokens = 8
prompts_per_step = 4
[objective]
support = 5
[eval]
prompts = 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["loading", "training"])
def test_a_run_that_waits_for_a_teacher_that_is_away(tmp_path: Path, phase: str) -> None:
    path, folder = tmp_path / "recipe.toml", tmp_path / "run"
    away = 1.0 if phase == "loading" else 0.0
    with in_thread(FakeServer(vocabulary=tiny.VOCABULARY, drop=away)) as server:
        student = tiny.folder_of("llama")
        path.write_text(REMOTE.format(output=tmp_path, student=student, url=server.url, vocabulary=server.vocabulary))
        child = limbeck("train", str(path), "--json")
        assert child.stdout is not None
        if phase == "training":
            assert any('"step": 2' in line for line in child.stdout)  # reads up to it
            server.drop = 1.0
        before = server.requests
        deadline = time.monotonic() + 60
        while server.requests < before + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=10)
        assert child.returncode == 143, out
        if phase == "loading":
            assert "no update was made" in out
            return
        made = len(trained(folder))
        assert f"after step {made}" in out
        assert (folder / "checkpoints" / f"step-{made:06d}").is_dir()
        server.drop = 0.0
        child = limbeck("train", str(folder / "recipe.toml"), "--quiet")
        assert child.communicate(timeout=60)[0] == ""
        assert trained(folder) == list(range(1, 61))


def trained(folder: Path) -> list[int]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "train"]


@pytest.mark.slow
def test_the_second_signal_waits_for_nothing(recipe: Path, tmp_path: Path) -> None:
    child = start(of(recipe, tmp_path / "out"), "update", 3)
    assert child.stdout is not None
    assert "THERE\n" in child.stdout
    child.send_signal(signal.SIGINT)
    time.sleep(0.2)
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=2)
    assert child.returncode == -signal.SIGINT
