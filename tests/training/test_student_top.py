"""Whole runs on the student's own top tokens: every kind of teacher and engine, resumed, recorded, and refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from limbeck import api
from limbeck.config.engine import HFEngineConfig
from limbeck.config.factory import Build
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.engines.hf import InProcessEngine
from limbeck.errors import ContractError, EngineError, RecipeError
from limbeck.learners.batch import check_given_ids
from limbeck.records import Key, Prompt, Sampled, Sampling, Scored, TopKScores, single_turn
from limbeck.serve.settings import ServeSettings
from limbeck.testing import BigramEngine, BigramTeacher, CountingLearner, FakeTask, random_bigrams
from tests import tiny
from tests.fake_engine import FakeEngine
from tests.fake_server import in_thread
from tests.serve_process import serving

K, V = 5, tiny.VOCABULARY
LOCAL = {"model": tiny.folder_of("llama-tied")}
OWN = {"kind": "python", "factory": "tests.training.test_student_top:own_teacher"}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the teacher."""
    with serving(tiny.fresh("llama-tied")) as address:
        yield address


def recipe(output: Path, teacher: dict[str, Any], **tables: Any) -> Recipe:
    return parse_recipe(
        {
            "output": str(output), "steps": 2, "threads": 1,
            "student": {"model": tiny.folder_of("llama")},
            "teacher": teacher,
            "task": {"kind": "arithmetic", "digits": 1, "train": 32, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 6, "prompts_per_step": 4},
            "objective": {"support": "student_top", "k": K},
            "learner": {"lr": 1e-3},
            "eval": {"prompts": 1},
            "checkpoint": {"every": 1, "keep_last": 9},
            "record": {"every": 0},
            **tables,
        }
    )  # fmt: skip


def weights(result: api.TrainResult) -> dict[str, torch.Tensor]:
    return load_file(result.folder / "model" / "model.safetensors")


def furthest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> api.TrainResult:
    return api.train(recipe(tmp_path_factory.mktemp("local"), LOCAL))


def test_with_the_whole_vocabulary_a_run_is_that_of_full(url: str, tmp_path: Path) -> None:
    everything = {"support": "student_top", "k": V}
    full = weights(api.train(recipe(tmp_path / "full", LOCAL, objective={"support": "full"})))
    for name, teacher in (("local", LOCAL), ("served", {"kind": "limbeck", "url": url})):
        result = api.train(recipe(tmp_path / name, teacher, objective=everything))
        assert furthest(weights(result), full) < 1e-5
        assert all(line["support/student"] == pytest.approx(1, abs=1e-5) for line in result.steps)
        assert all(line["support/teacher"] == pytest.approx(1, abs=1e-5) for line in result.steps)


def test_a_served_teacher_trains_as_one_in_this_process(url: str, local: api.TrainResult, tmp_path: Path) -> None:
    """The sampler's top K is the learner's when samples are fresh."""
    served = api.train(recipe(tmp_path, {"kind": "limbeck", "url": url}))
    assert furthest(weights(served), weights(local)) < 1e-5
    for ours, theirs in zip(served.steps, local.steps, strict=True):
        for key in ("objective", "support/student", "support/teacher", "reverse_kl/sampled"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-4), key
        assert 0 < ours["support/student"] < 1
    lines = [json.loads(line) for line in (served.folder / "contract.jsonl").read_text().splitlines()]
    assert "given ids" in [line["probe"] for line in lines]


def test_another_support_is_another_run(local: api.TrainResult, tmp_path: Path) -> None:
    top = api.train(recipe(tmp_path, LOCAL, objective={"support": K}))
    assert furthest(weights(top), weights(local)) > 1e-4
    assert all("support/student" in line for line in top.steps)
    sampled = api.train(recipe(tmp_path / "sampled", LOCAL, objective={"support": "sampled"}))
    assert not any("support/student" in line for line in sampled.steps)


