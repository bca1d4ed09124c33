"""Shows a run while it goes on: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from limbeck.config.recipe import Recipe
from limbeck.formatting import duration, interval, number, with_error
from limbeck.trackers.pace import Pace

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 48
SET = "/samples_per_prompt"  # how the names of a set's metrics end, of one of them
TASK_ACCURACY = re.compile(r"task/[^/]+/accuracy")
KL_KEYS = ("reverse_kl/exact", "reverse_kl/sampled")  # the exact one leads where it is there
SAMPLED = "reverse KL, sampled"  # shown where there is no exact one
LIVE_ROWS = (  # name, the keys of which the first that is there is shown, decimals, unit
    ("reverse KL", KL_KEYS[:1], 4, " nats/token"),
    (SAMPLED, KL_KEYS[1:], 4, " nats/token"),
    ("reward", ("reward",), 3, ""),
    ("turns", ("env/turns",), 1, " an episode"),
    ("failed", ("env/failed",), 0, " episodes"),
    ("entropy", ("entropy/student",), 3, " nats"),
    ("length", ("response_length/mean",), 1, " tokens"),
    ("gradient", ("grad_norm",), 3, ""),
    ("speed", ("tokens_per_second/step",), 0, " tokens/s"),
    ("lag", ("lag",), 1, " updates"),
)
LOSS_ROW = ("forward KL", ("objective",), 4, " nats/token")  # of the data itself, which has no reverse KL


LOADING = "loading models"


class Panel(Protocol):
    """Where a panel is drawn: `rich.live.Live`, or a notebook's cell."""

    def start(self) -> None: ...

    def update(self, renderable: RenderableType) -> None: ...

    def stop(self) -> None: ...


class LiveConsole:
    """A panel that is redrawn in place: phase, progress, time left, the few numbers that matter."""

    def __init__(self, title: str, console: Console, every: int = 0, panel: Panel | None = None) -> None:
        self.title, self.console, self.pace = title, console, Pace(every)
        self.history: dict[str, list[float]] = {}
        self.shown: dict[str, str] = {}
        self.evaluations: list[Text] = []
        self.alarms: dict[str, tuple[int, int, str]] = {}  # by name: how often, last step, its text
        self.step = self.steps = self.first = 0
        self.phase_name, self.began = LOADING, time.monotonic()
        self.live: Panel = panel or Live(get_renderable=self._panel, console=console, refresh_per_second=4)

    def loading(self, takes: str) -> None:
        if takes:
            self.console.print(takes, highlight=False, style="dim")
        self.live.start()

    def proven(self, methods: Sequence[str]) -> None:
        for line in methods:
            self.console.print(line, highlight=False, style="dim")

    def started(self, step: int, steps: int) -> None:
        self.step = self.first = step
        self.steps, self.began = steps, time.monotonic()
        self.pace.started(step, steps)
        if step:
            self.console.print(_resuming(step, steps), highlight=False)
        self.live.start()

    def phase(self, step: int, name: str) -> None:
        self.phase_name = name if step <= self.step + 1 else f"{name} of step {step}"
        self.live.update(self._panel())

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.step = line["step"]
        self.pace.stepped(self.step)
        if forecast := self.pace.forecast():
            self.console.print(forecast, highlight=False)
        for name, value, text in shown_values(line):
            self.history.setdefault(name, []).append(value)
            self.shown[name] = text
        for alarm in line["alarms"]:  # one that comes at every step is one line, and hides nothing else
            times = self.alarms.get(alarm["name"], (0, 0, ""))[0] + 1
            self.alarms[alarm["name"]] = (times, line["step"], alarm["message"])
        self.live.update(self._panel())

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.pace.evaluated()
        self.evaluations.append(Text(describe_evaluation(line), style="cyan"))
        self.live.update(self._panel())

    def closed(self) -> None:
        self.phase_name = "done" if 0 < self.step == self.steps else "stopped"
        self.live.update(self._panel())
        self.live.stop()

    def _panel(self) -> RenderableType:
        elapsed, left = time.monotonic() - self.began, self.pace.left
        remaining = f"{duration(left)} left" if left is not None else ""
        header = Table.grid(padding=(0, 2))
        if not self.steps:
            header.add_row(Text(self.title, style="bold"), Text(self.phase_name, style="magenta"), duration(elapsed))
            return header
        header.add_row(
            Text(self.title, style="bold"),
            Text(f"step {self.step}/{self.steps}"),
            ProgressBar(total=self.steps, completed=self.step, width=30),
            Text(duration(elapsed), style="dim"),
            Text(remaining, style="dim"),
            Text(self.phase_name, style="magenta"),
        )
        rows = Table.grid(padding=(0, 2))
        for name, *_ in (LOSS_ROW, *LIVE_ROWS):
            if values := self.history.get(name):
                rows.add_row(Text(name, style="dim"), self.shown[name], Text(sparkline(values), style="green"))
        alarms = [
            Text(f"▲ {name}{f' ({times} times)' if times > 1 else ''}, step {step}: {message}", style="yellow")
            for name, (times, step, message) in list(self.alarms.items())  # drawn in a thread of its own
        ]
        return Group(header, rows, *self.evaluations[-3:], *alarms)


def _resuming(step: int, steps: int) -> str:
    if step < steps:
        return f"resuming after step {step} of {steps}"
    return f"no step is left to make: {step} were made, and steps = {steps}"


