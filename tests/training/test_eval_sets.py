"""Several evaluation sets: prompts, temperature, length and samples of their own; and runs on a mixture of tasks."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import ContractError, DataError, RecipeError
from limbeck.records import TokenScores
from limbeck.teachers.local import LocalTeacher
from limbeck.trackers.console import describe_evaluation
from tests.tiny_runs import save_models

ARITHMETIC = {"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_models(tmp_path_factory.mktemp("models"))
    rows = [{"prompt": f"{n}+1=", "answer": n + 1} for n in range(9)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(models: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "file", "path": str(models / "rows.jsonl"), "chat": False, "grader": {"kind": "numeric"}, **more}


def recipe(models: Path, output: Path, sets: dict[str, Any], **more: Any) -> Recipe:
    table = {
        "steps": 2, "threads": 1, "output": str(output), "name": "run",
        "student": {"model": str(models / "student")}, "teacher": {"model": str(models / "teacher")},
        "task": ARITHMETIC, "rollout": {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4},
        "checkpoint": {"every": 1}, "record": {"every": 0}, **more,
    }  # fmt: skip
    table["eval"] = {"prompts": 4, **table.get("eval", {}), "sets": sets}
    return parse_recipe(table)


def answers(output: Path, step: int = 0) -> list[dict[str, Any]]:
    lines = (output / "run" / "evaluations" / f"step-{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_sets_are_sampled_and_scored_in_their_own_way_and_change_nothing_else(models: Path, tmp_path: Path) -> None:
    plain = limbeck.train(recipe(models, tmp_path / "plain", {}))
    sets = {
        "hot": {"temperature": 1.3, "samples_per_prompt": 3, "max_tokens": 6},
        "rows": {"task": rows_of(models), "prompts": 5, "greedy": True, "score": False},
    }
    result = limbeck.train(recipe(models, tmp_path / "sets", sets))
    before, without = dict(result.before), plain.before
    own = {key: value for key, value in before.items() if key.partition("/")[0] not in sets}
    assert {k: v for k, v in own.items() if k != "seconds"} == {k: v for k, v in without.items() if k != "seconds"}
    weights = [(tmp_path / run / "run" / "model" / "model.safetensors").read_bytes() for run in ("plain", "sets")]
    assert weights[0] == weights[1]

    assert (before["hot/prompts"], before["hot/samples_per_prompt"], before["rows/prompts"]) == (4, 3, 5)
    assert before["hot/mismatch"] < 1e-5, "the learner divides by the set's own temperature"
    assert before["hot/reverse_kl/exact"] > 0
    assert not [key for key in before if key.startswith("rows/reverse_kl")]
    by_set = {name: [a for a in answers(tmp_path / "sets") if a.get("set") == name] for name in ("hot", "rows", None)}
    assert [len(found) for found in by_set.values()] == [12, 5, 4]
    assert max(answer["tokens"] for answer in by_set["hot"]) > 4
    assert {answer["prompt_id"].partition("/")[0] for answer in by_set["rows"]} == {"rows"}
    probes = [json.loads(line)["probe"] for line in (tmp_path / "sets/run/contract.jsonl").read_text().splitlines()]
    assert "eval.sets.hot: temperature" in probes
    lines = describe_evaluation(before).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["evaluation at step 0", "hot", "rows"]
    assert "reverse KL" in lines[1]
    assert "reverse KL" not in lines[2]


def test_a_teacher_that_is_the_student_differs_from_it_at_no_temperature(models: Path, tmp_path: Path) -> None:
    same = {"teacher": {"model": str(models / "student")}}
    found = limbeck.evaluate(recipe(models, tmp_path, {"hot": {"temperature": 2.0}}, **same))
    assert found.sets["hot"].reverse_kl == pytest.approx(0, abs=1e-6)
    assert list(found.sets) == ["hot"]


def test_a_teacher_without_scores_at_a_sets_temperature_is_refused_by_name(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It scores at the temperature of training whatever is asked, and says that it did not."""
    from limbeck.testing import BigramTeacher  # a teacher of one's own, with log-probs at what is asked

    honest = BigramTeacher.score

    async def stubborn(self: Any, unit: Any) -> Any:
        asked = [one if one.temperature in (0.7, 1.0) else replace(one, temperature=0.7) for one in unit]
        found = await honest(self, asked)
        return [
            replace(score, temperature=one.temperature) if isinstance(score, TokenScores) else score
            for one, score in zip(unit, found, strict=True)
        ]

    monkeypatch.setattr(BigramTeacher, "score", stubborn)
    own = {"kind": "python", "factory": "tests.own_parts:teacher", "seed": 3}
    with pytest.raises(
        ContractError, match=r"eval\.sets\.hot is sampled at temperature 1\.3.*eval\.sets\.hot\.score = false"
    ):
        limbeck.evaluate(recipe(models, tmp_path, {"hot": {"temperature": 1.3}}, teacher=own))
    found = limbeck.evaluate(recipe(models, tmp_path, {"hot": {"temperature": 1.3, "score": False}}, teacher=own))
    assert found.sets["hot"].means == {}


