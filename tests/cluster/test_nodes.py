from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.fleets import weights
from tests.tiny_runs import save_models, write_recipe

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


def test_a_node_that_is_lost_and_comes_back_changes_no_bit(tmp_path: Path) -> None:
    """By the command line, in a cluster that was there before, which asks for a token."""
    recipe = write_recipe(tmp_path / "recipe.toml", save_models(tmp_path / "models"), steps=40)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    common = ["checkpoint.every=1", "engine.max_rows=1"]
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    overrides = [*common, "cluster.samplers=2"]
    host = subprocess.run(
        [sys.executable, "-m", "tests.cluster.nodes", str(recipe), str(metrics), *overrides],
        env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=400,
    )  # fmt: skip
    assert host.returncode == 0, host.stderr[-2000:]
    output, _, last = host.stdout.strip().rpartition("\n")
    found = json.loads(last)
    assert found["rc"] == 0, output
    assert 2 <= found["step"] < 40, "the node was lost in the middle"
    assert re.search(r"\w+ \d was lost (in|before) \w+", output), output
    assert "Traceback" not in output
    assert (found["wrong"], found["refusal"].count("token"), "Traceback" in found["refusal"]) == (1, 1, False) or (
        found["wrong"] == 1 and "RAY_AUTH_TOKEN_PATH" in found["refusal"]
    ), found
    alone = subprocess.run(
        [sys.executable, "-m", "limbeck", "train", str(recipe), *common, "name=alone", "--quiet"],
        env=environment, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert weights(tmp_path / "runs") == weights(tmp_path / "runs", "alone")
