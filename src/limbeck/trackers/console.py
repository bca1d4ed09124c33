"""What a person sees while a run goes on: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
SPARKLINE = 48
LIVE_ROWS = (
    ("reverse KL", ("reverse_kl/exact", "reverse_kl/sampled"), "{:.4f} nats/token"),
    ("reward", ("reward",), "{:.3f}"),
    ("entropy", ("entropy/student",), "{:.3f} nats"),
    ("length", ("response_length/mean",), "{:.1f} tokens"),
    ("gradient", ("grad_norm",), "{:.3f}"),
    ("speed", ("tokens_per_second/step",), "{:,.0f} tokens/s"),
)


class LiveConsole:
    """A panel that is redrawn in place: phase, progress, time left, the few numbers that matter."""

    def __init__(self, title: str, console: Console) -> None:
        self.title, self.console = title, console
        self.history: dict[str, list[float]] = {}
        self.evaluations: list[Text] = []
        self.alarms: dict[str, tuple[int, int, str]] = {}  # by name: how often, last step, its text
        self.step = self.steps = self.first = 0
        self.phase_name, self.began = "loading", time.monotonic()
        self.live = Live(self._panel(), console=console, refresh_per_second=4, transient=False)

    def started(self, step: int, steps: int) -> None:
        self.step = self.first = step
        self.steps, self.began = steps, time.monotonic()
        if step:
            self.console.print(f"resuming after step {step} of {steps}", highlight=False)
        self.live.start()

    def phase(self, step: int, name: str) -> None:
        self.phase_name = name
        self.live.update(self._panel())

    def stepped(self, line: Mapping[str, Any]) -> None:
        self.step = line["step"]
        for name, value, _ in shown_values(line):
            self.history.setdefault(name, []).append(value)
        for alarm in line["alarms"]:  # one that comes at every step is one line, and hides nothing else
            times = self.alarms.get(alarm["name"], (0, 0, ""))[0] + 1
            self.alarms[alarm["name"]] = (times, line["step"], alarm["message"])
        self.live.update(self._panel())

    def evaluated(self, line: Mapping[str, Any]) -> None:
        self.evaluations.append(Text(describe_evaluation(line), style="cyan"))
        self.live.update(self._panel())

    def closed(self) -> None:
        self.phase_name = "done" if self.step == self.steps else "stopped"
        self.live.update(self._panel())
        self.live.stop()

    def _panel(self) -> RenderableType:
        done, left = self.step - self.first, self.steps - self.step
        elapsed = time.monotonic() - self.began
        remaining = f"{duration(elapsed / done * left)} left" if done and left else ""
        header = Table.grid(padding=(0, 2))
        header.add_row(
            Text(self.title, style="bold"),
            Text(f"step {self.step}/{self.steps}"),
            ProgressBar(total=max(1, self.steps), completed=self.step, width=30),
            Text(duration(elapsed), style="dim"),
            Text(remaining, style="dim"),
            Text(self.phase_name, style="magenta"),
        )
        rows = Table.grid(padding=(0, 2))
        for name, _, form in LIVE_ROWS:
            if values := self.history.get(name):
                rows.add_row(Text(name, style="dim"), form.format(values[-1]), Text(sparkline(values), style="green"))
        alarms = [
            Text(f"▲ {name}{f' ({times} times)' if times > 1 else ''}, step {step}: {message}", style="yellow")
            for name, (times, step, message) in self.alarms.items()
        ]
        return Group(header, rows, *self.evaluations[-3:], *alarms)


class PlainConsole:
    """One line a step, for logs. With `as_json`, the lines of `metrics.jsonl` themselves."""

    def __init__(self, as_json: bool = False, every: int = 1) -> None:
        self.as_json, self.every = as_json, every
        self.first = self.steps = 0
        self.began = time.monotonic()

    def started(self, step: int, steps: int) -> None:
        self.first, self.steps, self.began = step, steps, time.monotonic()
        if not self.as_json and step:
            print(f"resuming after step {step} of {steps}", flush=True)

    def phase(self, step: int, name: str) -> None:
        """Phases are too fine for a log."""

    def stepped(self, line: Mapping[str, Any]) -> None:
        if self.as_json:
            print(json.dumps(line), flush=True)
            return
        if line["step"] % self.every == 0:
            shown = [f"{name} {form.format(value)}" for name, value, form in shown_values(line)]
            done, left = line["step"] - self.first, self.steps - line["step"]
            if done > 0 and left > 0:
                shown.append(f"{duration((time.monotonic() - self.began) / done * left)} left")
            print(f"step {line['step']}/{self.steps}: " + "  ".join(shown), flush=True)
        for alarm in line["alarms"]:
            print(f"step {line['step']}: ALARM {alarm['name']}: {alarm['message']}", flush=True)

    def evaluated(self, line: Mapping[str, Any]) -> None:
        print(json.dumps(line) if self.as_json else describe_evaluation(line), flush=True)

    def closed(self) -> None: ...


def make_console(title: str, quiet: bool = False, as_json: bool = False) -> LiveConsole | PlainConsole | None:
    """The display for this terminal: live, plain, JSON lines, or none."""
    if as_json:
        return PlainConsole(as_json=True)
    if quiet:
        return None
    console = Console()
    return LiveConsole(title, console) if console.is_terminal and sys.stdout.isatty() else PlainConsole()


def shown_values(line: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """The few numbers that matter, as (name, value, format): of each, the first key that the line has."""
    return [
        (name, line[key], form)
        for name, keys, form in LIVE_ROWS
        for key in [next((key for key in keys if key in line), None)]
        if key is not None
    ]


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def describe_evaluation(line: Mapping[str, Any]) -> str:
    """One line of an evaluation, for people."""
    parts = [f"evaluation at step {line['step']}:"]
    if "accuracy" in line:
        parts.append(f"accuracy {line['accuracy']:.3f} [{line['accuracy/low']:.3f}, {line['accuracy/high']:.3f}]")
    parts += [f"{key} {value:.3f}" for key, value in line.items() if key.startswith("pass@") and key != "pass@1"]
    for key in ("reverse_kl/exact", "reverse_kl/sampled"):
        if key in line:
            parts.append(f"reverse KL {line[key]:.4f} ± {line.get(key + '/se', 0):.4f} nats/token")
            break
    return "  ".join(parts)


def sparkline(values: list[float]) -> str:
    """The last values as bars, from their smallest to their largest."""
    shown = values[-SPARKLINE:]
    low, high = min(shown), max(shown)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)
