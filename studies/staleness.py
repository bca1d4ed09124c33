"""What stale rollouts cost: docs/studies/staleness.md.

    python studies/staleness.py [--seeds 0 1 2 3 4] [--jobs 2] [--quick]

`reverse-full-4`: the reverse KL over the whole vocabulary, sampled with weights that are four updates old
(`rollout.lag = 4`). `sampled` takes the sampled token alone, with truncated importance weights; `forward` is the
forward KL over the whole vocabulary. All else is equal.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import Results, Row, Study, TrainingClock, draw_curves, main, picture, table
from pair import PAIR, QUICK_PAIR, make_pair, recipe

import limbeck

OBJECTIVES: dict[str, dict[str, Any]] = {
    "reverse-full": {"divergence": "reverse_kl", "support": "full"},
    "reverse-sampled": {"divergence": "reverse_kl", "support": "sampled"},
    "forward-full": {"divergence": "forward_kl"},
}
LAGS = {"reverse-full": (0, 1, 4, 16), "reverse-sampled": (0, 1, 4, 16), "forward-full": (0, 16)}
SETTING = {
    "steps": 100, "prompts_per_step": 32, "lr": 1e-3, "warmup_steps": 10, "evaluate_every": 10, "eval_prompts": 512,
    "temperature": 1.0, "pair": PAIR,
}  # fmt: skip
QUICK = {"steps": 2, "prompts_per_step": 4, "evaluate_every": 1, "eval_prompts": 8, "pair": QUICK_PAIR}
KEYS = {"accuracy": "accuracy", "reverse_kl/exact": "KL to the teacher", "entropy/student": "entropy"}


def run(condition: str, seed: int, setting: Mapping[str, Any], scratch: Path) -> list[Row]:
    name, _, lag = condition.rpartition("-")
    clock = TrainingClock()
    tables = recipe(setting, seed, scratch, setting["temperature"])
    tables["objective"] = OBJECTIVES[name]
    tables["rollout"]["lag"] = int(lag)
    result = limbeck.train(tables, observers=[clock], display=False)
    share = {line["step"]: line.get("importance/effective_share", 1.0) for line in result.steps}
    return [{**row, "effective_share": share.get(row["step"], 1.0)} for row in clock.rows]


def report(results: Results) -> str:
    parts = []
    for name, lags in LAGS.items():
        mine = [f"{name}-{lag}" for lag in lags if f"{name}-{lag}" in results.conditions]
        rows = [[one.rpartition("-")[2], *(results.at(one, key) for key in KEYS)] for one in mine]
        parts.append(table([f"lag, {name}", *KEYS.values()], rows))
        gaps = [[one.rpartition("-")[2], *(results.difference(one, mine[0], key) for key in KEYS)] for one in mine[1:]]
        parts.append(table([f"lag, {name}: minus lag 0, at equal seeds", *KEYS.values()], gaps))
    return "\n\n".join(parts)


def draw(results: Results, path: Path) -> None:
    labels = {"accuracy": "accuracy", "reverse_kl/exact": "reverse KL to the teacher (nats / token)"}
    with picture(path, len(OBJECTIVES), len(labels)) as axes:
        for row, (key, label) in zip(axes, labels.items(), strict=True):
            for one, (name, lags) in zip(row, LAGS.items(), strict=True):
                draw_curves(one, results, {f"{name}-{lag}": f"lag {lag}" for lag in lags}, key, styles=STYLES)
                one.set(title=name.replace("-", ", "), ylabel=label, xlabel="update")
        for accuracy, kl in axes.T:
            accuracy.set_ylim(0, 0.7)
            kl.set_yscale("log")
            kl.set_ylim(1e-3, 2)
        axes[0, 0].legend()


STYLES = {
    f"{name}-{lag}": {"color": colour}
    for name in OBJECTIVES
    for lag, colour in zip((0, 1, 4, 16), ("#1f6fb2", "#0a8f6c", "#d9700f", "#c23b3b"), strict=True)
}
CONDITIONS = [f"{name}-{lag}" for name, lags in LAGS.items() for lag in lags]
STUDY = Study("staleness", SETTING, QUICK, CONDITIONS, run, report, draw, make_pair)

if __name__ == "__main__":
    sys.exit(main(STUDY))