def test_a_run_goes_on_from_a_checkpoint_to_the_same_bits(url: str, tmp_path: Path) -> None:
    given = recipe(tmp_path, {"kind": "limbeck", "url": url})
    straight = weights(api.train(given))
    resumed = weights(api.train(given, from_checkpoint=1))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_recorded_tokens_are_not_said_to_be_the_teachers_most_likely(url: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    result = api.train(recipe(tmp_path, {"kind": "limbeck", "url": url}, steps=1, record={"every": 1}))
    rows = pq.read_table(result.folder / "rollouts" / "step-000001.parquet").to_pylist()
    assert {row["source"] for row in rows} == {"train", "watch"}
    assert all(row["teacher_top_ids"] is None and row["student_top_ids"] is not None for row in rows)


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_an_engine_that_is_served_reports_the_ids(kind: str, url: str, tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of("llama").model)) as engine:
        server = {"kind": kind, "url": engine.url, "timeout": 30.0, "retry_seconds": 30.0}
        result = api.train(recipe(tmp_path, {"kind": "limbeck", "url": url}, engine=server))
        assert len(result.steps) == 2
        assert all(line["mismatch"] < 1e-4 for line in result.steps)
        if kind == "sglang":  # one is enough: it is the same engine
            return
        engine.hides_tops = True
        server["retry_seconds"] = 0.5
        with pytest.raises(EngineError, match=rf"objective\.k = {K} asks .* lower objective\.k"):
            api.train(recipe(tmp_path / "blind", {"kind": "limbeck", "url": url}, engine=server))


def test_hidden_states_need_no_ids(url: str, local: api.TrainResult, tmp_path: Path) -> None:
    result = api.train(recipe(tmp_path, {"kind": "limbeck", "url": url, "head": LOCAL["model"]}))
    assert furthest(weights(result), weights(local)) < 1e-5


def test_several_teachers_of_other_kinds(url: str, local: api.TrainResult, tmp_path: Path) -> None:
    members = {"here": {"kind": "local", **LOCAL}, "there": {"kind": "limbeck", "url": url}}
    given = {"kind": "routed", "default": "there", "teachers": members}
    assert furthest(weights(api.train(recipe(tmp_path, given))), weights(local)) < 1e-5


# --- Parts of one's own -------------------------------------------------------------------------------


def own_teacher(build: Build, deaf: bool = False) -> BigramTeacher:
    return (Deaf if deaf else BigramTeacher)(random_bigrams(build.info.vocabulary, 3))


class Deaf(BigramTeacher):
    """Answers with its own top tokens, whatever it is asked about."""

    def _one(self, request: Any) -> Any:
        import dataclasses

        given = request.support
        k = given.shape[1] if isinstance(given, np.ndarray) else given
        return super()._one(dataclasses.replace(request, support=k))


def test_a_teacher_of_ones_own_is_asked_about_ids_and_only_trained_on_where_it_answers(tmp_path: Path) -> None:
    assert len(api.train(recipe(tmp_path / "honest", OWN)).steps) == 2
    with pytest.raises(ContractError, match=r"asked about .* Return the log-probs of request.support"):
        api.train(recipe(tmp_path / "deaf", {**OWN, "deaf": True}))


class Blind(BigramEngine):
    def _one(self, request: Any) -> Sampled:
        import dataclasses

        return super()._one(dataclasses.replace(request, top=0))


class Doubled(BigramEngine):
    def _one(self, request: Any) -> Sampled:
        import dataclasses

        sampled = super()._one(request)
        assert sampled.top_ids is not None
        return dataclasses.replace(sampled, top_ids=np.repeat(sampled.top_ids[:, :1], K, axis=1))


class Adds(InProcessEngine):
    """The sampled token in the place of the last of its K, as a server may list them."""

    async def sample(self, unit: Any) -> Any:
        answers = await super().sample(unit)
        for answer in answers:
            assert isinstance(answer, Sampled)
            assert answer.top_ids is not None
            outside = ~(answer.top_ids == answer.token_ids[:, None]).any(axis=1)
            answer.top_ids[outside, -1] = answer.token_ids[outside]
        return answers