def test_the_teacher_is_not_asked_about_sets_without_scores(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[float] = set()
    honest = LocalTeacher.score

    async def score(self: Any, unit: Any) -> Any:
        asked.update(one.temperature for one in unit)
        return await honest(self, unit)

    monkeypatch.setattr(LocalTeacher, "score", score)
    limbeck.evaluate(recipe(models, tmp_path, {"hot": {"temperature": 1.3, "score": False}}))
    assert 1.3 not in asked


@pytest.mark.parametrize(
    ("sets", "error", "message"),
    [
        ({"reverse_kl": {}}, RecipeError, "a set is called reverse_kl, which is the name of a metric"),
        ({"a": {"temperature": 0}}, RecipeError, r"eval\.sets\.a\.temperature"),
        ({"a": {"prompts": 2**20, "samples_per_prompt": 2}}, RecipeError, r"prompts"),
        ({"a": {"samples_per_prompt": 2**14, "prompts": 1000}}, RecipeError, r"\[eval\.sets\.a\] asks for 1000"),
        ({"a": {"task": {"kind": "file", "path": "no.jsonl"}}}, DataError, r"eval\.sets\.a\.task: there is no file"),
        ({"a": {"task": {"kind": "file", "path": "a", "held_out": 3}}}, RecipeError, "unknown key 'held_out'"),
        ({"a": {"max_tokens": 10**6}}, RecipeError, r"eval\.sets\.a\.max_tokens = 1000000 leaves"),
    ],
)  # fmt: skip
def test_sets_that_cannot_work_are_named(
    sets: dict[str, Any], error: type[Exception], message: str, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        limbeck.evaluate(recipe(models, tmp_path, sets))


def test_prompts_that_are_trained_on_are_noticed(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "limbeck"):
        limbeck.evaluate(
            recipe(
                models, tmp_path, {"again": {"task": rows_of(models), "prompts": 9}}, task=rows_of(models, held_out=4)
            )
        )
    assert "eval.sets.again: 5 of 5 prompts to train on are in this set too" in caplog.text


# Mixtures


def test_a_run_on_a_mixture_reports_by_task_and_goes_on_to_the_bit(models: Path, tmp_path: Path) -> None:
    task = {
        "kind": "mixture",
        "weights": {"sums": 3, "rows": 1},
        "tasks": {"sums": ARITHMETIC, "rows": rows_of(models, held_out=3)},
    }
    straight = limbeck.train(recipe(models, tmp_path / "straight", {}, task=task, steps=4))
    limbeck.train(recipe(models, tmp_path / "twice", {}, task=task, steps=2))
    resumed = limbeck.train(recipe(models, tmp_path / "twice", {}, task=task, steps=4))
    weights = [(tmp_path / name / "run/model/model.safetensors").read_bytes() for name in ("straight", "twice")]
    assert weights[0] == weights[1]
    for line in (*straight.steps, *resumed.steps):
        assert (line["task/sums/responses"], line["task/rows/responses"]) == (3, 1)
        assert {"task/sums/reward", "task/rows/reverse_kl/exact", "task/sums/response_length/mean"} <= set(line)
    after = straight.after
    assert {"task/sums/accuracy", "task/rows/accuracy", "task/rows/reverse_kl/exact"} <= set(after)
    assert {a["prompt_id"].partition("/")[0] for a in answers(tmp_path / "straight")} == {"sums", "rows"}
    assert "sums " in describe_evaluation(after)
