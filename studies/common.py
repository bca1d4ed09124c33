"""What every study shares: a set of runs that are made once each, intervals over seeds, and pictures.

A study is a script that ends in `main(Study(...))`. Each pair of a condition and a seed is one run:

    python studies/NAME.py [--seeds 0 1 2 3 4] [--conditions A B] [--jobs 2] [--output FOLDER] [--quick]

A finished run is one file, `FOLDER/CONDITION/seed-N.jsonl`: its setting, then its rows, one measurement each. A file
that is there is not made again, so a study that was interrupted goes on, and more seeds or conditions can be added to
it. A file of another setting is refused. Seeds are the outer loop and conditions take turns: whatever else the machine
does meets all of them. `--jobs` runs so many at once, each in a process of its own. `--quick` shows within seconds
that a study runs; its numbers mean nothing.

Intervals are Student's, 95%, over seeds; those of differences are of the differences at equal seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one run, one thread

from limbeck.errors import LimbeckError
from limbeck.training.intervals import t_interval
from limbeck.view.plots import COLOURS, STYLE

Row = dict[str, Any]
SEEDS = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Study:
    """`run(condition, seed, setting, scratch)` makes one run and returns its rows; it must be a function of a module.

    `report(results)` returns the study's tables as Markdown; `draw(results, path)` saves its picture. `setting` is
    what all runs share, as JSON; `quick` is what `--quick` changes of it. `prepare(setting, folder)` makes what runs
    need beforehand, in the study's folder (`scratch.parents[1]` of a run), unless it is there.
    """

    name: str
    setting: Mapping[str, Any]
    quick: Mapping[str, Any]
    conditions: Sequence[str]
    run: Callable[[str, int, Mapping[str, Any], Path], list[Row]]
    report: Callable[[Results], str]
    draw: Callable[[Results, Path], None]
    prepare: Callable[[Mapping[str, Any], Path], None] | None = None


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its 95% interval; of a single seed, and where all are equal, without width."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:z.3f} [{self.low:z.3f}, {self.high:z.3f}]" if self.low < self.high else f"{self.mean:z.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Over one value a seed."""
    low, high = t_interval(values) if len(values) > 1 else (values[0], values[0])
    return Interval(statistics.fmean(values), low, high)


@dataclass(frozen=True)
class Results:
    """All rows, `(condition, seed) -> rows`, in order of measuring. Each has a `step`, the same at every seed."""

    runs: Mapping[tuple[str, int], Sequence[Row]]
    setting: Mapping[str, Any]

    @cached_property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(condition for condition, _ in self.runs))

    def seeds(self, condition: str) -> list[int]:
        return sorted(seed for one, seed in self.runs if one == condition)

    def values(self, condition: str, key: str, step: int | None = None) -> dict[int, float]:
        """By seed, at a step; None: the last row."""
        found = {}
        for seed in self.seeds(condition):
            rows = [row for row in self.runs[condition, seed] if key in row and step in (None, row["step"])]
            if not rows:
                raise KeyError(f"{condition}, seed {seed}: no row at step {step} has {key}")
            found[seed] = float(rows[-1][key])
        return found

    def at(self, condition: str, key: str, step: int | None = None) -> Interval:
        """Over seeds, at a step; None: the last."""
        return interval(list(self.values(condition, key, step).values()))

    def difference(self, condition: str, to: str, key: str, step: int | None = None) -> Interval:
        """Of `condition` minus `to`, at the seeds that both have."""
        one, other = self.values(condition, key, step), self.values(to, key, step)
        return interval([one[seed] - other[seed] for seed in one if seed in other])

    def curve(self, condition: str, key: str) -> tuple[list[int], list[Interval]]:
        """Over the steps at which it was measured."""
        first = self.runs[condition, self.seeds(condition)[0]]
        steps = [row["step"] for row in first if key in row]
        return steps, [self.at(condition, key, step) for step in steps]

    def values_along(self, condition: str, key: str, x: str, at: float) -> dict[int, float]:
        """By seed, where `x` (such as seconds, which differ from seed to seed) is `at`: between the nearest rows."""
        return {seed: _between(self.runs[condition, seed], key, x, at) for seed in self.seeds(condition)}

    def along(self, condition: str, key: str, x: str, at: float) -> Interval:
        """Over seeds, where `x` is `at`."""
        return interval(list(self.values_along(condition, key, x, at).values()))

    def extent(self, condition: str, x: str) -> tuple[float, float]:
        """From where to where every seed of it has an `x`."""
        ends = [[float(row[x]) for row in self.runs[condition, seed]] for seed in self.seeds(condition)]
        return max(map(min, ends)), min(map(max, ends))


def _between(rows: Sequence[Row], key: str, x: str, at: float) -> float:
    points = sorted((float(row[x]), float(row[key])) for row in rows if key in row)
    if not points[0][0] <= at <= points[-1][0]:
        raise ValueError(f"{x} = {at} is not between {points[0][0]} and {points[-1][0]}, where {key} was measured")
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if at <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (at - x0) / (x1 - x0)
    return points[-1][1]


