"""A run that is killed with SIGKILL, wherever it is, ends with the weights of one that was not.

Children are forked from a clean server that has the imports done, so a kill costs no start-up.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import RunError
from limbeck.training.run_folder import RunFolder
from tests.helpers import save_tiny
from tests.killed_runs import context, train_killed
from tests.tiny_runs import without_clock

STEPS = 14


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A recipe of tiny models with dropout, so that random state would show."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "steps": STEPS,
        "threads": 1,
        "student": {"model": save_tiny(folder / "student", 1, dropout=0.1)},
        "teacher": {"model": save_tiny(folder / "teacher", 2)},
        "task": {"kind": "arithmetic", "digits": 2, "train": 40, "held_out": 8},
        "rollout": {"temperature": 0.7, "max_tokens": 6, "prompts_per_step": 8, "samples_per_prompt": 2},
        "objective": {"divergence": "reverse_kl", "support": 4, "discount": 0.5},
        "learner": {"lr": 1e-2, "schedule": "linear", "warmup_steps": 3},
        "eval": {"every": 5, "prompts": 8},
        "checkpoint": {"every": 3, "keep_last": 2},
    }


def recipe(table: dict, output: Path, **changes: object) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes})


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()


def deterministic(lines: list[dict]) -> list[dict]:
    """Metrics without what a clock says."""
    return [without_clock(line) for line in lines]


@pytest.fixture(scope="module")
def straight(table: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    limbeck.train(recipe(table, output))
    return output


def test_the_same_seed_twice_gives_the_same_weights(table: dict, straight: Path, tmp_path: Path) -> None:
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)


def test_another_seed_gives_other_weights(table: dict, straight: Path, tmp_path: Path) -> None:
    limbeck.train(recipe(table, tmp_path, seed=1))
    assert weights(tmp_path) != weights(straight)


@pytest.mark.parametrize("attempt", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_killed_anywhere_and_resumed(table: dict, straight: Path, tmp_path: Path, attempt: int) -> None:
    """Up to four kills a run, at random moments after the first step was logged."""
    kills = train_killed(recipe(table, tmp_path), tmp_path, random.Random(attempt), most=4, within=0.1)
    assert kills >= 1
    assert weights(tmp_path) == weights(straight)
    lines, expected = (RunFolder(path / "run").lines() for path in (tmp_path, straight))
    assert deterministic(lines) == deterministic(expected)


def test_resuming_a_finished_run_changes_nothing(table: dict, straight: Path) -> None:
    before = weights(straight)
    result = limbeck.train(recipe(table, straight))
    assert weights(straight) == before
    assert len(result.steps) == result.start == STEPS


def test_killed_between_the_last_checkpoint_and_the_finished_model(table: dict, straight: Path, tmp_path: Path) -> None:
    limbeck.train(recipe(table, tmp_path))
    shutil.rmtree(tmp_path / "run" / "model")
    limbeck.train(recipe(table, tmp_path))
    assert weights(tmp_path) == weights(straight)


def test_more_steps_go_on_from_the_last_checkpoint(table: dict, tmp_path: Path) -> None:
    constant = {**table, "learner": {"lr": 1e-2}}
    limbeck.train(recipe(constant, tmp_path / "short", steps=4))
    limbeck.train(recipe(constant, tmp_path / "short", steps=6))
    limbeck.train(recipe(constant, tmp_path / "long", steps=6))
    assert weights(tmp_path / "short") == weights(tmp_path / "long")


def test_another_recipe_in_the_same_folder_is_refused(table: dict, straight: Path) -> None:
    changed = {**table, "rollout": {**table["rollout"], "temperature": 1.0}}
    with pytest.raises(RunError, match=r"another recipe: rollout\.temperature \(0\.7 then, 1\.0 now\)") as caught:
        limbeck.train(recipe(changed, straight))
    assert f"add student.model={straight / 'run' / 'model'} to the other name" in str(caught.value)
    assert (straight / "run" / "recipe.toml").read_text().count("temperature = 0.7") == 1


def test_fresh_starts_over(table: dict, tmp_path: Path) -> None:
    limbeck.train(recipe(table, tmp_path, steps=2))
    changed = {**table, "rollout": {**table["rollout"], "temperature": 1.0}}
    result = limbeck.train(recipe(changed, tmp_path, steps=2), fresh=True)
    assert [line["step"] for line in result.steps] == [1, 2]


def test_a_folder_in_use_is_refused(table: dict, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open("", {})
    with pytest.raises(RunError, match="in use by another process"):
        limbeck.train(recipe(table, tmp_path))
    folder.close()


def train_with_file_limit(recipe: Recipe, limit: int) -> None:
    """Writes past `limit` bytes fail, as on a full disk."""
    import resource
    import sys

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        limbeck.train(recipe)
    except RunError as error:
        sys.exit(7 if "earlier checkpoints are intact" in str(error) else f"unexpected: {error}")


def test_a_disk_that_fills_up_stops_the_run_and_spoils_nothing(table: dict, straight: Path, tmp_path: Path) -> None:
    """The second of the checkpoints cannot be written; with room again the run ends as if nothing was."""
    limbeck.train(recipe({**table, "learner": {"lr": 1e-2}}, tmp_path, steps=3))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    longer = recipe({**table, "learner": {"lr": 1e-2}}, tmp_path, steps=6)
    child = context.Process(target=train_with_file_limit, args=(longer, 30_000))
    child.start()
    child.join()
    assert child.exitcode == 7
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step-000003"]
    limbeck.train(longer)
    limbeck.train(recipe({**table, "learner": {"lr": 1e-2}}, tmp_path / "straight", steps=6))
    assert weights(tmp_path) == weights(tmp_path / "straight")
