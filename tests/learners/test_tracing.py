"""What a trace says of each token, compared with whole distributions of transformers' own logits."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.config.objective import ReverseKLConfig
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Scored, TokenScores, TopKScores
from tests.helpers import learner_of, random_samples, tiny_lm

LENGTHS = [5, 0, 9, 3]
KINDS = ("dense", "top-k", "sampled")


def logprobs(lm: CausalLM, sample: Scored) -> Tensor:
    """[S, V] at T = 0.7."""
    with torch.no_grad():
        logits_LV = lm.model.eval()(torch.from_numpy(sample.rollout.token_ids)[None]).logits[0, :-1]
    return torch.log_softmax(logits_LV / 0.7, -1)[torch.from_numpy(sample.rollout.trained)[1:]]


def as_kind(sample: Scored, kind: str, logq_SV: Tensor) -> Scored:
    of_sampled = logq_SV.gather(1, torch.from_numpy(sample.rollout.response_ids)[:, None])[:, 0].numpy()
    if kind == "dense":
        return sample
    if kind == "sampled":
        return replace(sample, scores=TokenScores("t", 0.7, of_sampled))
    top = logq_SV.topk(4, dim=1)
    return replace(sample, scores=TopKScores("t", 0.7, top.indices.numpy(), top.values.numpy(), of_sampled))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [12, 1000])
def test_a_trace_is_what_the_whole_distributions_say(kind: str, budget: int) -> None:
    lm, teacher = tiny_lm(1), tiny_lm(2)
    samples = [sample for sample in random_samples(teacher, LENGTHS) if sample.rollout.trained.any()]
    samples = [as_kind(sample, kind, logprobs(teacher, sample)) for sample in samples]
    support = {"dense": "full", "top-k": 4, "sampled": "sampled"}[kind]
    learner = learner_of(lm, teacher, objective=ReverseKLConfig(support=support), micro_batch_tokens=budget)  # type: ignore[arg-type]
    traces = asyncio.run(learner.trace(samples, top=3))
    for sample, trace in zip(samples, traces, strict=True):
        logp_SV, logq_SV = logprobs(lm, sample), logprobs(teacher, sample)
        places = (np.arange(len(logp_SV)), sample.rollout.response_ids)
        np.testing.assert_allclose(trace.student_logprobs, logp_SV.numpy()[places], atol=1e-4)
        np.testing.assert_allclose(trace.teacher_logprobs, logq_SV.numpy()[places], atol=1e-4)
        np.testing.assert_allclose(trace.student_entropy, -(logp_SV.exp() * logp_SV).sum(1), atol=1e-4)
        np.testing.assert_array_equal(trace.student_top.ids, logp_SV.topk(3, dim=1).indices)
        np.testing.assert_allclose(trace.student_top.logprobs, logp_SV.topk(3, dim=1).values, atol=1e-4)
        assert (trace.teacher_top is None) == (kind == "sampled")
        if trace.teacher_top is not None:
            np.testing.assert_array_equal(trace.teacher_top.ids, logq_SV.topk(3, dim=1).indices)
            np.testing.assert_allclose(trace.teacher_top.logprobs, logq_SV.topk(3, dim=1).values, atol=1e-4)
        if kind == "dense":
            kl_S = (logp_SV.exp() * (logp_SV - logq_SV)).sum(1)
            np.testing.assert_allclose(trace.reverse_kl, kl_S, atol=1e-4)  # type: ignore[arg-type]
            np.testing.assert_allclose(trace.teacher_entropy, -(logq_SV.exp() * logq_SV).sum(1), atol=1e-4)  # type: ignore[arg-type]
        else:
            assert trace.reverse_kl is None
            assert trace.teacher_entropy is None


def test_more_top_tokens_than_there_are() -> None:
    lm, teacher = tiny_lm(1), tiny_lm(2)
    (trace,) = asyncio.run(learner_of(lm, teacher).trace(random_samples(teacher, [2]), top=1000))
    assert trace.student_top.ids.shape == (2, lm.vocabulary)
