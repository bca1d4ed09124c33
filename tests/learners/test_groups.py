"""Scores of groups in the learner: any split into micro-batches, any layout, states or log-probs, masks, mistakes."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.errors import ContractError
from limbeck.learners.local import LocalLearner
from limbeck.learners.valid_mask import apply_valid_mask
from limbeck.models.head import Head
from limbeck.models.states import LocalStates
from limbeck.records import Groups, HiddenScores, Scored, TokenScores
from tests.helpers import random_rollout, tiny_lm

RNG = np.random.default_rng
HEAD = Head(torch.randn(31, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64))  # another vocabulary


def sample_of(seed: int, length: int, states: bool = False) -> Scored:
    """Two tokens of the student and three of the teacher a group; a last token of the student's in none."""
    rng = RNG(seed)
    rollout = random_rollout(rng, seed, length)
    rollout = replace(rollout, sampling=replace(rollout.sampling, temperature=1.0))
    count = (length - 1) // 2
    student = np.array([*np.repeat(np.arange(count), 2), *[-1] * (length - 2 * count)], dtype=np.int64)
    teacher = np.repeat(np.arange(count), 3)
    ids = rng.integers(0, 31, len(teacher))
    hidden = torch.from_numpy(rng.normal(size=(len(teacher), 5)))
    logq = torch.log_softmax(hidden @ HEAD.weight_Vd.T, dim=-1)[torch.arange(len(ids)), torch.from_numpy(ids)]
    groups = Groups(student, teacher, ids, np.full(count, 4), 4 * count + 2)
    if states:
        return Scored(rollout, HiddenScores("t", LocalStates(hidden), HEAD.fingerprint()), groups=groups)
    return Scored(rollout, TokenScores("t", 1.0, logq.numpy()), groups=groups)


def update(samples: list[Scored], **options: object) -> tuple[dict[str, float], torch.Tensor]:
    lm = tiny_lm(1, torch.float64)
    config = LocalLearnerConfig(lr=1e-2, **options)  # type: ignore[arg-type]
    objective = ReverseKLConfig(support="sampled", discount=0.5)
    learner = LocalLearner(lm, config, objective, 1, 0, {HEAD.fingerprint(): HEAD})
    report = asyncio.run(learner.update(samples))
    return {**report.values(), **report.maxima}, torch.cat([p.detach().flatten() for p in lm.model.parameters()])


def test_any_split_and_layout_gives_the_same_update_and_states_are_log_probs() -> None:
    lengths = [5, 9, 3, 7]
    expected, weights = update([sample_of(i, n) for i, n in enumerate(lengths)], micro_batch_tokens=10_000)
    for layout in ("padded", "packed", "tree"):
        for states in (False, True):
            found, other = update(
                [sample_of(i, n, states) for i, n in enumerate(lengths)], micro_batch_tokens=16, layout=layout
            )
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-9)
            assert found["reverse_kl/byte"] == pytest.approx(expected["reverse_kl/byte"], rel=1e-9)
            assert (other - weights).abs().max() < 1e-9


def test_the_kl_of_a_byte_is_over_the_bytes_that_are_compared() -> None:
    samples = [sample_of(0, 5), sample_of(1, 9)]
    found, _ = update(samples)
    compared = [apply_valid_mask(sample) for sample in samples]
    tokens = sum(len(sample.rollout.response_ids) for sample in compared)
    size = sum(int(sample.groups.sizes.sum()) for sample in compared if sample.groups is not None)
    assert (tokens, size) == (4 + 8, 8 + 16)
    assert found["reverse_kl/byte"] * size == pytest.approx(found["reverse_kl/sampled"] * tokens, rel=1e-9)


def test_a_group_with_an_uncertain_token_leaves_as_a_whole() -> None:
    """The second of three groups; what is left is numbered anew, and is not masked again."""
    sample = sample_of(0, 7)
    valid = np.ones(9, dtype=bool)
    valid[4] = False
    logprobs = np.where(valid, sample.scores.logprobs, np.nan)  # type: ignore[union-attr]
    masked = apply_valid_mask(replace(sample, scores=replace(sample.scores, logprobs=logprobs, valid_mask=valid)))
    assert masked.groups is not None
    assert masked.groups.student.tolist() == [0, 0, 1, 1]
    assert masked.groups.teacher.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.isfinite(masked.scores.logprobs).all()  # type: ignore[union-attr]
    assert masked.rollout.response_ids.tolist() == sample.rollout.response_ids[[0, 1, 4, 5]].tolist()
    assert apply_valid_mask(masked) is masked


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": np.array([0, 0, 1, 1])}, "groups of 4 tokens for 5 sampled ones"),
        ({"student": np.array([0, 0, 0, 0, -1])}, r"the student's groups are not 0 to 1 in order"),
        ({"student": np.array([0, 1, 0, 1, -1])}, "in order, each with a token"),
        ({"teacher": np.array([0, 0, 0, 1, 1])}, "6 scores for 5 of the teacher's tokens"),
        ({"teacher_ids": np.array([1])}, "groups of 6 of the teacher's tokens, but 1 ids"),
    ],
)
def test_groups_that_do_not_belong_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    sample = sample_of(0, 5)
    assert sample.groups is not None
    with pytest.raises(ContractError, match=message):
        update([replace(sample, groups=replace(sample.groups, **change))])