class TrainingClock:
    """An observer: processor seconds of this process in training steps so far, evaluations and loading left out.

    With other work on the machine these mean more than wall time. `rows` has one for each evaluation:
    its numbers, with `seconds` and `step`.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.seconds = 0.0
        self._since = time.process_time()

    def started(self, step: int, steps: int) -> None:
        self._since = time.process_time()

    def phase(self, step: int, name: str) -> None: ...

    def stepped(self, line: Mapping[str, Any]) -> None:
        now = time.process_time()
        self.seconds, self._since = self.seconds + now - self._since, now

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.rows.append({**line, "seconds": self.seconds})
        self._since = time.process_time()

    def closed(self) -> None: ...


def main(study: Study, arguments: Sequence[str] | None = None) -> int:
    """Make the runs that are missing, then print the tables and draw the picture. The exit status."""
    args = _parse(study, arguments)
    setting = {**study.setting, **study.quick} if args.quick else dict(study.setting)
    wanted = [(condition, seed) for seed in args.seeds for condition in args.conditions]
    try:
        missing = [one for one in wanted if _read(args.output, *one, setting) is None]
        if missing and study.prepare is not None:
            study.prepare(setting, args.output)
        _make(study, missing, setting, args.output, args.jobs)
    except (OtherSettingError, LimbeckError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with the runs that are missing.", file=sys.stderr)
        return 130
    order = [(condition, seed) for condition in args.conditions for seed in args.seeds]
    read = {one: _read(args.output, *one, setting) for one in order}
    results = Results({one: rows for one, rows in read.items() if rows}, setting)
    text = study.report(results)
    (args.output / "result.md").write_text(text + "\n", encoding="utf-8")
    study.draw(results, args.picture or args.output / f"{study.name}.png")
    print(f"{text}\n\n{args.picture or args.output / f'{study.name}.png'}")
    return 0


class OtherSettingError(Exception):
    """A file was made with another setting than the one asked for."""


def _parse(study: Study, arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=study.name, epilog="see docs/studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--conditions", nargs="+", choices=study.conditions, default=list(study.conditions))
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each in a process of its own")
    parser.add_argument("--output", type=Path, help="folder of its runs; default: runs/studies/NAME")
    parser.add_argument("--picture", type=Path, help="where the picture goes; default: into the folder")
    parser.add_argument(
        "--quick", action="store_true", help="a test of seconds, of two seeds; its numbers mean nothing"
    )
    args = parser.parse_args(arguments)
    if args.quick and args.seeds == list(SEEDS):
        args.seeds = [0, 1]
    args.output = args.output or Path("runs/studies") / (f"{study.name}-quick" if args.quick else study.name)
    return args


def _path(folder: Path, condition: str, seed: int) -> Path:
    return folder / condition / f"seed-{seed}.jsonl"


def _read(folder: Path, condition: str, seed: int, setting: Mapping[str, Any]) -> list[Row] | None:
    """Rows of a finished run; None where it has not been made."""
    path = _path(folder, condition, seed)
    if not path.exists():
        return None
    head, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    was, now = head["setting"], json.loads(json.dumps(setting))
    if was != now:
        differing = {key: (was.get(key), now.get(key)) for key in {*was, *now} if was.get(key) != now.get(key)}
        text = ", ".join(f"{key} = {old} there, {new} now" for key, (old, new) in sorted(differing.items()))
        raise OtherSettingError(f"{path} is of another setting: {text}. Give another --output, or remove the folder.")
    return rows


def _make(
    study: Study, missing: Sequence[tuple[str, int]], setting: Mapping[str, Any], folder: Path, jobs: int
) -> None:
    if jobs == 1:
        for number, (condition, seed) in enumerate(missing, 1):
            _say(number, len(missing), condition, seed, _one(study.run, condition, seed, setting, folder))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        runs = {pool.submit(_one, study.run, *one, setting, folder): one for one in missing}
        for number, done in enumerate(as_completed(runs), 1):
            _say(number, len(missing), *runs[done], done.result())


def _say(number: int, count: int, condition: str, seed: int, seconds: float) -> None:
    print(
        f"{number} of {count}: {condition}, seed {seed}: {seconds:.0f} processor seconds", file=sys.stderr, flush=True
    )


def _one(
    run: Callable[[str, int, Mapping[str, Any], Path], list[Row]],
    condition: str,
    seed: int,
    setting: Mapping[str, Any],
    folder: Path,
) -> float:
    """Make a run and keep its rows; the processor seconds that it took. A run that was interrupted begins anew."""
    path = _path(folder, condition, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".scratch" / f"{condition}-{seed}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    start = time.process_time()
    rows = run(condition, seed, setting, scratch)
    seconds = time.process_time() - start
    head = {"condition": condition, "seed": seed, "processor_seconds": round(seconds, 1), "setting": dict(setting)}
    written = path.with_suffix(".part")
    written.write_text("".join(json.dumps(line) + "\n" for line in [head, *rows]), encoding="utf-8")
    written.rename(path)
    shutil.rmtree(scratch)
    return seconds


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


@contextmanager
def picture(path: Path, columns: int, rows: int = 1) -> Iterator[Any]:
    """The axes of a picture in the style of Limbeck's plots, [rows, columns]; saved on leaving."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * columns, 2.7 * rows))
        yield figure.subplots(rows, columns, squeeze=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)


def draw_curves(
    axes: Any,
    results: Results,
    conditions: Mapping[str, str],
    key: str,
    x: str | None = None,
    styles: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Mean and 95% interval of each condition (by its label) over steps, or over `x` where seeds differ in it."""
    for number, (condition, label) in enumerate(conditions.items()):
        if condition not in results.conditions:
            continue
        steps, found = results.curve(condition, key)
        places: list[float] = list(steps)
        if x is not None:
            places = [results.at(condition, x, step).mean for step in steps]
            first, last = results.extent(condition, x)
            places = [min(max(place, first), last) for place in places]
            found = [results.along(condition, key, x, place) for place in places]
        style = {"color": COLOURS[number % len(COLOURS)], "linewidth": 1.4, **(styles or {}).get(condition, {})}
        axes.plot(places, [one.mean for one in found], label=label, **style)
        low, high = [one.low for one in found], [one.high for one in found]
        axes.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
