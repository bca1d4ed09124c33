"""A served teacher that also answers prompts: its tokens by its server's own route, weighed by what it was proven to
give them."""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck import api
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.errors import LimbeckError
from limbeck.learners.local import LocalLearner
from limbeck.records import Sampling, Scored
from tests import tiny
from tests.fake_engine import FakeEngine
from tests.fake_server import in_thread

TEACHER = "llama-tied"


def recipe(server: FakeEngine, folder: Path, kind: str = "sglang", **changes: Any) -> Recipe:
    sources = [{"from": "student", "share": 0.5}, {"from": "teacher", "share": 0.5}]
    return parse_recipe(
        {
            "output": str(folder), "steps": 3, "threads": 1,
            "student": {"model": tiny.folder_of("llama")},
            "teacher": {
                "kind": kind, "url": server.url, "top_logprobs": 90, "max_rescale_error": 1.0, "timeout": 30.0,
                "vocabulary": tiny.VOCABULARY, "retry_seconds": 30.0,
            },
            "task": {"kind": "arithmetic", "digits": 1, "train": 32, "held_out": 4},
            "rollout": {"temperature": 0.7, "max_tokens": 8, "prompts_per_step": 4, "sources": sources},
            "objective": {"support": 5, "importance_cap": 1e30},
            "learner": {"lr": 1e-3}, "eval": {"prompts": 2}, "record": {"every": 1, "watch": 1},
            "checkpoint": {"every": 1},
        }
        | changes
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["sglang", "vllm"])
def test_what_a_server_samples_is_weighed_by_the_teachers_own_probability(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its log-probs of sampled tokens are: here those of temperature 1, and wrong."""
    seen: list[Scored] = []
    update = LocalLearner.update

    async def watched(learner: LocalLearner, samples: Any) -> Any:
        seen.extend(samples)
        return await update(learner, samples)

    monkeypatch.setattr(LocalLearner, "update", watched)
    model = tiny.lm_of(TEACHER).model
    with in_thread(FakeEngine(model)) as server:
        server.raw_logprobs, server.other_logprobs = True, 0.3
        result = api.train(recipe(server, tmp_path, kind))
    theirs = [sample.rollout for sample in seen if sample.rollout.source == "teacher"]
    assert len(theirs) == 6 == len(seen) - len(theirs)
    for rollout in theirs:
        of_sampled_S = tiny.logprobs_of_sampled(model, rollout, 0.7)
        np.testing.assert_allclose(rollout.logprobs, of_sampled_S, atol=0.05)  # rescaled: certified, not exact
    assert np.isfinite(result.steps[-1]["objective"])
    assert result.steps[0]["source/teacher/responses"] == 2
    assert torch.isfinite(torch.tensor([line["grad_norm"] for line in result.steps])).all()


class OwnDice(FakeEngine):
    """What it samples follows from no seed, as a server's usually does."""

    def _sample(self, prompt: list[int], sampling: Sampling, top: int) -> Any:
        return super()._sample(prompt, replace(sampling, seed=secrets.randbits(32)), top)


def test_what_a_server_sampled_is_in_the_journal_and_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update that is made again is made of the same tokens."""
    seen: list[list[Scored]] = []
    update = LocalLearner.update

    async def fails_once(learner: LocalLearner, samples: Any) -> Any:
        seen.append(list(samples))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return await update(learner, samples)

    monkeypatch.setattr(LocalLearner, "update", fails_once)
    with in_thread(OwnDice(tiny.lm_of(TEACHER).model)) as server:
        with pytest.raises(KeyboardInterrupt):
            api.train(recipe(server, tmp_path))
        result = api.train(recipe(server, tmp_path))
    assert [line["step"] for line in result.steps] == [1, 2, 3]
    first, again = ([sample.rollout for sample in samples] for samples in seen[1:3])
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert one.source == other.source
    assert [rollout.source for rollout in again] == ["student"] * 2 + ["teacher"] * 2
    assert not list((tmp_path / "run" / "journal").glob("*.jsonl"))


def test_a_server_that_stops_sampling_ends_the_run_in_one_message(tmp_path: Path) -> None:
    with in_thread(FakeEngine(tiny.lm_of(TEACHER).model)) as server:
        server.goes_on = True
        with pytest.raises(LimbeckError, match="teacher teacher: "):
            api.train(recipe(server, tmp_path))
