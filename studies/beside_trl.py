"""Beside TRL: the same student, teacher, prompts and seconds. See docs/studies/beside-trl.md.

    python studies/beside_trl.py        options: see common.py

Limbeck and TRL's `DistillationTrainer` distil the same student, each in a process of its own, and take turns by their
clocks. Both students are judged by the same judge, at the same seconds and at the same updates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Interval, Results, Row, Study, interval, main, picture, table

from sides.judge import Judge, by_side, draw_curves, judged
from sides.methods import Work, start
from sides.turns import at_equal_seconds

TOGETHER = "together"  # both sides are one run: they take turns
SIDES = {"limbeck": "Limbeck", "trl": "TRL"}
MEASURES = {"accuracy": "accuracy", "reverse_kl": "reverse KL, nats a token"}
SETTING = {
    "temperature": 1.0, "rows": 32, "max_tokens": 40, "warmup": 10, "held_out": 256,
    "evaluated_at": [5, 10, 20, 40], "lr": {"limbeck": 2e-4, "trl": 2e-4}, "without_trl": False,
}  # fmt: skip
QUICK = {"evaluated_at": [1, 2], "rows": 4, "held_out": 8, "without_trl": True}


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    """Rows of both sides: at equal seconds, by Limbeck's updates, and at equal updates."""
    work = Work(setting, seed, setting["evaluated_at"], scratch)
    with ExitStack() as stack:
        limbeck, trl = (stack.enter_context(start(name, work)) for name in SIDES)
        equal_seconds = at_equal_seconds(limbeck, [trl])
        if not all(map(math.isclose, limbeck.rates, trl.rates)):
            raise RuntimeError(f"learning rates differ: {limbeck.rates} and {trl.rates}")
        judge = stack.enter_context(Judge(work.recipe(lr=1e-3)))
        rows = judged(judge, {"limbeck": limbeck.snapshots, "trl": trl.snapshots}, at="updates")
        return rows + judged(judge, {"limbeck": limbeck.snapshots, **equal_seconds}, at="seconds")


def report(results: Results) -> str:
    seconds, updates = by_side(results, "seconds"), by_side(results, "updates")
    steps = [0, *results.setting["evaluated_at"]]
    parts = []
    for key, name in MEASURES.items():
        header = ["seconds", "updates, Limbeck", "TRL", f"{name}, Limbeck", "TRL", "difference"]
        rows = [
            [
                f"{seconds.at('limbeck', 'seconds', step).mean:.1f}",
                step,
                f"{seconds.at('trl', 'updates', step).mean:.1f}",
                *(seconds.at(side, key, step) for side in SIDES),
                seconds.difference("limbeck", "trl", key, step) if step else "",
            ]
            for step in steps
        ]
        parts.append(f"At equal seconds:\n\n{table(header, rows)}")
    header = ["updates", *(f"{name}, difference" for name in MEASURES.values()), "seconds, ratio", "processor, ratio"]
    rows = [
        [
            step,
            *(updates.difference("limbeck", "trl", key, step) for key in MEASURES),
            *(ratio(updates, key, step) for key in ("seconds", "cpu")),
        ]
        for step in steps[1:]
    ]
    parts.append(f"At equal updates, Limbeck minus TRL and Limbeck over TRL:\n\n{table(header, rows)}")
    return "\n\n".join(parts)


def ratio(results: Results, key: str, step: int) -> Interval:
    """Limbeck's over TRL's, over seeds."""
    ours, theirs = (results.values(side, key, step) for side in SIDES)
    return interval([ours[seed] / theirs[seed] for seed in ours])


def draw(results: Results, path: Path) -> None:
    seconds = by_side(results, "seconds")
    with picture(path, columns=3) as axes:
        for place, (key, name) in enumerate({**MEASURES, "updates": "updates"}.items()):
            draw_curves(axes[0, place], seconds, SIDES, key, "seconds")
            axes[0, place].set(xlabel="seconds of a side's own turns", title=name)
        axes[0, 0].legend()


STUDY = Study("beside_trl", SETTING, QUICK, [TOGETHER], run, report, draw)

if __name__ == "__main__":
    sys.exit(main(STUDY))
