"""Every seam takes a part of one's own: by a factory in the recipe, and as an object from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import ContractError, DataError, RecipeError
from limbeck.testing import (
    BigramEngine,
    BigramTeacher,
    CountingLearner,
    FakeTask,
    PlainReverseKL,
    Recorder,
    random_bigrams,
)
from tests import own_parts, tiny

V = tiny.VOCABULARY
PROMPTS = {f"p{n}": [5 + n, 6 + n] for n in range(8)}


def recipe(output: Path, **tables: Any) -> Recipe:
    own = {"kind": "python"}
    return parse_recipe(
        {
            "steps": 3,
            "threads": 1,
            "output": str(output),
            "student": {"model": tiny.folder_of("llama")},
            "rollout": {"temperature": 0.7, "max_tokens": 5, "prompts_per_step": 8, "samples_per_prompt": 2},
            "eval": {"prompts": 2, "samples_per_prompt": 64},
            "checkpoint": {"every": 2},
            "teacher": {**own, "factory": "tests.own_parts:teacher", "seed": 3},
            "task": {**own, "factory": "tests.own_parts:task", "prompts": 10},
            "engine": {**own, "factory": "tests.own_parts:engine"},
            "objective": {"divergence": "python", "factory": "tests.own_parts:objective", "support": 8},
            "learner": {**own, "factory": "tests.own_parts:learner", "lr": 2e-2},
            "trackers": [{**own, "factory": "tests.own_parts:tracker"}],
            **tables,
        }
    )


def test_a_run_through_a_factory_of_every_seam_at_once(tmp_path: Path) -> None:
    """And the plain reverse KL trains as the built-in one does."""
    result = limbeck.train(recipe(tmp_path))
    made = dict(own_parts.MADE)
    assert made["engine"].loaded == [0, 1, 2, 3]
    assert made["learner"].version == 3
    assert made["learner"].loss.objective is made["objective"]
    assert {request.support for request in made["teacher"].calls if request.id.startswith("p")} == {8}
    assert {response for _, response in made["task"].graded}
    assert [line["step"] for line in made["tracker"].steps] == [1, 2, 3] == [line["step"] for line in result.steps]
    ours = limbeck.train(recipe(tmp_path, name="ours", objective={"divergence": "reverse_kl", "support": 8}))
    assert [s["objective"] for s in result.steps] == pytest.approx([s["objective"] for s in ours.steps], abs=1e-4)
    saved, trained = load_file(result.folder / "model" / "model.safetensors"), made["learner"].lm.model.state_dict()
    for name, tensor in saved.items():
        assert tensor.equal(trained[name])
    assert abs(result.steps[-1]["mismatch"]) < 1e-4, "the engine's copy is the learner's weights"


def test_such_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    straight = limbeck.train(recipe(tmp_path / "a"))
    limbeck.train(recipe(tmp_path / "b", steps=2))
    resumed = limbeck.train(recipe(tmp_path / "b"))
    assert own_parts.MADE["engine"].loaded == [2, 3]
    files = [run.folder / "model" / "model.safetensors" for run in (straight, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_objects_take_the_place_of_the_recipes_parts(tmp_path: Path) -> None:
    table, seen = random_bigrams(V, 5), Recorder()
    learner, engine, teacher = CountingLearner(table), BigramEngine(table, max_rows=4), BigramTeacher(random_bigrams(V))
    parts = recipe(tmp_path, trackers=[])
    result = limbeck.train(
        parts,
        teacher=teacher,
        task=FakeTask(PROMPTS, held_out=2),
        engine=engine,
        objective=PlainReverseKL(),
        learner=learner,
        observers=[seen],
    )
    assert learner.version == 3 == len(result.steps)
    assert engine.loaded == [0, 1, 2, 3]
    assert max(len(unit) for unit in engine.units) == 4
    assert {sample.scores.temperature for step in learner.seen for sample in step} == {0.7}  # type: ignore[union-attr]
    assert seen.events[0] == "started 0/3"
    assert seen.events[-1] == "closed"


def test_a_teacher_of_ones_own_is_proven_like_any_other(tmp_path: Path) -> None:
    stuck = BigramTeacher(random_bigrams(V), stuck_at=1.0)
    with pytest.raises(ContractError, match="temperature"):
        limbeck.train(recipe(tmp_path), teacher=stuck)


def test_a_task_of_ones_own_is_checked(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the given task: prompt 'b' has the token id 103"):
        limbeck.train(recipe(tmp_path), task=FakeTask({"a": [1], "b": [V + 3]}))


@pytest.mark.parametrize("seam", ["teacher", "task", "engine", "learner"])
def test_a_factory_that_is_not_there_is_named_with_its_key(tmp_path: Path, seam: str) -> None:
    with pytest.raises(RecipeError, match=rf"{seam}\.factory = 'tests\.own_parts:nobody'"):
        limbeck.train(recipe(tmp_path, **{seam: {"kind": "python", "factory": "tests.own_parts:nobody"}}))


def test_options_that_a_factory_does_not_take_are_named(tmp_path: Path) -> None:
    wrong = {"kind": "python", "factory": "tests.own_parts:teacher", "sead": 3}
    with pytest.raises(RecipeError, match="sead"):
        limbeck.train(recipe(tmp_path, teacher=wrong))


async def test_training_inside_a_running_event_loop(tmp_path: Path) -> None:
    """As in a notebook."""
    seen = Recorder()
    result = limbeck.train(recipe(tmp_path, steps=1), observers=[seen])
    assert len(result.steps) == len(seen.steps) == 1


def test_an_objective_whose_factory_returns_nothing_is_named(tmp_path: Path) -> None:
    nothing = {"divergence": "python", "factory": "tests.own_parts:nothing", "support": "sampled"}
    with pytest.raises(RecipeError, match="objective NoneType has no method pull"):
        limbeck.train(recipe(tmp_path, objective=nothing))


@pytest.mark.parametrize("seam", ["teacher", "engine", "learner"])
def test_a_factory_that_returns_nothing_is_named(tmp_path: Path, seam: str) -> None:
    with pytest.raises(RecipeError, match=f"{seam}: None has no "):
        limbeck.train(recipe(tmp_path, **{seam: {"kind": "python", "factory": "tests.own_parts:nothing"}}))


def test_an_observer_that_raises_changes_nothing(tmp_path: Path) -> None:
    class Broken(Recorder):
        def started(self, step: int, steps: int) -> None:
            raise ValueError("x")

    result = limbeck.train(recipe(tmp_path, steps=1), observers=[Broken()])
    assert len(result.steps) == 1
