"""Names of what a run numbers by its steps, such as `checkpoints/step-000050`; sorted as numbers, not as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

STEP = re.compile(r"step-(\d{6,})")


def step_name(step: int, suffix: str = "") -> str:
    """
    >>> step_name(50), step_name(1_000_000, ".parquet")
    ('step-000050', 'step-1000000.parquet')
    """
    return f"step-{step:06d}{suffix}"


def step_of(name: str, suffix: str = "") -> int | None:
    """The step in a name that `step_name` writes; None for any other.

    >>> step_of("step-000050.parquet", ".parquet"), step_of("step-000050 (copy)"), step_of(".step-000050")
    (50, None, None)
    """
    match = STEP.fullmatch(name.removesuffix(suffix))
    step = int(match[1]) if match else None
    return step if step is not None and step_name(step, suffix) == name else None


def numbered(folder: Path, suffix: str = "") -> list[tuple[int, Path]]:
    """Steps and paths in `folder`, in the order of the steps. Whatever has another name is not of a run.

    Empty where there is no such folder. Raises `OSError` where it cannot be read.
    """
    try:
        found = [(step_of(path.name, suffix), path) for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((step, path) for step, path in found if step is not None)


def hidden_of_steps(folder: Path, suffix: str, endings: Sequence[str]) -> list[Path]:
    """Paths such as `.step-000050.half`: the hidden forms of what `numbered` finds. Other dot files are left alone."""
    if not folder.is_dir():
        return []
    hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
    return [path for path in hidden if any(_is_hidden_step(path.name, suffix, ending) for ending in endings)]


def _is_hidden_step(name: str, suffix: str, ending: str) -> bool:
    return name.endswith(ending) and step_of(name.removeprefix(".").removesuffix(ending), suffix) is not None
