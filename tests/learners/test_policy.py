"""A policy's own log-probs, held against transformers one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.learners.local import ROWS, LocalPolicy
from limbeck.records import Rollout, Sampling
from tests import tiny
from tests.helpers import random_rollout


def rollouts() -> list[Rollout]:
    """Of several lengths, one with a gap in its trained tokens and one with none."""
    rng = np.random.default_rng(0)
    whole = [random_rollout(rng, n, length) for n, length in enumerate((3, 20, 1, 9))]
    trained = whole[1].trained.copy()
    trained[5:9] = False
    gap = replace(whole[1], trained=trained, behaviour_logprobs=np.zeros(int(trained.sum()), np.float32))
    none = replace(whole[2], trained=np.zeros_like(whole[2].trained), behaviour_logprobs=np.zeros(0, np.float32))
    return [*whole, gap, none]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("budget", [10, 8192])
def test_log_probs_at_each_rollouts_own_temperature(family: str, budget: int) -> None:
    lm = tiny.lm_of(family)
    mixed = [replace(r, sampling=Sampling((0.5, 1.0, 1.7)[n % 3], 32)) for n, r in enumerate(rollouts())]
    lm.model.train()
    for rollout, found in zip(mixed, LocalPolicy(0, lm, budget=budget).logprobs(mixed), strict=True):
        lm.model.eval()
        with torch.no_grad():
            logits = lm.model(torch.tensor([rollout.token_ids.tolist()])).logits[0, :-1].double()
        lm.model.train()
        logp = torch.log_softmax(logits / rollout.sampling.temperature, dim=-1).numpy()
        expected = logp[np.arange(len(logp)), rollout.token_ids[1:]][rollout.trained[1:]]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert lm.model.training  # as it was


@pytest.mark.parametrize("changes", [{"top_k": 4}, {"top_p": 0.6}, {"min_p": 0.2}])
def test_a_cut_distribution_sums_to_1_over_what_is_left(changes: dict[str, Any]) -> None:
    """Every token in turn as the sampled one."""
    lm, (first, *_) = tiny.lm_of("llama"), rollouts()
    sampling, ids = Sampling(0.7, 32, **changes), first.token_ids[:4]
    each = [
        Rollout(
            first.prompt, 0, np.append(ids, token), np.arange(5) >= 4, np.zeros(1, np.float32), 0, "length", sampling
        )
        for token in range(lm.vocabulary)
    ]
    p = np.exp(np.concatenate(LocalPolicy(0, lm).logprobs(each)))
    assert 0 < (p > 0).sum() < lm.vocabulary
    assert p.sum() == pytest.approx(1, abs=1e-5)


def test_more_rows_than_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, several = tiny.lm_of("llama"), rollouts()
    before = LocalPolicy(0, lm).logprobs(several)
    monkeypatch.setattr("limbeck.learners.local.ROWS", 2)
    assert ROWS > 2
    for a, b in zip(before, LocalPolicy(0, lm).logprobs(several), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
