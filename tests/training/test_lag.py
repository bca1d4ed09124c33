"""Step n is sampled with the weights of update max(0, n - 1 - lag): a rule, whatever stops the run in between."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import limbeck
from limbeck.assemble.run import assemble
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.engines.hf import InProcessEngine
from limbeck.errors import EngineError, LimbeckError, RecipeError, RunError, TeacherError
from limbeck.learners import policy as policies
from limbeck.learners.local import LocalLearner
from limbeck.models.loading import load_model
from limbeck.seeding import derive_seed
from limbeck.testing import BigramEngine, CountingLearner, random_bigrams
from limbeck.training.collect import collect
from limbeck.training.prompt_order import PromptOrder
from limbeck.training.run_folder import RunFolder
from tests.helpers import learner_of, tiny_lm
from tests.killed_runs import train_killed
from tests.tiny_runs import table_of, without_clock
from tests.training.test_kept import fail_in

STEPS = 7


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sampled tokens count, so the importance ratio to the older weights matters; checkpoints fit no multiple."""
    return table_of(
        tmp_path_factory.mktemp("models"),
        steps=STEPS,
        objective={"divergence": "reverse_kl", "support": 4},
        eval={"every": 2, "prompts": 4},
        checkpoint={"every": 3, "keep_last": 3},
    )


def recipe(table: dict[str, Any], output: Path, lag: int = 2, **changes: Any) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes}, [f"rollout.lag={lag}"])


