"""Tokens that the student did not sample: exact on full support, and in no number that is of its own samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.config.objective import JSDConfig, ReverseKLConfig
from limbeck.records import Scored
from tests.helpers import learner_of, random_samples, tiny_lm


def of_a_data_set(sample: Scored, name: str = "rows") -> Scored:
    rollout = sample.rollout
    count = int(rollout.trained.sum())
    return replace(
        sample,
        rollout=replace(
            rollout,
            prompt=replace(rollout.prompt, task=name),
            logprobs=np.full(count, np.nan, dtype=np.float32),
            versions=np.full(count, -1, dtype=np.int64),
            source="dataset",
        ),
    )


@pytest.mark.parametrize("objective", [ReverseKLConfig(), JSDConfig(beta=0.5)])
@pytest.mark.parametrize("advantages", [False, True])
async def test_on_full_support_the_update_does_not_ask_who_sampled(objective, advantages: bool) -> None:
    """States decide, and not how likely their tokens were: with log mu unknown the weights are the very same."""
    teacher = tiny_lm(2)
    weights = []
    for unknown in (False, True):
        samples = random_samples(teacher, [3, 5, 4, 2], advantages=advantages)
        samples[2:] = [replace(sample, advantage=0.0) for sample in samples[2:]]
        if unknown:
            samples[2:] = [of_a_data_set(sample) for sample in samples[2:]]
        learner = learner_of(tiny_lm(1), teacher, objective=objective, lr=1e-2)
        report = await learner.update(samples)
        weights.append(torch.cat([p.detach().flatten() for p in learner.lm.model.parameters()]))
    assert torch.equal(*weights)
    assert report.maxima["grad_norm"] > 0
    assert all(np.isfinite(value) for value in report.values().values())


async def test_numbers_of_the_students_samples_are_of_those_alone() -> None:
    teacher = tiny_lm(2)
    samples = random_samples(teacher, [3, 5, 4, 2])
    learner = learner_of(tiny_lm(1), teacher)
    own = (await learner.measure(samples[:2])).values()
    mixed = (await learner.measure([*samples[:2], *map(of_a_data_set, samples[2:])])).values()
    for name in ("mismatch", "importance/mean", "importance/effective_share", "importance/max", "reverse_kl/sampled"):
        assert mixed[name] == pytest.approx(own[name], rel=1e-6), name
    assert mixed["source/student/reverse_kl/exact"] == pytest.approx(own["reverse_kl/exact"], rel=1e-6)
    theirs = (await learner.measure(samples[2:])).values()
    assert mixed["source/rows/reverse_kl/exact"] == pytest.approx(theirs["reverse_kl/exact"], rel=1e-6)
    assert mixed["source/rows/objective"] == pytest.approx(theirs["objective"], rel=1e-6)
    assert "source/rows/reverse_kl/sampled" not in mixed
    both = (await learner.measure(samples)).values()
    assert mixed["reverse_kl/exact"] == pytest.approx(both["reverse_kl/exact"], rel=1e-6)
    assert not any(name.startswith("source/") for name in both)


async def test_a_step_without_samples_of_the_student_has_none_of_their_numbers() -> None:
    teacher = tiny_lm(2)
    samples = [of_a_data_set(sample) for sample in random_samples(teacher, [3, 5])]
    values = (await learner_of(tiny_lm(1), teacher).update(samples)).values()
    assert not {
        "mismatch",
        "importance/mean",
        "importance/max",
        "reverse_kl/sampled",
        "importance/effective_share",
    } & set(values)
    assert {"reverse_kl/exact", "source/rows/reverse_kl/exact", "tokens/trained"} <= set(values)
    assert all(np.isfinite(value) for value in values.values())
