"""A run's folder in which anything was changed: `train` goes on to the same weights, or says what is wrong."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.faults import damaged
from tests.chaos.runs import attempt
from tests.chaos.table import Book
from tests.chaos.test_checkpoints import copied, expected, stopped, weights

__all__ = ["expected", "stopped"]  # fixtures

EACH = 4
TEXTS = (
    b"", b"\n", b"{}", b"[]", b"null", b"[" * 5000, b'{"step": 1e999}', b'{"format": 2}', b"\xff\xfe", b"\x00" * 40,
    b"7" * 5000, b'{"step": "1", "kind": "train"}\n', b"name = 1\n", b"[teacher]\n", b'{"step": true}\n',
)  # fmt: skip


def _text(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.choice(TEXTS))


def _bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(damaged(path.read_bytes() or b"x", rng))


def _doubled(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() * 2)


def _folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.symlink_to(rng.choice([path.name, "/dev/null", "/nowhere", ".."]))


def _pipe(path: Path, rng: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _neighbour(path: Path, rng: random.Random) -> None:
    """Something else beside it, under a name that it may be taken for."""
    name = rng.choice(
        ["step-", "step-1", "step-000009", "step-x", ".step-000004.half", "model", "a\nb", ".lock", "..."]
    )
    other = path.with_name(name)
    if not other.exists():
        shutil.copy(path, other) if rng.random() < 0.5 else other.mkdir()


def _gone(path: Path, rng: random.Random) -> None:
    path.unlink()


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "other text": _text, "a bit": _bytes, "twice": _doubled, "a folder": _folder, "a link": _link, "a pipe": _pipe,
    "a neighbour": _neighbour, "removed": _gone,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_anything_in_a_runs_folder(way: str, stopped: Path, expected: str, tmp_path: Path, book: Book) -> None:
    for number in range(EACH):
        output = copied(stopped, tmp_path / str(number))
        rng = random.Random(f"{book.seed} {way} {number}")
        files = sorted(path for path in (output / "run").rglob("*") if path.is_file() and path.name != ".lock")
        few = [path for path in files if "model" not in path.parts]  # the others are many, and alike
        path = rng.choice(few if rng.random() < 0.8 else files)
        WAYS[way](path, rng)
        found, result, message = attempt(lambda output=output: weights(output))  # type: ignore[misc]
        assert result in ("same", "refused"), (way, path.relative_to(output), message)
        assert found in (None, expected), (way, path.relative_to(output))
