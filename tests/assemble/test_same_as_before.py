"""A run does not go on with another teacher or reference than it began with, though the recipe reads the same."""

from __future__ import annotations

from pathlib import Path

import pytest

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import ContractError
from tests import tiny


def recipe(folder: Path, steps: int) -> Recipe:
    return parse_recipe(
        {
            "steps": steps,
            "threads": 1,
            "output": str(folder),
            "student": {"model": tiny.folder_of("llama")},
            "teacher": {"model": str(folder / "teacher")},
            "task": {"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4},
            "objective": {"reference": {"model": str(folder / "reference"), "weight": 0.5}},
            "eval": {"prompts": 4},
            "record": {"every": 0},
            "checkpoint": {"every": 1},
        }
    )


@pytest.mark.parametrize("changed", ["teacher", "reference"])
def test_a_model_folder_that_was_written_anew_is_found_on_resuming(tmp_path: Path, changed: str) -> None:
    for name in ("teacher", "reference"):
        tiny.save(tmp_path / name, seed=1)
    limbeck.train(recipe(tmp_path, 1))
    limbeck.train(recipe(tmp_path, 2))  # nothing changed
    tiny.save(tmp_path / changed, seed=2)
    with pytest.raises(ContractError, match=rf"{changed}.* is another one than this run began with.* nats away"):
        limbeck.train(recipe(tmp_path, 3))
    tiny.save(tmp_path / changed, seed=1)
    assert len(limbeck.train(recipe(tmp_path, 3)).steps) == 3


def flip_the_least(folder: Path) -> None:
    """A bit of a weight that changes no score by more than rounding does."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("changed", ["teacher", "reference", "student"])
def test_one_bit_of_a_model_folder_is_found_on_resuming(tmp_path: Path, changed: str) -> None:
    """Of the student only where it is read again: with adapters."""
    for name in ("teacher", "reference", "student"):
        tiny.save(tmp_path / name, seed=1)

    def train(steps: int) -> int:
        table = recipe(tmp_path, steps).model_dump(mode="json", exclude_none=True)
        table["student"] = {"model": str(tmp_path / "student")}
        table["learner"] = {"lora": {"rank": 2}}
        return len(limbeck.train(parse_recipe(table)).steps)

    train(1)
    flip_the_least(tmp_path / changed)
    with pytest.raises(ContractError, match=rf"{changed} is another one than this run began with: its weights have"):
        train(2)
    flip_the_least(tmp_path / changed)
    assert train(2) == 2
