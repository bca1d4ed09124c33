"""Steps of several sources: who writes how much, that resuming loses no bit, and supervised fine-tuning."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import limbeck
from limbeck.api import check
from limbeck.config.recipe import Recipe, load_recipe, parse_recipe
from limbeck.errors import DataError, RecipeError, RunError
from limbeck.records import Prompt
from limbeck.tasks.completions import Completion
from limbeck.testing import BigramEngine, random_bigrams
from limbeck.training.prompt_order import Epochs, PromptOrder
from limbeck.training.shares import Shares, Sources, shares_of
from limbeck.training.sources import collect_mixed
from tests.killed_runs import train_killed
from tests.tiny_runs import table_of
from tests.training.test_collect import TABLE, V, run_of

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(4) for b in range(3)]
STUDENT, TEACHER = {"from": "student", "share": 0.5}, {"from": "teacher", "share": 0.25}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 40))
def test_shares_are_kept_over_any_number_of_steps(weights: list[float], per_step: int, steps: int) -> None:
    shares = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    rule = Shares.of(shares, per_step)
    counts = [rule.at(step) for step in range(steps)]
    assert all(sum(one.values()) == per_step and min(one.values()) >= 0 for one in counts)
    for name, share in shares.items():
        assert rule.before(steps)[name] == sum(one[name] for one in counts)
        assert abs(rule.before(steps)[name] - share * steps * per_step) <= len(shares)


def test_a_share_that_divides_a_step_is_the_same_in_every_step() -> None:
    rule = Shares.of({"student": 0.7, "rows": 0.2, "teacher": 0.1}, 10)
    assert all(rule.at(step) == {"student": 7, "rows": 2, "teacher": 1} for step in range(100))


@pytest.fixture
def table(tmp_path: Path) -> dict[str, Any]:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    data = {"from": "dataset", "share": 0.25, "path": str(rows)}
    found = table_of(tmp_path, steps=5, eval={"prompts": 4}, checkpoint={"every": 2})
    found["rollout"] |= {"sources": [STUDENT, data, TEACHER], "prompts_per_step": 4, "samples_per_prompt": 2}
    return found


def recipe(table: dict[str, Any], output: Path, **changes: Any) -> Recipe:
    return parse_recipe({**table, "output": str(output), **changes})


def weights(output: Path, name: str = "run") -> bytes:
    return (output / name / "model" / "model.safetensors").read_bytes()


def test_every_source_is_in_the_metrics_and_the_evaluation_is_of_the_student(
    table: dict[str, Any], tmp_path: Path
) -> None:
    result = limbeck.train(recipe(table, tmp_path / "a"))
    for line in result.steps:
        responses = {name: line[f"source/{name}/responses"] for name in ("student", "rows", "teacher")}
        assert responses == {"student": 4, "rows": 2, "teacher": 2}
        assert line["source/rows/reverse_kl/exact"] > 0
        assert line["mismatch"] < 1e-4  # of the student's own tokens alone
        assert line["responses"] == 8
        assert line["tokens/sampled"] == line["source/student/tokens"]
        assert {alarm["name"] for alarm in line["alarms"]} <= {"truncation"}
    assert not any(key.startswith("source/") for key in result.after)
    assert result.after["reverse_kl/sampled"] > 0


def test_the_student_alone_is_the_run_without_sources(table: dict[str, Any], tmp_path: Path) -> None:
    table["rollout"]["sources"] = [{"from": "student"}]
    limbeck.train(recipe(table, tmp_path / "a"))
    del table["rollout"]["sources"]
    limbeck.train(recipe(table, tmp_path / "b"))
    assert weights(tmp_path / "a") == weights(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
def test_killed_anywhere_and_resumed_no_bit_differs(table: dict[str, Any], tmp_path: Path, lag: int) -> None:
    table["rollout"]["lag"] = lag
    limbeck.train(recipe(table, tmp_path / "straight"))
    assert train_killed(recipe(table, tmp_path / "killed"), tmp_path / "killed", random.Random(lag), 2, 0.1) >= 1
    assert weights(tmp_path / "killed") == weights(tmp_path / "straight")


def test_rows_that_changed_meanwhile_are_noticed(table: dict[str, Any], tmp_path: Path) -> None:
    limbeck.train(recipe(table, tmp_path / "a", steps=2))
    rows = Path(table["rollout"]["sources"][1]["path"])
    rows.write_text(rows.read_text().replace('"4"', '"5"'))
    with pytest.raises(RunError, match="rows of the source 'rows' are not those this run began with"):
        limbeck.train(recipe(table, tmp_path / "a"))


async def test_rows_come_epoch_by_epoch_and_tokens_are_the_very_ones(tmp_path: Path) -> None:
    rows = [Completion(Prompt(f"r{i}", (1, i), task="rows"), (i, 0)) for i in range(3)]
    shares = Shares.of({"student": 0.5, "rows": 0.5}, 2)
    sources = Sources(shares, {"rows": Epochs(rows, 0)})
    run = run_of(tmp_path, sources=sources)
    order = PromptOrder(run.task.train, 2, 0, shares.of_task_before)
    seen: Counter[str] = Counter()
    for step in range(1, 4):
        found = await collect_mixed(run.at(step), order.at(step - 1), run.sampling(step), 3)
        assert [r.source for r in found.rollouts] == ["student"] * 3 + ["dataset"] * 3
        for rollout in found.rollouts[3:]:
            number = int(rollout.prompt.id[1:])
            assert rollout.token_ids.tolist() == [1, number, number, 0]
            assert rollout.trained.tolist() == [False, False, True, True]
            assert np.isnan(rollout.logprobs).all()
        seen.update(rollout.prompt.id for rollout in found.rollouts[3:])
    assert set(seen.values()) == {3}  # nine rows of three: three epochs


async def test_the_teacher_answers_prompts_of_the_task_and_its_scores_are_how_likely_its_tokens_were(
    tmp_path: Path,
) -> None:
    theirs = random_bigrams(V, 1)
    shares = Shares.of({"student": 0.5, "teacher": 0.5}, 4)
    sources = Sources(shares, samplers={"": BigramEngine(theirs)})
    run = run_of(tmp_path, sources=sources)
    found = await collect_mixed(run.at(1), run.task.train[:4], run.sampling(3), 2)
    assert [r.prompt.id for r in found.rollouts] == [p.id for p in run.task.train[:4] for _ in range(2)]
    assert [r.source for r in found.rollouts] == ["student"] * 4 + ["teacher"] * 4
    assert [len(found.texts), len(found.rewards), len(found.samples)] == [8, 8, 8]
    for sample in found.samples[4:]:
        np.testing.assert_allclose(sample.rollout.logprobs, sample.scores.logprobs, atol=1e-5)  # type: ignore[union-attr]
        assert (sample.rollout.versions == -1).all()
    assert run.engine.table is TABLE  # type: ignore[attr-defined]
    assert {r.key.prompt_id for unit in run.engine.units for r in unit} == {"p1", "p2"}  # type: ignore[attr-defined]


async def test_rewards_are_trained_on_where_the_student_sampled(tmp_path: Path) -> None:
    rows = [Completion(Prompt(f"r{i}", (1, i), task="rows"), (i, 0)) for i in range(3)]
    sources = Sources(
        Shares.of({"student": 0.5, "rows": 0.25, "teacher": 0.25}, 4),
        {"rows": Epochs(rows, 0)},
        {"": BigramEngine(random_bigrams(V, 1))},
    )
    run = run_of(tmp_path, sources=sources)
    objective = {"support": "full", "task_reward": {}, "divergence": "reverse_kl"}
    changed = run.recipe.model_dump() | {"objective": objective}
    changed["rollout"]["samples_per_prompt"] = 2
    run.recipe = parse_recipe(changed)
    rng = random.Random(1)
    run.task.grade = lambda prompt, response: rng.random()  # type: ignore[method-assign]
    found = await collect_mixed(run.at(1), run.task.train[:3], run.sampling(3), 2)
    advantages = [sample.advantage for sample in found.samples]
    assert all(advantages[:4])
    assert sum(advantages[:2]) == pytest.approx(0) == sum(advantages[2:4])
    assert advantages[4:] == [0.0] * 4


def test_a_source_without_rows_and_a_missing_file_are_named(table: dict[str, Any], tmp_path: Path) -> None:
    rows = Path(table["rollout"]["sources"][1]["path"])
    rows.write_text("")
    with pytest.raises(DataError, match="has no rows"):
        limbeck.train(recipe(table, tmp_path / "a"))
    rows.unlink()
    with pytest.raises(DataError, match="there is no file"):
        limbeck.train(recipe(table, tmp_path / "b"))


def test_rows_that_the_teacher_cannot_be_shown_are_named_before_the_first_step(
    table: dict[str, Any], tmp_path: Path
) -> None:
    """The task's prompts have answers, and one row has none."""
    rows = Path(table["rollout"]["sources"][1]["path"])
    rows.write_text("".join(json.dumps({**row, "answer": "1"}) + "\n" for row in ROWS) + json.dumps(ROWS[0]) + "\n")
    table["teacher"] |= {"view": {"kind": "prompted", "context": "{answer}"}}
    table["rollout"]["sources"] = [STUDENT, {**table["rollout"]["sources"][1], "share": 0.5}]
    with pytest.raises(DataError, match=rf"rows\.jsonl.*{len(ROWS) + 1}.*names the column .answer."):
        check(recipe(table, tmp_path / "a"))


