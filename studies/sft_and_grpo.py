"""Distillation against SFT on the teacher's samples and against TRL's GRPO. See docs/studies/sft-and-grpo.md.

    python studies/sft_and_grpo.py        options: see common.py

Five students that begin as the same one, each trained in a process of its own; they take turns by their clocks. All are
judged by the same judge, at equal updates and at equal seconds. Two controls have neither teacher nor grader: a fixed
negative advantage on sampled tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Interval, Results, Row, Study, interval, main, picture, table

from sides.judge import Judge, by_side, draw_curves, judged
from sides.methods import Work, start
from sides.turns import at_equal_seconds

TOGETHER = "together"  # all methods are one run: they take turns
METHODS = {
    "distillation": "distillation",
    "sft": "SFT on the teacher's samples",
    "grpo": "GRPO (TRL)",
    "fixed_low": "fixed advantage, p < 0.5",
    "fixed_all": "fixed advantage, all tokens",
}
CLOCK = {"updates": 0, "seconds": 1, "cpu": 1}  # and digits to show
SETTING = {
    "temperature": 1.0, "rows": 32, "max_tokens": 40, "warmup": 10, "held_out": 256, "generations": 8,
    "evaluated_at": [10, 20],
    "lr": {"distillation": 2e-4, "sft": 2e-4, "grpo": 3e-5, "fixed_low": 3e-5, "fixed_all": 1e-5},
    "without_trl": False,
}  # fmt: skip
QUICK = {"evaluated_at": [1, 2], "rows": 8, "held_out": 8, "without_trl": True}


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    """Rows of all methods: at equal seconds, by the updates of distillation, and at equal updates."""
    work = Work(setting, seed, setting["evaluated_at"], scratch)
    with ExitStack() as stack:
        first, *others = sides = [stack.enter_context(start(name, work)) for name in METHODS]
        equal_seconds = {first.name: first.snapshots, **at_equal_seconds(first, others)}
        judge = stack.enter_context(Judge(work.recipe(lr=1e-3)))
        rows = judged(judge, {side.name: side.snapshots for side in sides}, at="updates")
        return rows + judged(judge, equal_seconds, at="seconds")


def report(results: Results) -> str:
    parts = []
    for at in ("updates", "seconds"):
        split = by_side(results, at)
        rows = [
            [
                label,
                *(f"{split.at(name, key).mean:.{digits}f}" for key, digits in CLOCK.items()),
                split.at(name, "accuracy"),
                gain(split, name),
                "" if name == "distillation" else split.difference("distillation", name, "accuracy"),
                split.at(name, "reverse_kl"),
            ]
            for name, label in METHODS.items()
        ]
        before = [split.at("distillation", key, 0) for key in ("accuracy", "reverse_kl")]
        rows.insert(0, ["before training", "0", "", "", before[0], "", "", before[1]])
        header = [
            "method", "updates", "seconds", "processor seconds", "accuracy", "gained", "distillation minus it",
            "reverse KL",
        ]  # fmt: skip
        parts.append(f"At equal {at}:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def gain(results: Results, name: str) -> Interval:
    """In accuracy, from before training to the last evaluation."""
    before, after = results.values(name, "accuracy", 0), results.values(name, "accuracy")
    return interval([after[seed] - before[seed] for seed in after])


def draw(results: Results, path: Path) -> None:
    updates, seconds = by_side(results, "updates"), by_side(results, "seconds")
    with picture(path, columns=2) as axes:
        draw_curves(axes[0, 0], updates, METHODS, "accuracy", "updates")
        draw_curves(axes[0, 1], seconds, METHODS, "accuracy", "seconds")
        axes[0, 0].set(xlabel="updates", title="accuracy at equal updates")
        axes[0, 1].set(xlabel="seconds of a method's own turns", title="accuracy at equal seconds")
        axes[0, 1].sharey(axes[0, 0])
        drawn = axes[0, 0].get_legend_handles_labels()
        axes[0, 0].figure.legend(*drawn, loc="outside lower center", ncols=3, frameon=False)


STUDY = Study("sft_and_grpo", SETTING, QUICK, [TOGETHER], run, report, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY))
