"""A learner of several processes makes the update of one, and what it saves, publishes and refuses is that of one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.errors import NonFiniteError
from limbeck.learners.batch import request_for
from limbeck.learners.local import LocalLearner
from limbeck.learners.process_group import Ranks, join
from limbeck.models.shards import local
from limbeck.models.states import LocalStates
from limbeck.records import HiddenScores, ScoreRequest, TokenScores
from tests.cluster import steps
from tests.cluster.processes import run_ranks
from tests.cluster.steps import CASES, NARROW

pytestmark = pytest.mark.cluster

IN_FLOAT32 = ("full", "top-k", "tied", "lora", "gpt2")
SAVED = {**{key: CASES[key] for key in ("full", "tied", "lora", "gpt2")}, **NARROW}
OF_THREE = ("full", "one-sample", "lora")  # rows that three ranks do not divide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    steps.save_models(folder)
    return folder


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return _everything(folder, Ranks(), "one", None)


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    return run_ranks(2, _everything_of, folder, "two", "one")


@pytest.fixture(scope="module")
def three(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return run_ranks(3, _few_of, folder, "two")


def _everything_of(rank: int, count: int, init_method: str, folder: Path, name: str, other: str) -> dict[str, Any]:
    ranks = join(rank, count, init_method, torch.device("cpu"))
    found = _everything(folder, ranks, name, other)
    ranks.close()
    return found


def _everything(folder: Path, ranks: Ranks, name: str, other: str | None) -> dict[str, Any]:
    return {
        "updates": {key: steps.three_updates(case, folder, ranks) for key, case in CASES.items()},
        "gradients": {key: steps.gradient(CASES[key], folder, ranks) for key in IN_FLOAT32},
        "saved": {key: steps.save(case, folder, ranks, folder / name / key) for key, case in SAVED.items()},
        "restored": {key: _resumed(key, folder, ranks, folder / other / key) for key in SAVED if other},
        "published": {key: _published(CASES[key], folder, ranks) for key in ("full", "lora")},
        "refused": _refused(folder, ranks),
        "bfloat16": _in_bfloat16(folder, ranks),
        "narrow": {key: _of_narrow_files(CASES[key], folder, ranks) for key in ("full", "lora")},
    }


def _few_of(rank: int, count: int, init_method: str, folder: Path, other: str) -> dict[str, Any]:
    ranks = join(rank, count, init_method, torch.device("cpu"))
    found = {
        "updates": {key: steps.three_updates(CASES[key], folder, ranks) for key in OF_THREE},
        "restored": {key: _resumed(key, folder, ranks, folder / other / key) for key in SAVED},
    }
    ranks.close()
    return found


def _resumed(key: str, folder: Path, ranks: Ranks, checkpoint: Path) -> tuple[dict[str, Tensor], int]:
    learner = steps.restored(SAVED[key], folder, ranks, checkpoint)
    state = steps.state_of(learner)
    steps.update(learner, steps.samples_of(SAVED[key], steps.teacher_of(SAVED[key], folder, exact=False)))
    return state, learner.version


def _published(case: steps.Case, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """What a policy gives, and what a held one gives after an update, which must not see it."""
    learner, samples = steps.learner_of(case, folder, ranks), steps.samples_of(case, steps.teacher_of(case, folder))
    steps.update(learner, samples)
    policy = asyncio.run(learner.publish())
    requests = [request_for(sample.rollout) for sample in samples]
    before = {"tensors": dict(policy.tensors("bfloat16")), "scores": _scores(policy, requests)}
    held = policy.hold()
    steps.update(learner, samples)
    after = {"tensors": dict(held.tensors("bfloat16")), "scores": _scores(held, requests)}
    steps.update(learner, samples)
    return {"before": before, "after": after, "weights": steps.weights_of(learner)}


def _scores(policy: Any, requests: list[ScoreRequest]) -> list[np.ndarray]:
    found = []
    for scores in asyncio.run(policy.score(requests)):
        assert isinstance(scores, TokenScores)
        found.append(scores.logprobs)
    return found


def _refused(folder: Path, ranks: Ranks) -> tuple[str, list[str], dict[str, Tensor]]:
    """Of a step with a teacher's NaN: the error, whom it names, and the weights."""
    case = CASES["full"]
    learner, samples = steps.learner_of(case, folder, ranks), steps.samples_of(case, steps.teacher_of(case, folder))
    scores = samples[3].scores
    assert isinstance(scores, HiddenScores)
    spoilt = replace(scores, states=LocalStates(torch.full_like(scores.states.fetch(), torch.nan)))
    samples[3] = replace(samples[3], scores=spoilt)
    with pytest.raises(NonFiniteError) as caught:
        steps.update(learner, samples)
    places = [str(next(n for n, s in enumerate(samples) if s is other)) for other in caught.value.samples]
    return str(caught.value), places, steps.weights_of(learner)


