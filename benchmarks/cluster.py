"""The bounds of a fleet, measured on this machine, each in a process of its own: one JSON line each, as it comes.

    benchmarks/cluster.py --quick               all five, in under four minutes on two cores
    benchmarks/cluster.py --quick --only ranks

Each part is a file in benchmarks/fleet with `measure(quick) -> dict`. The exit status is 1 where a part fails, says
nothing that can be compared, or breaks its bound; which one is said on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
QUICK_SECONDS = 230.0  # of all parts together
SECONDS = 1800.0


@dataclass(frozen=True)
class Bound:
    """The most that `key` of a part's line may be."""

    key: str
    most: float


BOUNDS = {
    "ranks": Bound("worst", 1e-9),  # of two ranks' weights from one's after three steps, float64
    "overlap": Bound("ratio", 0.65),  # of a step's time at lag 1 over lag 0
    "weights": Bound("seconds", 15),  # from the learner to two samplers
    "memory": Bound("ratio", 0.65),  # of a rank's peak over that of one process
    "length": Bound("exponent", 1.15),  # of a step's memory against the length of its sequences
}


def run(name: str, quick: bool, seconds: float, root: Path) -> str | None:
    """Run one part and print its line; what is wrong with it, or None."""
    code = f"import json; from benchmarks.fleet.{name} import measure; print(json.dumps(measure(quick={quick})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(ROOT / "src")])}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # what it started, too
        process.communicate()
        return f"{name}: no answer within {seconds:.0f} s"
    if process.returncode:
        return f"{name}: ended with code {process.returncode}; its messages are above"
    lines = out.splitlines()
    try:
        line = json.loads(lines[-1], parse_constant=str) if lines else None  # NaN is no number
    except ValueError:
        line = None
    if not isinstance(line, dict):
        return f"{name}: its last line is no JSON object: {lines[-1][:200] if lines else 'it printed nothing'}"
    print(json.dumps({"what": name, **line}), flush=True)
    return problem_of(name, line)


def problem_of(name: str, line: dict[str, object]) -> str | None:
    """Why the line does not hold what it should."""
    bound = BOUNDS[name]
    value = line.get(bound.key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{name}: {bound.key} is {value!r}, expected a number of at most {bound.most:g}"
    if value > bound.most:
        return f"{name}: {bound.key} = {value:g}, expected at most {bound.most:g}"
    return None


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: under four minutes in all")
    parser.add_argument("--only", choices=BOUNDS, action="append", help="this part alone; may be repeated")
    options = parser.parse_args(arguments)
    end = time.monotonic() + (QUICK_SECONDS if options.quick else SECONDS)
    problems = []
    for name in options.only or BOUNDS:
        problem = run(name, options.quick, max(1.0, end - time.monotonic()), root)
        if problem:
            print(problem, file=sys.stderr, flush=True)
            problems.append(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