@pytest.mark.parametrize("engine", [Adds, InProcessEngine])
def test_a_list_that_the_sampled_token_was_added_to_is_an_alarm(engine: Any, tmp_path: Path) -> None:
    """Nothing else shows: every number is right, and the gradient is biased."""
    own = engine(tiny.fresh("llama"), HFEngineConfig(), shared=False)
    result = api.train(recipe(tmp_path, OWN, steps=1, rollout={"max_tokens": 8, "prompts_per_step": 16}), engine=own)
    alarms = [alarm["name"] for line in result.steps for alarm in line["alarms"]]
    assert ("support" in alarms) == (engine is Adds)


@pytest.mark.parametrize(("engine", "says"), [(BigramEngine, None), (Blind, "top_ids is None"), (Doubled, "different")])
def test_an_engine_of_ones_own_reports_different_ids(engine: Any, says: str | None, tmp_path: Path) -> None:
    table = random_bigrams(V, 1)
    parts: dict[str, Any] = {
        "engine": engine(table),
        "learner": CountingLearner(table),
        "task": FakeTask({f"p{n}": [5 + n, 6 + n] for n in range(8)}),
    }
    given = recipe(tmp_path, OWN)
    if says is None:
        api.train(given, **parts)
        seen = [sample for step in parts["learner"].seen for sample in step]
        assert seen
        check_given_ids(seen)
        return
    with pytest.raises(EngineError, match=says):
        api.train(given, **parts)


def test_scores_of_other_ids_than_the_students_are_not_trained_on() -> None:
    ids = np.array([[1, 2], [3, 4]])
    sampled = Sampled(np.array([7, 8]), np.zeros(2, np.float32) - 1, "length", 0, ids)
    rollout = single_turn(Prompt("p", (5,)), Key("p"), sampled, Sampling(0.7, 2))
    halves = np.log(np.full((2, 2), 0.25, np.float32))
    scores = TopKScores("t", 0.7, ids, halves, halves[:, 0])
    check_given_ids([Scored(rollout, scores)])
    other = TopKScores("t", 0.7, ids[:, ::-1], halves, halves[:, 0])
    with pytest.raises(ContractError, match="other tokens than the student's own"):
        check_given_ids([Scored(rollout, other)])


# --- What is refused, and when ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "says"),
    [
        ({"kind": "sglang", "url": "http://h:1"}, r"teacher \(sglang\) answers with its own top .*limbeck serve.*= 20"),
        ({"kind": "vllm", "url": "http://h:1"}, r"teacher \(vllm\)"),
        ({"kind": "limbeck", "url": "http://h:1", "temperature_method": "rescale"}, "temperature_method = 'rescale'"),
        (
            {
                "kind": "routed",
                "teachers": {"a": {"kind": "local", **LOCAL}, "b": {"kind": "vllm", "url": "http://h:1"}},
            },
            r"b \(vllm\)",
        ),
    ],
)
def test_a_stock_server_is_refused_by_name_as_the_recipe_is_read(
    teacher: dict[str, Any], says: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"(?s)objective\.support = 'student_top', but .*{says}"):
        recipe(tmp_path, teacher)


def test_a_cut_distribution_and_a_k_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"objective\.support = 'student_top' estimates"):
        recipe(tmp_path, LOCAL, rollout={"top_p": 0.9})
    with pytest.raises(RecipeError, match=rf"objective\.k = {V + 1}, but student and teacher share {V} tokens"):
        api.train(recipe(tmp_path, LOCAL, objective={"support": "student_top", "k": V + 1}))


def test_a_server_that_gives_fewer_is_refused_before_anything_trains(tmp_path: Path) -> None:
    more = {"support": "student_top", "k": 25}
    with (
        serving(tiny.fresh("llama-tied"), ServeSettings(max_top_k=20)) as address,
        pytest.raises(ContractError, match=r"25 ids a position .* up to 20 \(--max-top-k\)"),
    ):
        api.train(recipe(tmp_path, {"kind": "limbeck", "url": address}, objective=more))
    assert not list(tmp_path.glob("run/checkpoints/*"))
