"""A score is stamped with the temperature of what divided, never with the one that was asked for."""

from __future__ import annotations

import pytest

from limbeck.records import HiddenScores
from tests.teachers.stamped import Stamped, honest, mismatched  # noqa: F401 (fixtures)

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
