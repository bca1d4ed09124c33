"""Checkpoints whose files were damaged, removed or exchanged: refused by name, and the one before is as good as new."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from tests import tiny
from tests.chaos.faults import damaged
from tests.chaos.protections import without
from tests.chaos.runs import attempt, digest
from tests.chaos.table import Book, Outcome

STEPS, KEPT = 3, 2
EACH = 10


def _bit(newest: Path, before: Path, rng: random.Random) -> None:
    path = _any_file(newest, rng)
    path.write_bytes(damaged(path.read_bytes(), rng))


def _gone(newest: Path, before: Path, rng: random.Random) -> None:
    _any_file(newest, rng).unlink()


def _cut(newest: Path, before: Path, rng: random.Random) -> None:
    path = _any_file(newest, rng)
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def _exchanged(newest: Path, before: Path, rng: random.Random) -> None:
    """One that both have, and that differs."""
    while True:
        path = _any_file(newest, rng)
        other = before / path.relative_to(newest)
        if path.read_bytes() != other.read_bytes():
            break
    ours, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(ours)


def _added(newest: Path, before: Path, rng: random.Random) -> None:
    path = _any_file(newest, rng)
    shutil.copy(path, path.with_name(f"model-{rng.randrange(10)}.safetensors"))


DAMAGES: dict[str, Callable[[Path, Path, random.Random], None]] = {
    "a bit of a file": _bit, "a file removed": _gone, "a file cut off": _cut, "files exchanged": _exchanged,
    "a file added": _added,
}  # fmt: skip


def _any_file(checkpoint: Path, rng: random.Random) -> Path:
    return rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.stat().st_size))


def recipe(output: Path, steps: int) -> Recipe:
    return parse_recipe(
        {
            "name": "run", "output": str(output), "steps": steps, "threads": 1,
            "student": {"model": tiny.folder_of("llama")}, "teacher": {"model": tiny.folder_of("llama-tied")},
            "task": {"kind": "arithmetic", "digits": 1, "train": 16, "held_out": 2},
            "rollout": {"temperature": 0.7, "max_tokens": 3, "prompts_per_step": 2},
            "learner": {"lr": 1e-3}, "eval": {"prompts": 1}, "record": {"every": 0},
            "checkpoint": {"every": 1, "keep_last": KEPT},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with two checkpoints."""
    output = tmp_path_factory.mktemp("stopped")
    api.train(recipe(output, STEPS))
    return output


@pytest.fixture(scope="module")
def expected(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that it goes on to."""
    return weights(copied(stopped, tmp_path_factory.mktemp("whole") / "output"))


def copied(stopped: Path, output: Path) -> Path:
    shutil.copytree(stopped, output)
    return output


def weights(output: Path, from_checkpoint: int | None = None) -> str:
    return digest(api.train(recipe(output, STEPS + 1), from_checkpoint=from_checkpoint).folder)


def damage(output: Path, how: str, seed: int) -> None:
    before, newest = sorted((output / "run" / "checkpoints").iterdir())
    DAMAGES[how](newest, before, random.Random(f"{seed} {how}"))


def disturb(stopped: Path, output: Path, how: str, seed: int, expected: str) -> Outcome:
    """Go on from a damaged checkpoint, and, if that is refused, from the one that the message names."""
    outcome = Outcome("checkpoint", how, seed, hits=1)
    damage(copied(stopped, output), how, seed)
    found, outcome.result, outcome.message = attempt(lambda: weights(output))
    if outcome.result == "refused" and (step := re.search(r"--from-checkpoint (\d+)", outcome.message)):
        found, result, message = attempt(lambda: weights(output, int(step[1])))
        if result != "same":
            outcome.result, outcome.message = "stuck", message
    if found is not None and found != expected:
        outcome.result = "WRONG WEIGHTS"
    return outcome


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_taken(
    how: str, stopped: Path, expected: str, tmp_path: Path, book: Book
) -> None:
    for number in range(EACH):
        outcome = disturb(stopped, tmp_path / str(number), how, book.seed + number, expected)
        book.add(outcome)
        assert not outcome.bad, outcome
        assert outcome.result == "refused", outcome  # every file of a checkpoint is known
        if how != "files exchanged":  # then neither is whole
            assert f"--from-checkpoint {STEPS - 1}" in outcome.message


def test_without_the_digests_of_files_a_flipped_bit_is_trained_on(
    stopped: Path, expected: str, tmp_path: Path, book: Book
) -> None:
    with without("file digest"):
        outcomes = [
            disturb(stopped, tmp_path / str(n), "a bit of a file", book.seed + n, expected) for n in range(EACH)
        ]
    assert any(outcome.result == "WRONG WEIGHTS" for outcome in outcomes), outcomes
