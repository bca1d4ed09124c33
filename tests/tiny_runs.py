"""A run of seconds between two tiny models: the models, and recipes for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.helpers import save_tiny


def save_models(folder: Path) -> Path:
    """A student and a teacher that differ, in folders of these names."""
    save_tiny(folder / "student", 1)
    save_tiny(folder / "teacher", 2)
    return folder


def table_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe that records every step, over models that are saved in `folder`."""
    models = save_models(folder)
    return {
        "threads": 1,
        "student": {"model": str(models / "student")},
        "teacher": {"model": str(models / "teacher")},
        "task": {"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4},
        "rollout": {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4},
        "learner": {"lr": 1e-2},
        "record": {"every": 1, "watch": 1, "rollouts_per_step": 1},
        **changes,
    }


def write_recipe(path: Path, models: Path, steps: int) -> Path:
    """A recipe file over the models in `models`; its runs are beside it."""
    path.write_text(
        f"""
        steps = {steps}
        threads = 1
        output = "{path.parent}/runs"
        student.model = "{models}/student"
        teacher.model = "{models}/teacher"
        task = {{kind = "arithmetic", digits = 1, train = 20, held_out = 4}}
        rollout = {{temperature = 0.7, max_tokens = 4, prompts_per_step = 4}}
        eval = {{prompts = 4}}
        """
    )
    return path


def without_clock(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of metrics without what a clock or the machine says: the rest follows from the recipe."""
    return {
        key: value
        for key, value in line.items()
        if "second" not in key and key != "teacher_share" and not key.startswith(("system/", "mfu/"))
    }