def _in_bfloat16(folder: Path, ranks: Ranks) -> tuple[dict[str, Tensor], set[torch.dtype], float]:
    case = replace(CASES["full"], config={"precision": "bfloat16"})
    learner: LocalLearner = steps.learner_of(case, folder, ranks, exact=False)
    report = steps.update(learner, steps.samples_of(case, steps.teacher_of(case, folder, exact=False)))
    dtypes = {local(parameter).dtype for parameter in learner.parameters.values()}
    dtypes |= {value.dtype for state in learner.optimizer.state.values() for value in state.values()}
    return steps.weights_of(learner), dtypes, report.means["reverse_kl/exact"].value or 0.0


def _of_narrow_files(case: steps.Case, folder: Path, ranks: Ranks) -> dict[str, Tensor]:
    """Trained in float32 from files in bfloat16, which ranks read their rows of."""
    learner = steps.learner_of(case, folder, ranks, exact=False, source=folder / "narrow")
    steps.update(learner, steps.samples_of(case, steps.teacher_of(case, folder, exact=False)))
    return steps.weights_of(learner)


@pytest.mark.parametrize("key", CASES)
def test_two_ranks_make_the_update_of_one(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected = one["updates"][key]
    for found in (rank["updates"][key] for rank in two):
        close(found["weights"], expected["weights"], 1e-10)
        assert found["passes"] == expected["passes"]


@pytest.mark.parametrize("key", OF_THREE)
def test_three_ranks_make_the_update_of_one(key: str, one: dict[str, Any], three: list[dict[str, Any]]) -> None:
    for found in three:
        close(found["updates"][key]["weights"], one["updates"][key]["weights"], 1e-10)


@pytest.mark.parametrize("key", IN_FLOAT32)
def test_gradients_in_float32(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected, found = one["gradients"][key], two[0]["gradients"][key]
    assert found.keys() == expected.keys()
    norm = torch.stack([grad.norm() for grad in expected.values()]).norm()
    worst = torch.stack([(found[name] - grad).norm() for name, grad in expected.items()]).norm()
    assert worst <= 1e-5 * norm


@pytest.mark.parametrize("key", CASES)
def test_metrics_are_those_of_one(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Totals, counts, the spread over prompts of which each rank saw some, teachers apart, maxima, sums."""
    for rank in two:
        for (means, maxima, sums), found in zip(
            one["updates"][key]["reports"], rank["updates"][key]["reports"], strict=True
        ):
            assert list(found[0]) == list(means)
            for name, mean in means.items():
                other = found[0][name]
                assert (other.count, other.clusters) == (mean.count, mean.clusters), name
                assert other.total == pytest.approx(mean.total, rel=1e-8, abs=1e-10), name
                assert (other.spread is None) == (mean.spread is None), name
                if mean.spread is not None:  # NaN where a teacher has no such score
                    assert other.spread == pytest.approx(mean.spread, rel=1e-6, abs=1e-10, nan_ok=True), name
            assert found[1] == pytest.approx(maxima, rel=1e-8)
            assert found[2] == sums


@pytest.mark.parametrize("key", CASES)
def test_the_first_rank_has_all_traces(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected, found = one["updates"][key]["traces"], two[0]["updates"][key]["traces"]
    assert len(found) == len(expected)
    for trace, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.student_logprobs, trace.student_logprobs, atol=1e-5)
        np.testing.assert_array_equal(other.student_top.ids, trace.student_top.ids)
    assert two[1]["updates"][key]["traces"] == []


@pytest.mark.parametrize("key", SAVED)
def test_a_checkpoint_is_taken_up_by_any_number_of_ranks(
    key: str, folder: Path, one: dict[str, Any], two: list[dict[str, Any]], three: list[dict[str, Any]]
) -> None:
    """One to two, two to three and two to one: weights and moments to the bit."""
    for saved, restored in ((one, two), (two[0], three)):
        for state, version in (rank["restored"][key] for rank in restored):
            same(state, saved["saved"][key])
            assert version == 3
    learner = steps.restored(SAVED[key], folder, Ranks(), folder / "two" / key)
    same(steps.state_of(learner), two[0]["saved"][key])
    names = [
        sorted(path.relative_to(folder / n / key) for path in (folder / n / key).rglob("*")) for n in ("one", "two")
    ]
    assert names[0] == names[1]


def test_what_a_bfloat16_student_trains_has_float32_masters_unless_it_is_an_adapter(two: list[dict[str, Any]]) -> None:
    for key, state in two[0]["saved"].items():
        masters = {name for name in state if name.startswith("master of ")}
        assert bool(masters) == (key == "bfloat16"), key
        assert {value.dtype for name, value in state.items() if " of " in name} == {torch.float32}
        weights = {value.dtype for name, value in state.items() if " of " not in name}
        assert weights == {torch.bfloat16 if key == "bfloat16" else torch.float32}


@pytest.mark.parametrize("key", ["full", "lora"])
def test_the_first_rank_publishes_whole_tensors(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected, found = one["published"][key], two[0]["published"][key]
    for when in ("before", "after"):
        assert list(found[when]["tensors"]) == list(expected["before"]["tensors"])
        for name, tensor in expected["before"]["tensors"].items():
            assert found[when]["tensors"][name].dtype == torch.bfloat16
            torch.testing.assert_close(found[when]["tensors"][name], tensor)
        assert two[1]["published"][key][when]["tensors"] == {}
    for name, tensor in found["before"]["tensors"].items():
        assert torch.equal(tensor, found["after"]["tensors"][name]), name


@pytest.mark.parametrize("key", ["full", "lora"])
def test_a_held_policy_scores_as_it_did_and_leaves_no_trace(
    key: str, one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    expected = one["published"][key]
    for rank in two:
        found = rank["published"][key]
        for when in ("before", "after"):
            for scores, others in zip(found[when]["scores"], expected["before"]["scores"], strict=True):
                np.testing.assert_allclose(scores, others, atol=1e-6)
        close(found["weights"], expected["weights"], 1e-10)


def test_all_ranks_refuse_a_step_that_is_not_finite(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    message, places, weights = one["refused"]
    assert places == ["3"]
    for rank in two:
        assert rank["refused"][:2] == (message, places)
        close(rank["refused"][2], weights, 0.0)


def test_in_bfloat16_the_shards_and_moments_are_float32(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    weights, _, divergence = one["bfloat16"]
    for found, dtypes, value in (rank["bfloat16"] for rank in two):
        assert dtypes == {torch.float32}
        assert value == pytest.approx(divergence, rel=0.05)
        close(found, weights, 0.021)  # a first step of AdamW is lr at most, either way
        moved = torch.cat([(found[name] - tensor).abs().flatten() for name, tensor in weights.items()])
        assert moved.median() < 1e-4


@pytest.mark.parametrize("key", ["full", "lora"])
def test_files_in_bfloat16_are_trained_in_float32(key: str, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Adapters too begin as they do in one process: drawn in float32."""
    for rank in two:
        close(rank["narrow"][key], one["narrow"][key], 1e-5)
        assert {tensor.dtype for tensor in rank["narrow"][key].values()} == {torch.float32}


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], most: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name] - tensor).abs().max() <= most, name


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