# --- supervised fine-tuning ------------------------------------------------------------------------------


def sft_recipe(table: dict[str, Any], tmp_path: Path, **changes: Any) -> Path:
    """A recipe with a served teacher that is nowhere, and a support that distillation could not have with data."""
    teacher = {"kind": "vllm", "url": "http://127.0.0.1:9"}
    whole = {**table, "teacher": teacher, "output": str(tmp_path / "runs"), "name": "cold", **changes}
    path = tmp_path / "recipe.toml"
    import tomli_w

    path.write_text(tomli_w.dumps(whole))
    return path


def test_sft_learns_the_data_without_a_teacher_and_resumes(table: dict[str, Any], tmp_path: Path) -> None:
    table["learner"] = {"lr": 3e-2}
    table["rollout"] |= {"temperature": 1.0, "sources": [table["rollout"]["sources"][1]], "prompts_per_step": 6}
    path = sft_recipe(table, tmp_path, steps=30, task={"kind": "arithmetic", "digits": 1, "train": 20, "held_out": 4})
    first = limbeck.sft(path, ["steps=10"])
    assert first.folder.name == "cold-sft"
    assert {"objective", "source/rows/objective", "source/rows/responses"} <= set(first.steps[0])
    result = limbeck.sft(path)
    assert [line["step"] for line in result.steps] == list(range(1, 31))
    assert result.steps[-1]["objective"] < 0.2 * result.steps[0]["objective"]
    assert "accuracy" in result.after
    assert not any("kl" in key for key in result.after)
    again = limbeck.sft(path, ["name=other"])
    assert weights(tmp_path / "runs", "cold-sft") == weights(tmp_path / "runs", "other-sft")
    assert again.steps[0]["objective"] == result.steps[0]["objective"]


def test_the_recipe_of_a_run_of_sft_goes_on_by_train_and_by_sft(table: dict[str, Any], tmp_path: Path) -> None:
    table["rollout"]["sources"] = [table["rollout"]["sources"][1] | {"share": 1.0}]
    found = limbeck.sft(sft_recipe(table, tmp_path), ["steps=2"])
    resolved = found.folder / "recipe.toml"
    assert len(limbeck.train(resolved, ["steps=3"]).steps) == 3
    assert len(limbeck.sft(resolved, ["steps=4"]).steps) == 4


def test_what_sft_cannot_take_is_refused(table: dict[str, Any], tmp_path: Path) -> None:
    path = sft_recipe(table, tmp_path)
    with pytest.raises(RecipeError, match="has no teacher"):
        limbeck.sft(path, ["objective.support=5"])
    with pytest.raises(RecipeError, match="has none"):
        limbeck.sft(path, ["rollout.sources=[{from='student'}]"])
    with pytest.raises(RecipeError, match="nobody knows with which probability"):
        load_recipe(path)


def test_shares_of_a_recipe(table: dict[str, Any], tmp_path: Path) -> None:
    assert shares_of(recipe(table, tmp_path)).at(0) == {"student": 2, "rows": 1, "teacher": 1}
