"""Step n is sampled with the weights of update max(0, n - 1 - lag): a rule, whatever stops the run in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from tests.tiny_runs import table_of

STEPS = 6


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return table_of(
        tmp_path_factory.mktemp("models"),
        steps=STEPS,
        eval={"every": 2, "prompts": 4},
        checkpoint={"every": 4, "keep_last": 2},
    )


def recipe(table: dict[str, Any], output: Path, lag: int, **changes: Any) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes}, [f"rollout.lag={lag}"])


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()


def test_a_run(table, tmp_path):
    limbeck.train(recipe(table, tmp_path, 2))
    print((tmp_path / "run/metrics.jsonl").read_text())
    import subprocess

    print(subprocess.run(["find", str(tmp_path / "run")], capture_output=True, text=True).stdout)
    limbeck.train(recipe(table, tmp_path / "b", 2, steps=4))
    limbeck.train(recipe(table, tmp_path / "b", 2))
    assert weights(tmp_path) == weights(tmp_path / "b")
    limbeck.train(recipe(table, tmp_path / "c", 0))
    assert weights(tmp_path) != weights(tmp_path / "c")
