"""Which tokens the loss is taken over: docs/studies/supports.md.

    python studies/supports.py [--seeds 0 1 2 3 4] [--jobs 2] [--quick]

The sampled token alone, the teacher's or the student's most likely ones with the sampled one beside them, or the whole
vocabulary: all have the same expected gradient. `variance` measures the noise of each around it, by the code of
benchmarks/variance.py; the others train, and seconds are processor seconds of their training steps.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Interval, Results, Row, Study, TrainingClock, draw_curves, interval, main, picture, table
from pair import PAIR, QUICK_PAIR, make_pair, recipe

import limbeck
from limbeck.config.recipe import parse_recipe

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import variance

SUPPORTS: dict[str, dict[str, Any]] = {
    "sampled": {"support": "sampled"},
    "teacher-1": {"support": 1},
    "student-1": {"support": "student_top", "k": 1},
    "teacher-4": {"support": 4},
    "student-4": {"support": "student_top", "k": 4},
    "full": {"support": "full"},
}
LABELS = {"sampled": "sampled token", "teacher-1": "teacher's top 1", "student-1": "student's top 1",
          "teacher-4": "teacher's top 4", "student-4": "student's top 4",
          "full": "whole vocabulary"}  # fmt: skip
VARIANCE = "variance"
SETTING = {
    "steps": 100, "prompts_per_step": 32, "lr": 1e-3, "warmup_steps": 10, "evaluate_every": 10, "eval_prompts": 512,
    "temperature": 1.0, "pair": PAIR, "batches": 32, "batch_prompts": 32, "top": [1, 4],
}  # fmt: skip
QUICK = {
    "steps": 2, "prompts_per_step": 4, "evaluate_every": 1, "eval_prompts": 8, "pair": QUICK_PAIR, "batches": 2,
    "batch_prompts": 2,
}  # fmt: skip
KEYS = {"accuracy": "accuracy", "reverse_kl/exact": "KL to the teacher"}


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    tables = recipe(setting, seed, scratch, setting["temperature"])
    if condition == VARIANCE:
        args = argparse.Namespace(
            batches=setting["batches"], prompts=setting["batch_prompts"], seed=seed, coordinates=50_000,
            supports=setting["top"],
        )  # fmt: skip
        lines = asyncio.run(variance.measure(parse_recipe(tables), args))
        measured = ("noise", "total", "support")
        return [{"step": 0, **{f"{line['estimator']}/{key}": line[key] for line in lines for key in measured}}]
    clock = TrainingClock()
    tables["objective"] = SUPPORTS[condition]
    limbeck.train(tables, observers=[clock], display=False)
    return clock.rows


def report(results: Results) -> str:
    return "\n\n".join([*variances(results), *qualities(results)])


def variances(results: Results) -> list[str]:
    """Of each estimator, relative to the sampled token's: median over seeds, smallest and largest.

    Gradients have a heavy tail: a single batch of one seed can have more variance than all others, so no intervals.
    """
    if VARIANCE not in results.conditions:
        return []
    first = results.runs[VARIANCE, results.seeds(VARIANCE)[0]][0]
    names = [key.removesuffix("/noise") for key in first if key.endswith("/noise") and not key.startswith("rescale")]
    rows = []
    for name in sorted(names, key=list(SUPPORTS).index):
        keys = ("noise", "total", "support") if "-" in name else ("noise", "total")
        found = [sorted(results.values(VARIANCE, f"{name}/{key}").values()) for key in keys]
        cells = [f"{statistics.median(one):.3f} ({one[0]:.3f} to {one[-1]:.3f})" for one in found]
        rows.append([LABELS[name], *cells, *([""] if "-" not in name else [])])
    return [table(["estimator", "noise", "variance", "student's mass on the support"], rows)]


def qualities(results: Results) -> list[str]:
    """At equal updates, and at the seconds that every run has come to."""
    mine = [one for one in SUPPORTS if one in results.conditions]
    seconds = min(results.extent(one, "seconds")[1] for one in mine)
    parts = []
    for title, at in {
        "after all updates": lambda one, key: results.at(one, key),
        f"after {seconds:.1f} s": lambda one, key: results.along(one, key, "seconds", seconds),
    }.items():
        rows = [[LABELS[one], *(at(one, key) for key in (*KEYS, "seconds"))] for one in mine]
        parts.append(table([title, *KEYS.values(), "processor seconds"], rows))
    others = [one for one in mine if one != "full"] if "full" in mine else []
    gaps = [[LABELS[one], *(results.difference(one, "full", key) for key in (*KEYS, "seconds"))] for one in others]
    parts.append(table(["minus whole vocabulary, at equal seeds", *KEYS.values(), "processor seconds"], gaps))
    gaps = [[LABELS[one], *(gap_at(results, one, key, seconds) for key in KEYS)] for one in others]
    parts.append(table([f"minus whole vocabulary, at equal seeds, after {seconds:.1f} s", *KEYS.values()], gaps))
    return parts


def gap_at(results: Results, condition: str, key: str, seconds: float) -> Interval:
    """To the whole vocabulary at equal seeds and seconds."""
    one, full = (results.values_along(name, key, "seconds", seconds) for name in (condition, "full"))
    return interval([one[seed] - full[seed] for seed in one if seed in full])


def draw(results: Results, path: Path) -> None:
    labels = {"accuracy": "accuracy", "reverse_kl/exact": "KL to the teacher (nats / token)"}
    with picture(path, len(labels)) as axes:
        for one, (key, label) in zip(axes[0], labels.items(), strict=True):
            draw_curves(one, results, LABELS, key, x="seconds")
            one.set(ylabel=label, xlabel="processor seconds of training")
        axes[0, 0].set_ylim(0, 0.7)
        axes[0, 1].set_yscale("log")
        axes[0, 1].set_ylim(3e-3, 1)
        axes[0, 1].legend(loc="lower left")


STUDY = Study("supports", SETTING, QUICK, [*SUPPORTS, VARIANCE], run, report, draw, make_pair)

if __name__ == "__main__":
    sys.exit(main(STUDY))
