"""The runs under a path, and what their files say about them."""

from __future__ import annotations

import math
import time
import tomllib
from pathlib import Path
from threading import Lock
from typing import Any

from limbeck.errors import RunError
from limbeck.files.disk import open_file
from limbeck.files.names import numbered
from limbeck.formatting import shown
from limbeck.view.disagreement import Disagreement
from limbeck.view.evaluations import Evaluations
from limbeck.view.metrics import MAX_STEP, read_metrics
from limbeck.view.reading import first_line, stamp_of
from limbeck.view.rollouts import Rollouts
from limbeck.view.summary import MetricsSummary, is_alive, read_history

RUN_FILES = ("metrics.jsonl", "recipe.toml", "rollouts")  # any of them makes a folder a run's
MAX_RECIPE = 2**20  # bytes
FOLDERS = {"rollouts": ".parquet", "evaluations": ".jsonl"}
LIVE_SECONDS = 120  # a run whose files changed this recently, and that has steps left, is going on


class RunFiles:
    """One run's folder, read only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rollouts = Rollouts(path / "rollouts")
        self.evaluations = Evaluations(path / "evaluations")
        self.disagreement = Disagreement(self.rollouts)
        self._summary = MetricsSummary(path / "metrics.jsonl")
        self.changes = 0
        self._seen: tuple[Any, ...] = ()
        self._described: dict[str, Any] = {}

    def metrics(self, offset: int = 0) -> dict[str, Any]:
        """Columns of `metrics.jsonl` from `offset` on, and how long ago the file changed."""
        metrics = read_metrics(self.path / "metrics.jsonl", offset)
        return {**metrics.as_json(), "changed_seconds_ago": self._age()}

    def describe(self) -> dict[str, Any]:
        """What heads the page and fills the table of runs. `changes` counts how often it was another."""
        files = [stamp_of(self.path / name) for name in ("recipe.toml", "metrics.jsonl", "history.jsonl", *FOLDERS)]
        alive = is_alive(self._described.get("history", {}))
        before, self._seen = self._seen, (*files, alive)
        if before == self._seen:
            return {**self._described, "changed_seconds_ago": self._age()}
        recipe, written, problems = self._recipe()
        history = read_history(self.path / "history.jsonl")
        self._described = {
            "id": self.path.name,
            "folder": str(self.path),
            "recipe": recipe,
            "written": written,
            "steps": recipe.get("steps"),
            "live_seconds": LIVE_SECONDS,
            "summary": self._summary.read(),
            "history": history,
            "changed": None if files[1] is None else files[1][2] / 1e9,
            "alive": is_alive(history),
            "recorded": {name: _holds(self.path / name, ending) for name, ending in FOLDERS.items()},
            "problems": problems,
        }
        self.changes += 1
        return {**self._described, "changed_seconds_ago": self._age()}

    def _recipe(self) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
        """The recipe for JSON, the same with each value as TOML, and what is wrong with it."""
        try:
            with open_file(self.path / "recipe.toml") as file:
                data = file.read(MAX_RECIPE + 1)
            if len(data) > MAX_RECIPE:
                raise ValueError(f"it has more than {MAX_RECIPE:,} bytes")
            read = tomllib.loads(data.decode())
            recipe, written = _jsonable(read), _written(read)
        except FileNotFoundError:
            return {}, {}, ["recipe.toml is missing: what the run was asked to do is not known."]
        except (OSError, ValueError, RecursionError) as error:
            return {}, {}, [f"recipe.toml cannot be read: {first_line(error)}."]
        steps = recipe.get("steps")
        if steps is None or (isinstance(steps, int) and not isinstance(steps, bool) and 0 < steps <= MAX_STEP):
            return recipe, written, []
        return (
            {**recipe, "steps": None},
            written,
            [f"recipe.toml has steps = {shown(steps)}, expected a number above 0."],
        )

    def _age(self) -> float | None:
        try:
            return max(0.0, time.time() - (self.path / "metrics.jsonl").stat().st_mtime)
        except OSError:
            return None


class Runs:
    """The run at `path`, or the runs in it: whichever it is. Looks again each time it is asked."""

    def __init__(self, path: Path) -> None:
        self._known: dict[str, RunFiles] = {}
        self._versions: dict[str, tuple[int, int]] = {}  # changes of a run, and the version in which they came
        self._version = int(time.time() * 1000)  # above that of an earlier server, which a page may still know
        self._describing = Lock()
        try:
            self.path = path.resolve()
            found = self.path.is_dir()
        except (OSError, ValueError, RuntimeError):  # too long, NUL, a loop of links
            found = False
        if not found:
            raise RunError(f"no folder at {path}. Give a run's folder such as runs/demo, or one that holds runs.")

    def all(self) -> list[RunFiles]:
        """In the order of their names."""
        try:
            folders = [self.path] if _is_run(self.path) else sorted(p for p in self._children() if _is_run(p))
        except OSError as error:  # removed or locked since
            raise RunError(f"{self.path} cannot be read: {error.strerror or error}.") from None
        return [self._known.setdefault(folder.name, RunFiles(folder)) for folder in folders]

    def get(self, id_: str) -> RunFiles:
        """Raises `RunError` for a run that is not there."""
        for run in self.all():
            if run.path.name == id_:
                return run
        raise RunError(f"there is no run {shown(id_)} in {self.path}. Reload the page.")

    def describe(self, since: int = 0) -> dict[str, Any]:
        """All runs' names, what is known of those that changed after version `since`, and the version now."""
        with self._describing:
            runs, changed = self.all(), []
            self._version += 1
            for run in runs:
                description, name = run.describe(), run.path.name
                if self._versions.get(name, (0, 0))[0] != run.changes:
                    self._versions[name] = (run.changes, self._version)
                if self._versions[name][1] > since:
                    changed.append(description)
            problems = [] if runs else [f"There is no run in {self.path} yet: `limbeck demo` makes one in minutes."]
            ids = [run.path.name for run in runs]
            return {
                "folder": self.path.name,
                "ids": ids,
                "runs": changed,
                "problems": problems,
                "version": self._version,
            }

    def _children(self) -> list[Path]:
        return [path for path in self.path.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _holds(folder: Path, ending: str) -> bool:
    try:
        return bool(numbered(folder, ending))
    except OSError:  # said where its files are shown
        return False


def _is_run(path: Path) -> bool:
    try:
        return any((path / name).exists() for name in RUN_FILES)
    except OSError:  # somebody else's folder, which hides none of ours
        return False


def _jsonable(value: Any) -> Any:
    """TOML's dates, infinities and NaN as text; the rest is JSON's already."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int) and abs(value) > MAX_STEP:
        return str(value)
    return value if isinstance(value, str | int) else str(value)


def _written(table: dict[str, Any]) -> dict[str, Any]:
    """Each value of a recipe as TOML: JSON does not tell 1.0 from 1, and has no dates."""
    return {key: _written(item) if isinstance(item, dict) else _toml(item) for key, item in table.items()}


def _toml(value: Any) -> str:
    """In one line.

    >>> _toml([{"lr": 1.0, "a b": 2}])
    '[{ lr = 1.0, "a b" = 2 }]'
    """
    import tomli_w

    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        items = ", ".join(
            f"{tomli_w.dumps({key: 0}).partition(' = ')[0]} = {_toml(item)}" for key, item in value.items()
        )
        return f"{{ {items} }}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")
