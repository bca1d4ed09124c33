"""The parts of `make smollm2` and `make context-distillation`, with a step or two in place of all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_prompts_are_distinct_and_have_an_origin() -> None:
    rows = [json.loads(line) for line in (ROOT / "recipes/smollm2_prompts.jsonl").read_text().splitlines()]
    assert len(rows) >= 300
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert "Apache-2.0" in (ROOT / "recipes/smollm2_prompts.md").read_text()


@pytest.mark.slow
def test_prepare_heal_and_compare(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    limbeck = Path(sys.executable).with_name("limbeck")
    for command in (
        [sys.executable, ROOT / "scripts/smollm2/prepare.py"],
        [limbeck, "train", "recipes/smollm2.toml", "steps=2", "eval.prompts=8", "rollout.max_tokens=24"],
        [limbeck, "train", "recipes/context-distillation.toml", "steps=1", "eval.prompts=4", "rollout.max_tokens=8"],
        [sys.executable, ROOT / "scripts/smollm2/compare.py", "--healed", "runs/smollm2/model", "--max-tokens", "8"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    healed = AutoModelForCausalLM.from_pretrained(tmp_path / "runs/smollm2/model")
    assert healed.config.num_hidden_layers == 24
    lines = [json.loads(line) for line in (tmp_path / "runs/smollm2/metrics.jsonl").read_text().splitlines()]
    before, after = (line["reverse_kl/exact"] for line in lines if line["kind"] == "eval")
    assert after < before
