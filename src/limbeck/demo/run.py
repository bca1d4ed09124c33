"""The demo: the main job by the shipped recipe `demo`, with a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from limbeck.config.recipe import Recipe, load_recipe
from limbeck.config.shipped import shipped_recipe
from limbeck.formatting import counted

SECONDS_A_STEP, SECONDS_BESIDES = 0.6, 20  # on two CPU cores, without numba; besides: loading and three evaluations


def run_demo(overrides: Sequence[str], as_json: bool, fresh: bool = False) -> None:
    """Train by the recipe and show student before, student after and teacher.

    A demo that was stopped goes on; a finished one is made again. `fresh` removes what is there first. Raises
    `LimbeckError`, also where the folder holds a run of another recipe.
    """
    from rich.console import Console

    recipe = load_recipe(shipped_recipe("demo").path, overrides)
    console = Console(stderr=as_json, highlight=False)
    console.print(
        "A student of 0.8M parameters learns three-digit addition from its own attempts. A teacher of 3.2M scores "
        f"every token of them, at the same temperature {recipe.rollout.temperature:g}.\n"
        f"{counted(recipe.steps, 'update')} take{'s' * (recipe.steps == 1)} about {_time_of(recipe.steps)} on two CPU "
        f"cores. Everything is written to {recipe.output}/{recipe.name}. Ctrl-C stops, and keeps what was learned: the "
        "same command goes on from there."
    )
    from limbeck import api  # imports torch, for seconds: after it was said what is going on
    from limbeck.trackers.console import make_console
    from limbeck.trackers.ending import show_ending

    start = time.perf_counter()
    display = make_console(recipe, quiet=as_json)
    if not fresh and _is_finished(recipe):
        again = f"{recipe.output}/{recipe.name} holds this demo, finished: it is removed and made again."
        console.print(again, soft_wrap=True, markup=False)
        fresh = True
    result = api.train(recipe, fresh=fresh, observers=[display] if display else [])
    teacher = api.evaluate(recipe, of="teacher").values()
    seconds = time.perf_counter() - start
    show_ending(console, result.folder, [*result.steps, *result.evaluations], seconds, teacher, result.start)
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


def _time_of(steps: int) -> str:
    seconds = SECONDS_BESIDES + steps * SECONDS_A_STEP
    return f"{seconds:.0f} s" if seconds < 60 else f"{counted(round(seconds / 60), 'minute')}"


def _is_finished(recipe: Recipe) -> bool:
    """Whether the recipe's folder holds the finished run of just this recipe, which can be made again."""
    from limbeck.assemble.run import run_path
    from limbeck.files.digests import DamagedError, read_state
    from limbeck.training.resume import differences, read_recipe

    folder = run_path(recipe)
    try:
        done, before = read_state(folder).step, read_recipe(folder)
    except DamagedError:  # none: a run that was stopped, or no run
        return False
    now = recipe.model_dump(mode="json", exclude_none=True)
    return done == recipe.steps and before is not None and not differences(before, now)
