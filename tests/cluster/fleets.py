"""Runs of seconds, in one process and in fleets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import limbeck
from limbeck.config.recipe import parse_recipe
from tests.tiny_runs import table_of


def table(folder: Path, **changes: Any) -> dict[str, Any]:
    """Three steps of several units each."""
    return table_of(
        folder,
        **{
            "steps": 3,
            "rollout": {"temperature": 0.7, "max_tokens": 6, "prompts_per_step": 4, "samples_per_prompt": 2},
            "engine": {"max_rows": 2},
            "eval": {"every": 2, "prompts": 4},
            "checkpoint": {"every": 1},
            "record": {"every": 1, "watch": 1, "rollouts_per_step": 1},
            **changes,
        },
    )


def train(recipe: dict[str, Any], output: Path, **changes: Any) -> limbeck.TrainResult:
    return limbeck.train(parse_recipe({**recipe, "output": str(output), **changes}))


def weights(output: Path, name: str = "run") -> bytes:
    """Of a finished student."""
    return (output / name / "model" / "model.safetensors").read_bytes()
