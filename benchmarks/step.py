"""A step of on-policy distillation, Limbeck's and TRL's in turn, on the same work.

    python benchmarks/step.py [--quick] [--config a b c d] [--repeats 5] [--output FILE]

Each side is a process of its own that loads the same models and waits. The first step checks that both
do the same: TRL samples and updates; Limbeck updates on TRL's very samples; loss (the exact reverse KL per
token) and gradient norm must agree, and every step must train the same number of tokens. Then they step in
turn, so that a machine's moods fall on both; only ratios within one run mean anything. Dtype (float32),
threads, AdamW and its settings, clipping, prompts and the length of every response are the same; see
`steps/limbeck_side.py` and `steps/trl_side.py` for how lengths are fixed and how TRL was tuned.

Prints one JSON line per configuration and a table on stderr. Exit code 1 where the two sides disagree.
TRL lives in a virtual environment of its own, made on the first run (`--trl FOLDER`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from steps.cases import CASES, Case
from steps.peer import DEFAULT, peer_python
from steps.processes import SRC, Worker, prepare, tell
from steps.report import phase_table, summary_line

HERE = Path(__file__).parent
LOSS_TOLERANCE = 1e-3  # relative
PHASES = ("prefill", "decode", "teacher", "student_forward", "loss", "student_backward", "optimizer", "rest")


def check(case: Case, limbeck: Worker, trl: Worker) -> dict[str, Any]:
    """One update on the same samples, and what differs."""
    theirs = trl.ask("step")
    ours = limbeck.ask("check", step=0, rows=theirs["rows"])
    gaps = {key: abs(ours[key] / theirs[key] - 1) for key in ("loss", "grad_norm")}
    tokens = {ours["tokens"], theirs["tokens"]}
    return {
        "loss": [ours["loss"], theirs["loss"]],
        "grad_norm": [ours["grad_norm"], theirs["grad_norm"]],
        "agree": max(gaps.values()) <= LOSS_TOLERANCE and tokens == {case.trained_tokens()},
    }


def run_case(case: Case, args: argparse.Namespace, peer: Path, folder: Path) -> dict[str, Any]:
    steps_needed = 1 + case.warmups + args.repeats
    _, path = prepare(case, steps_needed, args.threads, args.cache, args.models, folder)
    limbeck = Worker(sys.executable, "steps.limbeck_side", str(path), paths=(HERE, SRC))
    trl = Worker(peer, "steps.trl_side", str(path), args.peer, paths=(HERE,))
    sides = {"limbeck": limbeck, "trl": trl}
    if {side.ready["threads"] for side in sides.values()} != {args.threads}:
        raise RuntimeError(f"expected {args.threads} threads on both sides")
    checked = check(case, limbeck, trl)
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    prefills: dict[str, list[float]] = {name: [] for name in sides}
    last = case.warmups + args.repeats
    for step in range(1, last + 1):
        for name in sides if step % 2 else reversed(sides):
            made = sides[name].ask("step", step=step)
            tell(f"({case.name}) step {step} of {last}, {name}: {made['seconds']:.2f} s")
            if step > case.warmups:
                steps[name].append(made)
    for name in (*sides, *sides):
        prefills[name].append(sides[name].ask("prefill", step=last)["seconds"])
    peaks = {name: side.ask("peak")["peak_mb"] for name, side in sides.items()}
    for side in sides.values():
        side.close()
    same = all(made["tokens"] == case.trained_tokens() for name in sides for made in steps[name])
    checked["agree"] = checked["agree"] and same
    floors = roofline(path)
    return assemble(case, args, checked, steps, prefills, peaks, floors)


def roofline(path: Path) -> dict[str, Any]:
    """Seconds below which no phase can come on this machine; see `steps/roofline.py`."""
    command = [sys.executable, "-m", "steps.roofline", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    floors: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return floors


def assemble(
    case: Case,
    args: argparse.Namespace,
    checked: dict[str, Any],
    steps: dict[str, list[dict[str, Any]]],
    prefills: dict[str, list[float]],
    peaks: dict[str, float],
    floors: dict[str, Any],
) -> dict[str, Any]:
    """The configuration's JSON line."""
    sides = {}
    for name, made in steps.items():
        seconds = statistics.median(step["seconds"] for step in made)
        phases = {key: statistics.median(step["phases"][key] for step in made) for key in made[0]["phases"]}
        prefill = min(prefills[name])
        phases |= {"prefill": prefill, "decode": phases.pop("sample") - prefill}
        sides[name] = {
            "seconds": round(seconds, 4),
            "all_seconds": [round(step["seconds"], 4) for step in made],
            "phases": {key: round(phases[key], 4) for key in PHASES},
            "tokens_per_second": round(case.trained_tokens() / seconds, 1),
            "peak_mb": round(peaks[name]),
        }
    ratio = statistics.median(
        ours["seconds"] / theirs["seconds"] for ours, theirs in zip(steps["limbeck"], steps["trl"], strict=True)
    )
    ours = sides["limbeck"]["phases"]
    return {
        "config": case.name,
        "what": case.describe(),
        "peer": args.peer,
        "threads": args.threads,
        "trained_tokens": case.trained_tokens(),
        "ratio": round(ratio, 3),
        "peak_ratio": round(peaks["limbeck"] / peaks["trl"], 3),
        "check": checked,
        **sides,
        "floors": floors,
        "measured_over_floor": {
            kind: {phase: round(ours[phase] / floor, 2) for phase, floor in floors[kind].items()}
            for kind in ("own_shapes", "peak")
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="a step of Limbeck and of TRL on the same work")
    parser.add_argument("--config", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    parser.add_argument("--quick", action="store_true", help="fewer rows, one repeat: under five minutes")
    parser.add_argument("--repeats", type=int, help="timed steps of each side (default 5)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer", choices=("distillation", "gkd"), default="distillation", help="TRL's trainer")
    parser.add_argument("--trl", type=Path, default=DEFAULT, help="its virtual environment (default %(default)s)")
    parser.add_argument("--models", default="models", help="where SmolLM2 is or goes (default %(default)s)")
    parser.add_argument("--cache", default=str(DEFAULT.parent / "benchmarks"), help="where the tiny models go")
    parser.add_argument("--output", type=Path, help="also append the JSON lines to this file")
    args = parser.parse_args()
    args.repeats = args.repeats or (1 if args.quick else 5)
    peer, agreed = peer_python(args.trl), True
    with tempfile.TemporaryDirectory() as folder:
        for name in args.config:
            case = CASES[name].quick() if args.quick else CASES[name]
            result = run_case(case, args, peer, Path(folder))
            agreed = agreed and result["check"]["agree"]
            line = json.dumps(result)
            print(line, flush=True)
            tell(phase_table(result, PHASES))
            tell(summary_line(result))
            if args.output:
                with args.output.open("a") as file:
                    file.write(line + "\n")
    return 0 if agreed else 1


if __name__ == "__main__":
    sys.exit(main())
