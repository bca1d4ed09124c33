"""SIGTERM, as Slurm sends it: Ray has a handler of its own, which ends the process at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny_runs import save_models, write_recipe

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]


def test_sigterm_ends_the_update_and_writes_a_checkpoint(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.toml", save_models(tmp_path / "models"), steps=500)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    command = [sys.executable, "-m", "limbeck", "train", str(recipe), "checkpoint.every=0", "cluster.samplers=2"]
    run = subprocess.Popen(
        command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics = tmp_path / "runs" / "run" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.read_text().count('"kind": "train"') >= 2):
        time.sleep(0.1)
    assert run.poll() is None, run.communicate()[0]
    workers = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 128 + signal.SIGTERM, output
    assert "stopped by SIGTERM" in output
    assert "Traceback" not in output
    made = [line["step"] for line in map(json.loads, metrics.read_text().splitlines()) if line["kind"] == "train"][-1]
    assert [path.name for path in (tmp_path / "runs" / "run" / "checkpoints").iterdir()] == [f"step-{made:06d}"]
    assert psutil.wait_procs(workers, timeout=60)[1] == []
