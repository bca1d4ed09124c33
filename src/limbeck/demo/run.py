"""The demo: the main job by the shipped recipe `demo`, with a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from limbeck.config.recipe import load_recipe
from limbeck.config.shipped import shipped_recipe

SECONDS_A_STEP = 0.6  # on two CPU cores, evaluations and all; without numba


def run_demo(overrides: Sequence[str], as_json: bool) -> None:
    """Train by the recipe and show student before, student after and teacher."""
    from rich.console import Console

    recipe = load_recipe(shipped_recipe("demo").path, overrides)
    console, minutes = Console(stderr=as_json, highlight=False), max(1, round(recipe.steps * SECONDS_A_STEP / 60))
    console.print(
        "A student of 0.8M parameters learns three-digit addition from its own attempts. A teacher of 3.2M scores "
        f"every token of them, at the same temperature {recipe.rollout.temperature:g}.\n"
        f"{recipe.steps} updates take about {minutes} min on two CPU cores. Everything is written to "
        f"{recipe.output}/{recipe.name}. Ctrl-C stops, and keeps what was learned."
    )
    from limbeck import api  # imports torch, for seconds: after it was said what is going on
    from limbeck.trackers.console import make_console
    from limbeck.trackers.ending import show_ending

    start = time.perf_counter()
    display = make_console(recipe, quiet=as_json)
    result = api.train(recipe, fresh=True, observers=[display] if display else [])
    teacher = api.evaluate(recipe, of="teacher").values()
    seconds = time.perf_counter() - start
    show_ending(console, result.folder, [*result.steps, *result.evaluations], seconds, teacher)
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
