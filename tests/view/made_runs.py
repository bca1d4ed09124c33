"""Small runs made up in files, as after a sweep: several seeds and temperatures, one live, one failed."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import made

RECIPE = """name = "{name}"
output = "runs"
seed = {seed}
steps = {steps}
device = "auto"
trackers = []

[student]
model = "demo:student"
dtype = "float32"

[teacher]
model = "demo:teacher"
kind = "local"

[task]
kind = "arithmetic"
digits = 3

[rollout]
temperature = {temperature}
max_tokens = 40
prompts_per_step = 64

[objective]
support = "full"
divergence = "reverse_kl"

[learner]
kind = "local"
lr = {lr}
betas = [
    0.9,
    0.95,
]
schedule = "linear"

[eval]
every = {every}
prompts = 128
"""


def write_run(
    folder: Path,
    seed: int = 0,
    temperature: float = 0.7,
    lr: float = 1e-3,
    steps: int = 60,
    reached: int | None = None,
    every: int = 20,
    outcome: str | None = "finished",
    message: str = "",
    started: float | None = None,
    rollouts: bool = True,
) -> None:
    """A run of `reached` of its `steps`, with recipe, metrics, answers, rollouts and a history that ends in `outcome`.

    An `outcome` of None has not ended. Numbers follow from seed and temperature: warmer is worse, and 0.01 diverges.
    """
    reached = steps if reached is None else reached
    started = time.time() - 7200 + 60 * seed if started is None else started
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(
        RECIPE.format(name=folder.name, seed=seed, steps=steps, temperature=temperature, lr=lr, every=every)
    )
    write_history(folder, reached, steps, started, outcome, message, host="gpu-01" if seed % 2 else "gpu-02")
    if reached == 0:
        return
    lines = []
    for step in range(reached + 1):
        if step:
            lines.append(made.metrics_line(step, **shifted(step, seed, temperature, lr)))
        if step % every == 0 or step == steps:
            accuracy = min(0.98, 0.3 + 0.55 * step / (step + 15) / temperature**0.5 + 0.03 * math.sin(7 * seed + step))
            answered = round(128 * accuracy) / 128
            kl = shifted(step, seed, temperature, lr)["reverse_kl/exact"]
            low, high = max(0.0, answered - 0.08), min(1.0, answered + 0.08)
            scores = {"accuracy": answered, "accuracy/low": low, "accuracy/high": high, "reverse_kl/exact": kl}
            lines.append(made.eval_line(step, **scores))
            write_answers(folder, step, answered, seed)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if rollouts:
        made.write_rollout_files(folder, range(every, reached + 1, every), each=6, length=24, temperature=temperature)


def shifted(step: int, seed: int, temperature: float, lr: float) -> dict[str, Any]:
    noise = random.Random(f"{seed} {temperature} {step}")
    kl = 0.6 * temperature / (1 + step / 20) + 0.03 * math.sin(step / 5 + seed) ** 2 + noise.gauss(0, 0.004)
    kl = abs(kl) if lr < 0.01 else 0.4 * 1.1**step
    alarms = [{"name": "kl_rising", "message": f"reverse KL is {kl:.2f}, ten times its least"}] if kl > 4 else []
    reward = min(1.0, max(0.0, 0.3 + 0.5 * step / (step + 15) + noise.gauss(0, 0.04)))
    own = {"reverse_kl/exact": kl, "reverse_kl/sampled": kl * 1.1 + noise.gauss(0, 0.01), "reward": reward}
    return {**own, "entropy/student": 0.4 * temperature + 0.1 * seed / (1 + step), "alarms": alarms}


def write_answers(folder: Path, step: int, accuracy: float, seed: int, count: int = 128) -> None:
    """`accuracy` of the answers to `count` prompts right, the same prompts in every run."""
    rows = []
    for number in range(count):
        right = random.Random(f"{seed} {number}").random() < accuracy  # a prompt that was right once tends to stay so
        response = str(3 * number + (17 if right else 18 + seed))
        own = {"prompt": f"{number}+{2 * number + 17}=", "question": f"{number}+{2 * number + 17}="}
        numbers = {"reward": float(right), "tokens": len(response) + 1}
        rows.append(made.answer(f"held-out-{number}", response=response, answer=str(3 * number + 17), **own, **numbers))
    made.write_answers(folder, step, rows)


def write_history(
    folder: Path, reached: int, steps: int, started: float, outcome: str | None, message: str = "", host: str = "gpu-01"
) -> None:
    """`history.jsonl` of a run that took a second a step."""
    start = {
        "event": "start", "time": _utc(started), "step": 0, "steps": steps, "host": host, "pid": 4711, "device": "cuda",
        "device_name": "NVIDIA H100 80GB HBM3", "python": "3.11.9", "limbeck": "0.1.0", "torch": "2.8.0",
        "transformers": "4.57.1", "commit": "4f1c2a9d0b7e63c58d1f0a2b9c3d4e5f60718293", "uncommitted": False,
    }  # fmt: skip
    lines: list[dict[str, Any]] = [start]
    if outcome is not None:
        end = {"event": "end", "time": _utc(started + reached), "step": reached, "outcome": outcome}
        lines.append({**end, "message": message} if message else end)
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_runs(root: Path) -> None:
    """Twelve runs: three seeds at each of three temperatures; one going on, one failed, one without a step."""
    for temperature in (0.7, 1.0, 1.3):
        for seed in range(3):
            write_run(root / f"t{temperature}-s{seed}", seed, temperature)
    write_run(root / "t1.0-s3", 3, 1.0, reached=25, outcome=None, started=time.time() - 40)
    message = "the loss of step 31 is not finite: nan. Lower learner.lr, or raise learner.warmup_steps."
    write_run(root / "t0.7-lr0.01", 0, 0.7, lr=1e-2, reached=30, outcome="failed", message=message)
    write_run(root / "t0.7-new", 4, 0.7, reached=0, outcome=None, started=time.time() - 10)


def write_many_runs(root: Path, count: int = 200, steps: int = 30) -> None:
    """As many runs as somebody has after a month of sweeps."""
    for number in range(count):
        temperature, lr = (0.7, 1.0, 1.3)[number % 3], (1e-4, 3e-4, 1e-3)[number // 3 % 3]
        write_run(root / f"sweep-{number:03d}", number // 9, temperature, lr, steps, rollouts=False)


if __name__ == "__main__":  # python -m tests.view.made_runs FOLDER [COUNT]: runs to look at
    if len(sys.argv) > 2:
        write_many_runs(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        write_runs(Path(sys.argv[1]))
