"""The grids of learning rates that the studies of methods were tuned on, on seeds of their own.

    python studies/grids.py        options: see common.py

Each condition is a method with a learning rate: its student after `updates`, alone on the machine or not, for only
updates are counted here.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import Results, Row, Study, main, picture, table

from limbeck.view.plots import COLOURS
from sides.judge import Judge, judged
from sides.methods import METHODS, Work

RATES = {
    "limbeck": (5e-5, 1e-4, 2e-4, 4e-4),
    "trl": (5e-5, 1e-4, 2e-4, 4e-4),
    "sft": (5e-5, 1e-4, 2e-4, 3e-4, 1e-3),
    "grpo": (1e-5, 3e-5, 1e-4),
    "grpo of 4": (3e-5,),
    "grpo of 16": (3e-5,),
    "fixed_low": (3e-6, 1e-5, 3e-5, 1e-4),
    "fixed_all": (1e-5, 1e-4),
}  # "of": so many samples of a prompt, where it is not the setting's
SEEDS = ("101",)
SETTING = {
    "temperature": 1.0, "rows": 32, "max_tokens": 40, "warmup": 10, "held_out": 256, "generations": 8,
    "evaluated_at": [40], "without_trl": False,
}  # fmt: skip
QUICK = {"evaluated_at": [1], "rows": 8, "held_out": 8, "without_trl": True}


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    method, rate = condition.split("@")
    name, _, generations = method.partition(" of ")
    setting = {**setting, **({"generations": int(generations)} if generations else {})}
    work = Work(setting, seed, setting["evaluated_at"], scratch)
    with METHODS[name](name, work, float(rate)) as side:
        while side.updates < max(side.evaluated_at):
            side.step()
    return judged(judge_of(work), {name: side.snapshots}, at="updates")


JUDGES: dict[int, Judge] = {}  # by seed: one for all methods and rates
CLOSING = ExitStack()
atexit.register(CLOSING.close)


def judge_of(work: Work) -> Judge:
    if work.seed not in JUDGES:
        JUDGES[work.seed] = CLOSING.enter_context(Judge(work.recipe(lr=1e-3)))
    return JUDGES[work.seed]


def report(results: Results) -> str:
    rows = [[*one.split("@"), results.at(one, "accuracy"), results.at(one, "reverse_kl")] for one in results.conditions]
    return table(["method", "learning rate", "accuracy", "reverse KL"], rows)


def draw(results: Results, path: Path) -> None:
    with picture(path, columns=1) as axes:
        for number, name in enumerate(RATES):
            ours = [one for one in results.conditions if one.startswith(f"{name}@")]
            rates = [float(one.split("@")[1]) for one in ours]
            means = [results.at(one, "accuracy").mean for one in ours]
            axes[0, 0].plot(rates, means, marker="o", markersize=3, color=COLOURS[number % len(COLOURS)], label=name)
        axes[0, 0].set(
            xscale="log", xlabel="learning rate", title=f"accuracy after {max(results.setting['evaluated_at'])}"
        )
        axes[0, 0].legend(frameon=False)


CONDITIONS = [f"{name}@{rate:g}" for name, rates in RATES.items() for rate in rates]

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(main(Study("grids", SETTING, QUICK, CONDITIONS, run, report, draw), ["--seeds", *SEEDS, *arguments]))
