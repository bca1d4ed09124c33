"""What of a teacher's answers a step goes on with, and what its line of metrics says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from limbeck.errors import TeacherError
from limbeck.models.states import LocalStates
from limbeck.records import Failure, HiddenScores, Scored, TokenScores
from limbeck.training.collect import require_scored_fraction
from limbeck.training.metrics import describe_scores
from tests.helpers import random_rollout


def scored(seed: int, valid: list[bool] | None) -> Scored:
    """Certified scores of four tokens, with bounds from 0.01 to 0.04 nats."""
    errors = np.linspace(0.01, 0.04, 4).astype(np.float32)
    mask = None if valid is None else np.array(valid)
    values = np.where(True if mask is None else mask, -1.0, np.nan).astype(np.float32)
    rollout = random_rollout(np.random.default_rng(seed), seed, 4)
    return Scored(rollout, TokenScores("t", 0.7, values, 0.04, errors, mask))


def test_metrics_count_what_was_masked_and_bound_only_what_was_trained() -> None:
    numbers = describe_scores([scored(0, [True, True, True, False]), scored(1, None)], asked=3)
    assert numbers["teacher/samples_lost"] == 1
    assert numbers["teacher/tokens_left_out"] == 1
    assert numbers["teacher/error_bound/max"] == pytest.approx(0.04)
    rounded = describe_scores([as_states(scored(0, [True, True, True, False]))], asked=1)
    alone = describe_scores([scored(0, [True, True, True, False])], asked=1)
    assert alone["teacher/error_bound/max"] == pytest.approx(0.03)
    assert "teacher/samples_lost" not in alone
    assert rounded == alone


def as_states(sample: Scored) -> Scored:
    """The same certificates, of hidden states that were rounded for the wire."""
    states = LocalStates(torch.zeros(4, 3))
    assert isinstance(sample.scores, TokenScores)
    errors, valid = sample.scores.errors, sample.scores.valid_mask
    return replace(sample, scores=HiddenScores("t", states, "a head", errors=errors, valid_mask=valid))


def test_samples_may_be_lost_only_down_to_the_fraction() -> None:
    failure = Failure("p7", "score", "timeout", "no answer in 3 s.")
    assert require_scored_fraction(["a", failure, "b", "c"], 0.75) == [0, 2, 3]
    with pytest.raises(TeacherError, match=r"1 of 4 .*min_scored_fraction = 1.0.*p7.*timeout"):
        require_scored_fraction(["a", failure, "b", "c"], 1.0)
    with pytest.raises(TeacherError):
        require_scored_fraction([failure], 0.0)
    assert require_scored_fraction([], 1.0) == []
