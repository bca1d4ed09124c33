"""A stdout that takes nothing ends no command: a closed pipe, a full disk, a handle that was closed before."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import save_models, write_recipe

LIMBECK = [sys.executable, "-m", "limbeck"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def recipe(models: Path, tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe.toml", models, steps=3)


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """What a user types; `limbeck` is this one, and the exit status is that of the first command of a pipe."""
    line = line.replace("limbeck ", f"{sys.executable} -m limbeck ") + '\necho "STATUS ${PIPESTATUS[0]}" >&2'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)


def status(done: subprocess.CompletedProcess[str]) -> int:
    return int(done.stderr.rpartition("STATUS ")[2])


ENDS = {"a closed pipe": "| true", "a full disk": "> /dev/full", "closed": ">&-"}


@pytest.mark.parametrize(
    ("end", "option"),
    [
        pytest.param("a closed pipe", "", marks=pytest.mark.slow),
        ("a full disk", "--json"),
        pytest.param("closed", "", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_to_its_end(recipe: Path, tmp_path: Path, end: str, option: str) -> None:
    done = shell(f"limbeck train {recipe} {option} {ENDS[end]}")
    assert done.stderr.strip() == "STATUS 0"
    assert (tmp_path / "runs" / "run" / "model" / "model.safetensors").exists()
    assert len((tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()) == 5


@pytest.mark.slow
def test_stderr_that_takes_nothing(recipe: Path, tmp_path: Path) -> None:
    for end in ("2>/dev/full", "2>&-"):
        assert shell(f"limbeck train {recipe} {end}").stdout.count("finished") == 1
        assert status(shell(f"(limbeck train absent.toml {end}); (exit $?)")) == 1


@pytest.mark.parametrize(
    ("command", "end", "code"),
    [("eval RECIPE", "a closed pipe", 141), ("check RECIPE --json", "a full disk", 1), ("version", "closed", 1)],
)  # fmt: skip
def test_what_is_printed_is_the_result(recipe: Path, command: str, end: str, code: int) -> None:
    done = shell(f"limbeck {command.replace('RECIPE', str(recipe))} {ENDS[end]}")
    assert status(done) == code
    lines = done.stderr.splitlines()[:-1]
    assert lines == ([] if code == 141 else [lines[0]])
    assert code == 141 or lines[0].startswith("error: the result could not be printed: ")


def test_help_into_a_closed_pipe() -> None:
    assert shell("limbeck --help | true").stderr.strip() == "STATUS 0"


@pytest.mark.slow
def test_a_terminal_that_goes_away(recipe: Path, tmp_path: Path) -> None:
    """Without a signal, as in a session that was detached: the live panel ends no run."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen([*LIMBECK, "train", str(recipe)], stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(theirs)
    os.read(ours, 10)
    os.close(ours)
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (0, b"")
    assert (tmp_path / "runs" / "run" / "model").is_dir()


def test_a_pipe_that_is_full_for_a_while_loses_nothing() -> None:
    code = (
        "import os, sys\nfrom limbeck.cli.streams import lasting_streams\n"
        "os.set_blocking(1, False)\nwith lasting_streams():\n    print('x' * 1_000_000)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, errors = child.communicate(timeout=60)
    assert (len(out), errors, child.returncode) == (1_000_001, b"", 0)
