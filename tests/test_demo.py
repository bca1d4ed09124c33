"""The demo as a user runs it, whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_teaches_addition(tmp_path: Path) -> None:
    """The last line of `limbeck demo --json`: at most half right before, nine in ten after."""
    done = subprocess.run(
        [Path(sys.executable).with_name("limbeck"), "demo", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["student_before"] <= 0.5
    assert result["student_after"] >= 0.9
    assert result["teacher"] >= 0.95
    assert result["reverse_kl_after"] < 0.1 * result["reverse_kl_before"]
    assert result["seconds"] > 0
