"""What other packages warn of is counted, and Limbeck's own words and errors are shown."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from limbeck.cli.foreign import VERBOSITY, foreign_warnings_aside
from limbeck.cli.main import _Commands
from tests.tiny_runs import save_models, write_recipe


@pytest.fixture(autouse=True)
def as_started_without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])  # pytest has its own
    for name in VERBOSITY:
        monkeypatch.delenv(name, raising=False)


def noise() -> None:
    logging.getLogger("limbeck.training").warning("ours: %d", 1)
    logging.getLogger("somebody.else").warning("theirs")
    logging.getLogger("somebody.else").error("an error of theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn("deprecated", FutureWarning, stacklevel=1)


def test_only_warnings_of_others_are_kept_back(capsys: pytest.CaptureFixture[str]) -> None:
    with foreign_warnings_aside() as texts:
        noise()
    assert capsys.readouterr().err == "ours: 1\nan error of theirs\n"
    assert len(texts) == 2, "each once"
    assert {name: os.environ[name] for name in VERBOSITY} == dict.fromkeys(VERBOSITY, "error")


def test_whoever_asks_python_for_warnings_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["default"])
    with foreign_warnings_aside() as texts, pytest.warns(FutureWarning, match="deprecated"):
        noise()
    assert not texts
    assert not set(VERBOSITY) & os.environ.keys()


def test_how_many_there_were_is_said_at_the_end() -> None:
    group = _Commands(commands={"noise": click.Command("noise", callback=noise)})
    result = CliRunner().invoke(group, ["noise"])
    assert result.stderr.splitlines() == [
        "ours: 1",
        "an error of theirs",
        "2 warnings of other packages not shown: PYTHONWARNINGS=default shows them",
    ]
    quiet = CliRunner().invoke(_Commands(commands={"ok": click.Command("ok", callback=lambda: None)}), ["ok"])
    assert quiet.stderr == ""


@pytest.mark.slow
def test_a_real_run_with_an_adapter_prints_nothing_of_others(tmp_path: Path) -> None:
    """peft and transformers warn of each other."""
    recipe = write_recipe(tmp_path / "recipe.toml", save_models(tmp_path), steps=1)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", "train", recipe, "learner.lora.rank=2"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert all("not shown: PYTHONWARNINGS" in line for line in done.stderr.splitlines()), done.stderr
    assert "Warning" not in done.stdout