@pytest.fixture(scope="module")
def straight(table: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("straight")
    limbeck.train(recipe(table, output))
    return output


def weights(output: Path) -> bytes:
    return (output / "run" / "model" / "model.safetensors").read_bytes()


def deterministic(output: Path) -> list[dict[str, Any]]:
    """Metrics without what a clock says."""
    lines = RunFolder(output / "run").lines()
    return [without_clock(line) for line in lines]


def same_run(one: Path, other: Path) -> bool:
    answers = [sorted((path / "run" / "evaluations").iterdir()) for path in (one, other)]
    texts = [[path.read_bytes() for path in paths] for paths in answers]
    return weights(one) == weights(other) and deterministic(one) == deterministic(other) and texts[0] == texts[1]


@pytest.mark.parametrize("lag", [0, 1])
async def test_a_naive_loop_of_twenty_lines_gives_the_same_weights(
    table: dict[str, Any], tmp_path: Path, lag: int
) -> None:
    """Written from the rule alone: whole copies of the model, no engine that is shared, no pipeline."""
    chosen = recipe(table, tmp_path, lag, steps=5, record={"every": 0})
    run = (await assemble(chosen, RunFolder(tmp_path / "scratch"))).run
    order = PromptOrder(run.task.train, chosen.rollout.prompts_per_step, chosen.seed)
    learner = run.learner
    assert isinstance(learner, LocalLearner)
    sampler = load_model(chosen.student, torch.device("cpu"))
    sampler.vocabulary = learner.lm.vocabulary
    run.engine = InProcessEngine(sampler, chosen.engine, shared=False)
    copies = [(await learner.publish()).hold()]
    for n in range(1, 6):
        await run.engine.load(copies[max(0, n - 1 - lag)])
        sampling = run.sampling(derive_seed(chosen.seed, "step", n))
        collected = await collect(run, order.at(n - 1), sampling, chosen.rollout.samples_per_prompt)
        assert {int(v) for r in collected.rollouts for v in r.versions} == {max(0, n - 1 - lag)}
        await learner.update(collected.samples)
        copies.append((await learner.publish()).hold())
    (await learner.publish()).save(tmp_path / "naive")
    await run.close()
    limbeck.train(chosen)
    assert (tmp_path / "naive" / "model.safetensors").read_bytes() == weights(tmp_path)


def test_killed_anywhere_and_resumed(table: dict[str, Any], straight: Path, tmp_path: Path) -> None:
    kills = train_killed(recipe(table, tmp_path), tmp_path, random.Random(1), most=2, within=0.15)
    assert kills >= 1
    assert same_run(tmp_path, straight)


def test_the_weights_to_sample_from_are_in_each_checkpoint_and_sealed(
    table: dict[str, Any], straight: Path, tmp_path: Path
) -> None:
    found = {
        path.name: sorted(inner.name for inner in (path / "policies").iterdir())
        for path in sorted((straight / "run" / "checkpoints").iterdir())
    }
    assert found == {
        "step-000003": ["step-000001", "step-000002"],
        "step-000006": ["step-000004", "step-000005"],
        "step-000007": ["step-000005", "step-000006"],
    }
    shutil.copytree(straight, tmp_path, dirs_exist_ok=True)
    damaged = tmp_path / "run" / "checkpoints" / "step-000007" / "policies" / "step-000005" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    with pytest.raises(RunError, match=r"step-000005/model\.safetensors does not match .*--from-checkpoint 6"):
        limbeck.train(recipe(table, tmp_path))
    limbeck.train(recipe(table, tmp_path), from_checkpoint=6)
    assert same_run(tmp_path, straight)
    limbeck.train(recipe(table, tmp_path), from_checkpoint=3)
    assert same_run(tmp_path, straight)


def test_more_steps_go_on_with_the_same_rule(table: dict[str, Any], straight: Path, tmp_path: Path) -> None:
    for steps in (1, 4, STEPS):
        limbeck.train(recipe(table, tmp_path, steps=steps, eval={"every": 1, "prompts": 4}))
    limbeck.train(recipe(table, tmp_path / "b", eval={"every": 1, "prompts": 4}))
    assert weights(tmp_path) == weights(tmp_path / "b") == weights(straight)


def test_another_lag_is_refused_by_name_and_a_run_that_knew_none_has_lag_0(
    table: dict[str, Any], straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"another recipe: rollout\.lag \(2 then, 1 now\)"):
        limbeck.train(recipe(table, straight, 1))
    folder, now = RunFolder(tmp_path / "run"), recipe(table, tmp_path, 0).model_dump(mode="json", exclude_none=True)
    before = {**now, "rollout": {key: value for key, value in now["rollout"].items() if key != "lag"}}
    folder.open("", before)
    folder.save(1, lambda path: (path / "x").write_text("x") and None, None)
    folder.close()
    assert folder.open("", now) is not None
    folder.close()
    with pytest.raises(RunError, match=r"rollout\.lag \(0 then, 1 now\)"):
        folder.open("", {**now, "rollout": {**now["rollout"], "lag": 1}})
    folder.close()


def test_adapters_alone_are_kept_and_go_on(table: dict[str, Any], tmp_path: Path) -> None:
    lora = {"learner": {"lr": 1e-2, "lora": {"rank": 2}}, "record": {"every": 0}}
    limbeck.train(recipe(table, tmp_path / "a", steps=4, **lora))
    kept = tmp_path / "a" / "run" / "checkpoints" / "step-000004" / "policies" / "step-000003"
    assert {path.name for path in kept.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    limbeck.train(recipe(table, tmp_path / "a", steps=6, **lora))
    limbeck.train(recipe(table, tmp_path / "b", steps=6, **lora))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.parametrize("part", ["engine", "teacher"])
def test_a_later_step_that_fails_is_raised_as_that_step_after_the_updates_before_it(
    table: dict[str, Any], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, part: str
) -> None:
    from limbeck.teachers.local import LocalTeacher

    caplog.set_level(logging.ERROR, "asyncio")
    kind, error = (InProcessEngine, EngineError) if part == "engine" else (LocalTeacher, TeacherError)
    method = "sample" if part == "engine" else "score"
    honest, asked = getattr(kind, method), {"step": 0}

    async def fails(self: Any, unit: Any) -> Any:
        if len(unit) == 4 and asked["step"] >= 4:  # of evaluation and steps alike
            raise error(f"away at call {asked['step']}")
        asked["step"] += len(unit) == 4
        return await honest(self, unit)

    chosen = recipe(table, tmp_path, eval={"every": 0, "prompts": 3}, record={"every": 0}, checkpoint={"every": 0})
    with monkeypatch.context() as patch:
        patch.setattr(kind, method, fails)
        with pytest.raises(error, match="away at call 4"):
            limbeck.train(chosen)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000004"]
    assert not caplog.records, "no task is left behind"
    limbeck.train(chosen)
    assert weights(tmp_path) == weights(straight)


@pytest.mark.parametrize("phase", ["sample", "score", "publish"])
def test_a_signal_in_work_ahead_keeps_the_last_update(
    table: dict[str, Any], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    with monkeypatch.context() as patch:
        fail_in(phase, KeyboardInterrupt(), patch)
        with pytest.raises(KeyboardInterrupt):
            limbeck.train(recipe(table, tmp_path))
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept <= ["step-000003"]
    limbeck.train(recipe(table, tmp_path))
    assert same_run(tmp_path, straight)


def test_an_update_that_fails_discards_what_was_sampled_after_it(
    table: dict[str, Any], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LocalLearner._gradient

    def fails(self: LocalLearner, samples: Any) -> Any:
        if self.version == 3:
            raise LimbeckError("no update")
        return honest(self, samples)

    with monkeypatch.context() as patch:
        patch.setattr(LocalLearner, "_gradient", fails)
        with pytest.raises(LimbeckError, match="no update"):
            limbeck.train(recipe(table, tmp_path))
    limbeck.train(recipe(table, tmp_path))
    assert same_run(tmp_path, straight)


def test_a_learner_that_cannot_take_up_older_weights_is_refused_with_lag_alone(
    table: dict[str, Any], tmp_path: Path
) -> None:
    class Old(CountingLearner):
        restore_policy: Any = None  # as if it were not there

    bigrams = random_bigrams(len(tiny_lm(0).tokenizer))
    parts = {"learner": Old(bigrams), "engine": BigramEngine(bigrams)}
    with pytest.raises(RecipeError, match=r"rollout\.lag = 1 .*Old cannot take them up again.*restore_policy"):
        limbeck.train(recipe(table, tmp_path, 1), **parts)
    limbeck.train(recipe(table, tmp_path, 0, steps=1), **parts)


def test_a_signal_while_held_weights_are_put_back_spoils_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    learner = learner_of(tiny_lm(1), tiny_lm(2))
    held = asyncio.run(learner.publish()).hold()
    learner.save(tmp_path / "before")
    with torch.no_grad():
        for parameter in learner.lm.model.parameters():
            parameter.add_(1.0)
    learner.save(tmp_path / "after")

    def interrupted() -> None:
        if policies.DISPLACED:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(policies, "_put_back", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(held.tensors())
    learner.save(tmp_path / "kept")
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("before", "after", "kept")]
    assert files[0] != files[1] == files[2]


def test_lines_say_how_old_the_samples_are_and_who_waited(
    straight: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    steps = [line for line in RunFolder(straight / "run").lines() if line["kind"] == "train"]
    assert [line["lag"] for line in steps] == [0, 1, 2, 2, 2, 2, 2]
    assert all(line[f"seconds/wait/{role}"] >= 0 for line in steps for role in ("sample", "score", "update"))
    assert all("teacher_share" not in line for line in steps)
    limbeck.train(recipe(table, tmp_path, 0, steps=1))
    (plain,) = [line for line in RunFolder(tmp_path / "run").lines() if line["kind"] == "train"]
    assert "lag" not in plain
    assert not [key for key in plain if "wait" in key]
    assert json.dumps(plain["teacher_share"])
