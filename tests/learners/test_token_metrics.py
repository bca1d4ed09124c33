"""Standard errors are over prompts: compared with the spread of the mean over many simulated steps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.learners.batch import MicroBatch
from limbeck.learners.token_metrics import TokenMetrics
from limbeck.objectives import Measured, Tokens
from limbeck.records import Sampling, Scored
from limbeck.reports import Mean
from tests.helpers import dense_scores, learner_of, random_rollout, random_samples, tiny_lm

CPU = torch.device("cpu")


def metrics_of(prompt_ids: Sequence[str], kl: Sequence[np.ndarray]) -> TokenMetrics:
    """Of responses whose tokens have these log-ratios, one micro-batch each."""
    metrics = TokenMetrics(prompt_ids, CPU)
    for index, values in enumerate(kl):
        ratio_N = torch.from_numpy(np.asarray(values, dtype=np.float64))
        zero_N = torch.zeros_like(ratio_N)
        tokens = Tokens(zero_N.long(), zero_N.long(), ratio_N)
        layout: Any = None
        micro = MicroBatch(layout, tokens, layout, None, (index,))
        metrics.add(micro, Measured(ratio_N, zero_N, zero_N, ratio_N))
    return metrics


def test_standard_error_is_the_spread_of_the_mean_over_prompts_with_correlated_samples() -> None:
    """16 prompts of 4 samples that have a prompt in common: clustered by response it would be 2.2 times too small."""
    rng = np.random.default_rng(0)
    prompt_ids = [f"p{prompt}" for prompt in range(16) for _ in range(4)]
    means, errors = [], []
    for _ in range(600):
        of_prompt = rng.normal(0, 0.35, 16)
        lengths = rng.integers(2, 9, 64)
        kl = [of_prompt[i // 4] + rng.normal(0, 0.3, length) for i, length in enumerate(lengths)]
        mean = metrics_of(prompt_ids, kl).means()["reverse_kl/sampled"]
        assert mean.value is not None
        assert mean.standard_error is not None
        means.append(mean.value)
        errors.append(mean.standard_error)
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.1)


def test_against_the_definition() -> None:
    """sqrt(n / (n - 1) * sum over prompts of (total - mean * count)^2) / N; a prompt may be spread over the step."""
    kl = [np.array([1.0, 2.0]), np.array([4.0]), np.array([0.0, 1.0, 2.0])]
    metrics = metrics_of(["a", "b", "a"], kl)
    mean = metrics.means()["reverse_kl/sampled"]
    assert mean.value == pytest.approx(10 / 6)
    spread = (6 - 10 / 6 * 5) ** 2 + (4 - 10 / 6) ** 2
    assert mean.standard_error == pytest.approx(math.sqrt(2 * spread) / 6)
    assert mean.clusters == 2
    by_teacher = metrics.by_teacher(["x", "y", "x"])
    assert by_teacher["teacher/x/reverse_kl/sampled"].value == pytest.approx(6 / 5)
    assert by_teacher["teacher/x/reverse_kl/sampled"].standard_error is None  # one prompt


@pytest.mark.parametrize("prompt_ids", [["a"], ["a", "a", "a"]])
def test_one_prompt_has_no_standard_error(prompt_ids: list[str]) -> None:
    means = metrics_of(prompt_ids, [np.array([1.0, 2.0])] * len(prompt_ids)).means()
    assert means["reverse_kl/sampled"].standard_error is None
    assert means["reverse_kl/sampled"].value == 1.5


def test_prompts_without_a_token_are_no_clusters() -> None:
    lm, teacher = tiny_lm(1), tiny_lm(2)
    report = asyncio.run(learner_of(lm, teacher).measure(random_samples(teacher, [4, 0, 3, 0])))
    assert report.means["reverse_kl/exact"].clusters == 2
    assert "reverse_kl/exact/se" in report.values()


def test_means_do_not_depend_on_prompt_ids() -> None:
    kl = [np.array([0.1, 0.7]), np.array([0.3]), np.array([0.9])]
    one, other = (metrics_of(ids, kl).means() for ids in (["a", "a", "b"], ["a", "b", "c"]))
    assert {n: (m.total, m.count) for n, m in one.items()} == {n: (m.total, m.count) for n, m in other.items()}
    assert one["importance/mean"] == other["importance/mean"] == Mean(one["importance/mean"].total, 4.0)


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}])
def test_a_perfect_engine_that_truncates_has_no_mismatch_and_importance_1(cut: dict[str, Any]) -> None:
    """Its log-probs are those of the whole distribution at T, as the learner's are: like is compared with like."""
    lm, teacher = tiny_lm(1), tiny_lm(2)
    samples = []
    for index in range(3):
        rollout = random_rollout(np.random.default_rng(index), index, 5)
        ids = torch.from_numpy(rollout.token_ids)[None]
        with torch.no_grad():
            logp_SV = torch.log_softmax(lm.model(ids).logits[0, :-1] / 0.7, -1)[rollout.trained[1:]]
        mu_S = logp_SV.gather(1, torch.from_numpy(rollout.response_ids)[:, None])[:, 0].numpy()
        rollout = replace(rollout, logprobs=mu_S, sampling=Sampling(0.7, 32, **cut))
        samples.append(Scored(rollout, dense_scores(teacher, rollout)))
    report = asyncio.run(learner_of(lm, teacher).update(samples))
    assert report.means["mismatch"].value == pytest.approx(0, abs=1e-5)
    assert report.means["importance/mean"].value == pytest.approx(1, abs=1e-5)
    assert report.maxima["importance/max"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("cut", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.3}])
def test_of_a_truncated_sample_there_is_no_sampled_kl_beside_the_exact_one(cut: dict[str, Any]) -> None:
    """The mean of log p - log q over what is kept is biased: 5.0 beside an exact 3.9 for two tiny models at 0.5."""
    lm, teacher = tiny_lm(1), tiny_lm(2)
    whole = random_samples(teacher, [4, 3])
    samples = [replace(sample, rollout=replace(sample.rollout, sampling=Sampling(0.7, 32, **cut))) for sample in whole]
    learner = learner_of(lm, teacher)
    measured = asyncio.run(learner.measure(samples)).values()
    assert "reverse_kl/sampled" not in measured
    assert "reverse_kl/sampled/se" not in measured
    assert measured["reverse_kl/exact"] == asyncio.run(learner.measure(whole)).values()["reverse_kl/exact"]
    assert "reverse_kl/sampled" in asyncio.run(learner.measure(whole)).values()
