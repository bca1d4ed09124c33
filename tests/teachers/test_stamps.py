"""A score is stamped with the temperature of what divided, never with the one that was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from limbeck.errors import ContractError
from limbeck.learners.batch import make_batch
from limbeck.models.head import Head
from limbeck.records import HiddenScores, Scored, Scores
from limbeck.teachers.local import LocalTeacher
from tests import tiny
from tests.teachers.stamped import REQUEST, Stamped, honest, mismatched, teacher_of  # noqa: F401 (fixtures)

STAMPS = {
    "plain, asked at another temperature than 1": 1.0,
    "plain, of a server started at another temperature": 1.3,
    "native, acknowledging another temperature": 1.3,
    "native, acknowledging none": 1.0,
    "native, over a baked folder": 0.35,
    "baked for another temperature": 0.5,
    "rescale, of a server at another temperature than 1": 0.91,
    "rescale, over a baked folder": 0.49,
    "rescale, dividing by another temperature": 1.0,
    "hidden states of a baked folder": 0.7,
    "a baked folder in this process": 0.7,
    "routed to a mismatched teacher": 1.0,
}


def test_each_mismatched_teacher_stamps_what_it_did(mismatched: Stamped) -> None:  # noqa: F811
    name, scores, requested = mismatched
    if isinstance(scores, HiddenScores):
        assert scores.natural_temperature == STAMPS[name] != 1.0  # states must be divided by T by whoever has the head
    else:
        assert scores.temperature == pytest.approx(STAMPS[name])
        assert scores.temperature != requested


def test_each_honest_teacher_stamps_the_requests_temperature(honest: Stamped) -> None:  # noqa: F811
    _, scores, requested = honest
    if isinstance(scores, HiddenScores):
        assert scores.natural_temperature == 1.0
    else:
        assert scores.temperature == requested


def train_on(scores: Scores, temperature: float) -> None:
    """What the learner does first with the scores of `REQUEST`."""
    rollout = tiny.rollout(REQUEST.token_ids.tolist(), REQUEST.scored.tolist(), temperature)
    heads = {"head": Head(torch.ones(tiny.VOCABULARY, 32)), **LocalTeacher("t", tiny.fresh()).heads}
    make_batch([Scored(rollout, scores)], "padded", 100, torch.device("cpu"), heads)


def test_the_learner_refuses_each_mismatched_teacher(mismatched: Stamped) -> None:  # noqa: F811
    _, scores, requested = mismatched
    with pytest.raises(ContractError, match="temperature"):
        train_on(scores, requested)


def test_the_learner_takes_each_honest_teacher(honest: Stamped) -> None:  # noqa: F811
    _, scores, requested = honest
    train_on(scores, requested)


async def test_states_of_another_width_than_the_head_takes_are_refused_by_name() -> None:
    teacher = teacher_of("hidden")
    teacher.heads = {"head": Head(torch.zeros(tiny.VOCABULARY, 48))}
    with pytest.raises(ContractError, match=r"states of width 32, but teacher\.head takes states of 48"):
        await teacher.score([replace(REQUEST, support="full")])
