"""The finished run, and copies of it to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import finished_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder. Not to be changed: see `copied`."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base  # xdist gives each worker a folder in one
    return finished_run.shared(root / "finished")


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy without the models, as somebody would send it."""
    return Path(
        shutil.copytree(run, tmp_path / "copies" / "tiny", ignore=shutil.ignore_patterns("checkpoints", "model"))
    )