class PlainConsole:
    """One line a step, for logs. With `as_json`, the lines of `metrics.jsonl` themselves.

    An alarm is printed when it begins; how often it came is printed at the end.
    """

    def __init__(self, as_json: bool = False, every: int = 0) -> None:
        self.as_json, self.pace = as_json, Pace(every)
        self.steps = 0
        self.alarms: dict[str, list[int]] = {}  # by name: the steps that raised it

    def loading(self, takes: str) -> None:
        if not self.as_json:
            print(*filter(None, (takes, LOADING)), sep="\n", flush=True)

    def proven(self, methods: Sequence[str]) -> None:
        if not self.as_json:
            print(*methods, sep="\n", flush=True)

    def started(self, step: int, steps: int) -> None:
        self.steps = steps
        self.pace.started(step, steps)
        if not self.as_json and step:
            print(_resuming(step, steps), flush=True)

    def phase(self, step: int, name: str) -> None:
        """Phases are too fine for a log."""

    def stepped(self, line: Mapping[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(line, allow_nan=False), flush=True)
            return
        self.pace.stepped(line["step"])
        shown = [f"{name} {text}" for name, _, text in shown_values(line)]
        if (left := self.pace.left) is not None:
            shown.append(f"{duration(left)} left")
        print(f"step {line['step']}/{self.steps}: " + "  ".join(shown), flush=True)
        if forecast := self.pace.forecast():
            print(forecast, flush=True)
        for alarm in line["alarms"]:
            steps = self.alarms.setdefault(alarm["name"], [])
            if not steps or steps[-1] != line["step"] - 1:
                print(f"step {line['step']}: ALARM {alarm['name']}: {alarm['message']}", flush=True)
            steps.append(line["step"])

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.pace.evaluated()
        print(json.dumps(line, allow_nan=False) if self.as_json else describe_evaluation(line), flush=True)

    def closed(self) -> None:
        for name, steps in self.alarms.items():
            if len(steps) > 1:
                print(f"alarm {name}: at {len(steps)} steps, from {steps[0]} to {steps[-1]}", flush=True)


def make_console(recipe: Recipe, quiet: bool = False, as_json: bool = False) -> LiveConsole | PlainConsole | None:
    """The display for this terminal or notebook: live, plain, JSON lines, or none."""
    if as_json:
        return PlainConsole(as_json=True)
    if quiet:
        return None
    console, every = Console(), recipe.eval.every
    if in_notebook():
        from limbeck.trackers.notebook import NotebookPanel

        return LiveConsole(recipe.name, console, every, NotebookPanel())
    return LiveConsole(recipe.name, console, every) if _is_live(console) else PlainConsole(every=every)


def in_notebook() -> bool:
    """Whether what is displayed goes to a notebook's cell: Jupyter's, VS Code's, Colab's."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _is_live(console: Console) -> bool:
    return console.is_terminal and sys.stdout.isatty()


def shown_values(line: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The few numbers that matter, as (name, value, text): of each, the first key that the line has."""
    rows = LIVE_ROWS if any(key in line for key in KL_KEYS) else (LOSS_ROW, *LIVE_ROWS)
    return [
        (name, line[key], number(float(line[key]), digits) + unit)
        for name, keys, digits, unit in rows
        if name != SAMPLED or KL_KEYS[0] not in line
        for key in [next((key for key in keys if key in line), None)]
        if key is not None
    ]


def describe_evaluation(line: Mapping[str, Any]) -> str:
    """An evaluation for people: a line, and one more for each set of `[eval.sets]`."""
    names = [key.removesuffix(SET) for key in line if key.endswith(SET)]
    lines = [f"evaluation at step {line['step']}:  {_describe_set(line)}".rstrip()]
    for name in names:
        mine = {key.removeprefix(f"{name}/"): value for key, value in line.items() if key.startswith(f"{name}/")}
        lines.append(f"  {name}:  {_describe_set(mine)}")
    return "\n".join(lines)


def _describe_set(line: Mapping[str, Any]) -> str:
    parts = []
    if "accuracy" in line:
        parts.append(f"{reward_name(line)} {describe_reward(line)}")
    parts += [f"{key} {number(value, 3)}" for key, value in line.items() if key.startswith("pass@") and key != "pass@1"]
    if kl := shown_kl(line):
        parts.append(f"{kl[0]} {kl[1]} nats/token")
    if failed := line.get("env/failed"):
        parts.append(f"{failed:.0f} episodes failed, which count as 0")
    if left_out := line.get("teacher/tokens_left_out"):
        parts.append(f"without {left_out:.0f} tokens that the teacher's scores are too uncertain of")
    tasks = [key.removeprefix("task/").removesuffix("/accuracy") for key in line if TASK_ACCURACY.fullmatch(key)]
    parts += [f"{name} {number(float(line[f'task/{name}/accuracy']), 3)}" for name in tasks]
    return "  ".join(parts)


def shown_kl(line: Mapping[str, Any]) -> tuple[str, str] | None:
    """The reverse KL of an evaluation as (name, `0.1250 ± 0.0020`): the exact one, else the sampled one, else None."""
    for name, key in zip(("reverse KL", SAMPLED), KL_KEYS, strict=True):
        if key in line:
            return name, with_error(line[key], line.get(f"{key}/se"))
    return None


def reward_name(line: Mapping[str, Any]) -> str:
    """Rewards that are all in [0, 1] have an accuracy; others have a mean."""
    return "mean reward" if "accuracy/min" in line else "accuracy"


def describe_reward(line: Mapping[str, Any]) -> str:
    """`0.625 [0.402, 0.804]`; without the interval where there is none."""
    range_ = interval(line.get("accuracy/low"), line.get("accuracy/high"))
    return f"{number(float(line['accuracy']), 3)} {range_}".rstrip()


def sparkline(values: list[float]) -> str:
    """The last values as bars, from their smallest to their largest."""
    shown = values[-SPARKLINE:]
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)
