"""What a run does when something goes wrong in the middle of it, and what it logs."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import DataError, EngineError, LimbeckError, NonFiniteError
from limbeck.models.states import LocalStates
from limbeck.records import Failure, HiddenScores
from limbeck.teachers.local import LocalTeacher
from tests.tiny_runs import save_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


def recipe(models: Path, output: Path, *overrides: str) -> Recipe:
    table = {
        "steps": 4,
        "threads": 1,
        "output": str(output),
        "student": {"model": str(models / "student")},
        "teacher": {"model": str(models / "teacher")},
        "task": {"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4},
        "rollout": {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4},
        "checkpoint": {"every": 1},
        "eval": {"prompts": 4},
        "record": {"every": 0},
    }
    return parse_recipe(table, overrides)


def poison_from(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From update `step` on, the teacher's first answer holds a NaN."""
    honest, calls = LocalTeacher.score, 0

    async def score(self, unit):
        nonlocal calls
        scores = await honest(self, unit)
        calls += len(unit) == 4 and unit[0].id.startswith("arithmetic")
        if calls > step:  # the first such call is the evaluation's
            first = scores[0]
            assert isinstance(first, HiddenScores)
            scores[0] = replace(first, states=LocalStates(torch.full_like(first.states.fetch(), float("nan"))))
        return scores

    monkeypatch.setattr(LocalTeacher, "score", score)


def test_a_non_finite_step_stops_with_its_samples_and_resumes(models, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        poison_from(3, patch)
        with pytest.raises(NonFiniteError, match=r"update 3 .*nothing was updated.*non_finite/step-000003\.jsonl"):
            limbeck.train(recipe(models, tmp_path / "a"))
    rows = [json.loads(x) for x in (tmp_path / "a/run/non_finite/step-000003.jsonl").read_text().splitlines()]
    assert len(rows) == 1
    assert {"prompt_id", "token_ids", "response"} <= rows[0].keys()
    limbeck.train(recipe(models, tmp_path / "a"))
    limbeck.train(recipe(models, tmp_path / "b"))
    a, b = ((tmp_path / x / "run/model/model.safetensors").read_bytes() for x in "ab")
    assert a == b
    history = [json.loads(line) for line in (tmp_path / "a/run/history.jsonl").read_text().splitlines()]
    assert [line.get("outcome") for line in history] == [None, "failed", None, "finished"]
    assert [line["step"] for line in history] == [0, 2, 2, 4]
    assert "update 3" in history[1]["message"]


def test_a_teacher_that_fails_stops_the_step(models, tmp_path, monkeypatch) -> None:
    honest = LocalTeacher.score

    async def score(self, unit):
        scores = await honest(self, unit)
        if unit[0].id.startswith("arithmetic"):
            scores[1] = Failure(unit[1].id, "score", "timeout", "no answer in 60 s")
        return scores

    monkeypatch.setattr(LocalTeacher, "score", score)
    with pytest.raises(LimbeckError, match=r"1 of 4 responses could not be scored.*timeout: no answer in 60 s"):
        limbeck.train(recipe(models, tmp_path))


def test_weights_that_blow_up_are_distinguished_from_the_sampler(models, tmp_path) -> None:
    decay = "learner.weight_decay=100", "learner.lr=100"  # each step multiplies the weights by -9999
    with pytest.raises((EngineError, NonFiniteError), match=r"learner\.lr"):
        limbeck.train(recipe(models, tmp_path, *decay, "steps=12"))


def test_same_weights_have_no_kl_and_no_alarm(models, tmp_path) -> None:
    result = limbeck.train(recipe(models, tmp_path, f"teacher.model={models}/student", "steps=1"))
    assert abs(result.before["reverse_kl/exact"]) < 1e-5
    assert "identity" not in [alarm["name"] for alarm in result.steps[0]["alarms"]]
    assert result.steps[0]["system/cpu"] > 0
    assert result.steps[0]["system/memory"] > 2**20
    assert "system/cpu" not in result.before, "of steps, which begin where the one before ended"
    assert not [thread for thread in threading.enumerate() if thread.name == "meter"]


def test_truncated_sampling_trains_on_full_support(models, tmp_path) -> None:
    """States come from the cut distribution, the KL is of the whole one, and a right engine has no mismatch."""
    result = limbeck.train(recipe(models, tmp_path, "rollout.top_k=2", "steps=2"))
    assert result.steps[0]["mismatch"] < 1e-5
    assert result.steps[0]["importance/mean"] == pytest.approx(1, abs=1e-5)
    assert "mismatch" not in [alarm["name"] for alarm in result.steps[0]["alarms"]]
    assert result.steps[0]["reverse_kl/exact"] > 0


def test_task_reward_needs_grades(models, tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"{i}+1="}) for i in range(8)))
    task = f'task={{kind="file", path="{tmp_path}/rows.jsonl", held_out=2}}'
    changes = (task, "objective.task_reward.weight=1.0", "rollout.samples_per_prompt=2")
    with pytest.raises(DataError, match="could not be graded"):
        limbeck.train(recipe(models, tmp_path, *changes))


def test_task_reward_and_reference_train_together(models, tmp_path) -> None:
    changes = ("objective.task_reward.weight=1.0", "rollout.samples_per_prompt=3", "objective.reference.weight=0.1",
               "objective.support=4", "objective.discount=0.5")  # fmt: skip
    result = limbeck.train(recipe(models, tmp_path, *changes))
    assert result.steps[0]["reverse_kl/reference"] == pytest.approx(0, abs=1e-6)
    assert result.steps[3]["reverse_kl/reference"] != 0
    assert result.steps[0]["responses"] == 12


def test_lora_runs_resume_and_export_whole_models(models, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    lora = ("learner.lora.rank=2", "learner.lr=0.01")
    limbeck.train(recipe(models, tmp_path / "a", *lora, "steps=2"))
    limbeck.train(recipe(models, tmp_path / "a", *lora))
    limbeck.train(recipe(models, tmp_path / "b", *lora))
    a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / x / "run/model").state_dict() for x in "ab")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_evaluations_keep_their_answers(models, tmp_path) -> None:
    limbeck.train(recipe(models, tmp_path, "steps=2", "eval.every=1"))
    folder = tmp_path / "run" / "evaluations"
    assert sorted(path.name for path in folder.iterdir()) == [f"step-00000{i}.jsonl" for i in range(3)]
    rows = [json.loads(line) for line in (folder / "step-000000.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {"prompt", "response", "reward", "finish"} <= rows[0].keys()


def test_greedy_evaluation_still_measures_the_kl_on_samples(models, tmp_path) -> None:
    result = limbeck.train(recipe(models, tmp_path, "steps=1", "eval.greedy=true"))
    assert result.before["reverse_kl/exact"] > 0
    assert "accuracy" in result.before
