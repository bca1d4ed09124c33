"""The parts of `make retokenized`, with a few steps in place of some hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_make_the_student_and_teach_it(tmp_path: Path) -> None:
    limbeck = Path(sys.executable).with_name("limbeck")
    recipe = ROOT / "recipes/retokenized.toml"
    for command in (
        [sys.executable, ROOT / "scripts/make_other_tokenizer.py", "--steps", "20"],
        [limbeck, "train", recipe, "steps=2", "eval.prompts=8", "rollout.prompts_per_step=8"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in (tmp_path / "runs/retokenized/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["reverse_kl/byte"] > 0
        assert line["kind"] == "eval" or line["view/bytes_aligned"] > 0.8
