"""Seconds of Limbeck's step as its tokens grow, and as the vocabulary grows.

    python benchmarks/scaling.py [--repeats 3]

Tiny models; the number of prompts, then the number of words, doubles while all else stays. Prints one JSON
line each with the exponent of the growth: 1 is linear. Exit code 1 where it is more.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from steps.cases import CASES, Case
from steps.peer import DEFAULT
from steps.processes import HERE, SRC, Worker, prepare, tell

LINEAR = 1.1  # the largest exponent that passes as linear; what does not grow with the work pulls it below 1
GROWTH = {
    "tokens": [replace(CASES["a"], prompts=prompts) for prompts in (32, 64, 128, 256)],
    "vocabulary": [replace(CASES["a"], prompts=16, vocabulary=words) for words in (8192, 16384, 32768, 65536)],
}


def seconds(cases: list[Case], args: argparse.Namespace, folder: Path) -> list[float]:
    """Median seconds of a step of each case, in turn."""
    workers = []
    for case in cases:
        _, path = prepare(case, args.repeats + 1, args.threads, args.cache, "models", folder)
        workers.append(Worker(sys.executable, "steps.limbeck_side", str(path), paths=(HERE, SRC)))
    taken: list[list[float]] = [[] for _ in cases]
    for step in range(args.repeats + 1):
        for worker, rounds in zip(workers, taken, strict=True):
            rounds.append(worker.ask("step", step=step)["seconds"])
    for worker in workers:
        worker.close()
    return [statistics.median(rounds[1:]) for rounds in taken]


def main() -> int:
    parser = argparse.ArgumentParser(description="growth of Limbeck's step with tokens and with vocabulary")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cache", default=str(DEFAULT.parent / "benchmarks"), help="where the tiny models go")
    args = parser.parse_args()
    linear = True
    for what, cases in GROWTH.items():
        with tempfile.TemporaryDirectory() as folder:
            taken = seconds(cases, args, Path(folder))
        sizes = [case.trained_tokens() if what == "tokens" else case.vocabulary or 0 for case in cases]
        exponent = statistics.linear_regression([math.log(n) for n in sizes], [math.log(t) for t in taken]).slope
        linear = linear and exponent <= LINEAR
        shown = {str(size): round(value, 3) for size, value in zip(sizes, taken, strict=True)}
        print(
            json.dumps({"scaling": what, "seconds": shown, "exponent": round(exponent, 3), "bar": LINEAR}), flush=True
        )
    tell("linear or better" if linear else "NOT linear")
    return 0 if linear else 1


if __name__ == "__main__":
    sys.exit(main())
