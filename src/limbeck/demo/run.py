"""The demo: the main job on embedded defaults, with a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import api
from limbeck.config.recipe import load_recipe
from limbeck.formatting import duration, interval, number
from limbeck.trackers.console import make_console

RECIPE = Path(__file__).with_name("demo.toml")


def run_demo(overrides: Sequence[str], as_json: bool) -> None:
    """Train by the embedded recipe and show student before, student after and teacher."""
    from rich.console import Console
    from rich.text import Text

    recipe = load_recipe(RECIPE, overrides)
    console = Console(stderr=as_json)
    console.print(
        "A student of 0.8M parameters learns three-digit addition from its own attempts. A teacher of 3.2M scores "
        f"every token of them, at the same temperature {recipe.rollout.temperature:g}."
    )
    start = time.perf_counter()
    display = make_console(recipe.name, quiet=as_json)
    result = api.train(recipe, fresh=True, observers=[display] if display else [])
    teacher = api.evaluate(recipe, of="teacher").values()
    seconds = time.perf_counter() - start
    console.print(summary(result, teacher, seconds))
    for line in next_commands(result.folder):
        console.print(Text(line), soft_wrap=True)
    if as_json:
        numbers = {
            "student_before": result.before["accuracy"],
            "student_after": result.after["accuracy"],
            "teacher": teacher["accuracy"],
            "reverse_kl_before": result.before["reverse_kl/exact"],
            "reverse_kl_after": result.after["reverse_kl/exact"],
            "seconds": round(seconds, 1),
        }
        print(json.dumps(numbers, allow_nan=False))


def summary(result: api.TrainResult, teacher: Mapping[str, Any], seconds: float) -> Any:
    """The table at the end."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "accuracy", "95% interval", "reverse KL (nats/token)", title="held-out problems")
    for name, line in (
        ("student before", result.before),
        ("student after", result.after),
        ("teacher", teacher),
    ):
        kl = "" if name == "teacher" else number(line["reverse_kl/exact"])
        range_ = interval(line.get("accuracy/low"), line.get("accuracy/high"))
        table.add_row(name, number(float(line["accuracy"]), 3), Text(range_), kl)
    speed = sum(s["tokens/sampled"] for s in result.steps) / sum(s["seconds/step"] for s in result.steps)
    table.caption = f"{len(result.steps)} steps, {number(speed, 0)} tokens/s in training, {duration(seconds)} in all"
    return table


def next_commands(folder: Path) -> list[str]:
    """What to try next."""
    return [
        "",
        f"The student is in {folder / 'model'}, an ordinary Hugging Face folder. To go on:",
        f"  limbeck view {folder}                     # curves, tokens, where the two models still disagree",
        f"  limbeck eval {folder / 'recipe.toml'} --model {folder / 'model'} --answers 3",
        f"  limbeck train {folder / 'recipe.toml'} steps=600             # more steps, from the last checkpoint",
        f"  limbeck train {folder / 'recipe.toml'} name=hot rollout.temperature=1.3   # another temperature",
    ]
