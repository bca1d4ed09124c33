"""Scores of every built-in teacher that is made to score at another temperature than the request's.

`mismatched` is a fixture of (name, scores, requested temperature); the learner must refuse each of them. `honest` is
the same of teachers that do score at it, which the learner must take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from limbeck.config.teacher import SGLangTeacherConfig
from limbeck.models.head import Head
from limbeck.records import Failure, ModelInfo, ScoreRequest, Scores, Support, request_of
from limbeck.teachers import remote
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.remote import Method, Proof, RemoteTeacher
from limbeck.teachers.rescale import rescale
from limbeck.teachers.routed import RoutedTeacher
from limbeck.wire.score import Reply, top_k, wants_states
from tests import tiny

T = 0.7
V = tiny.VOCABULARY
REQUEST = request_of([5, 6, 7, 8, 9], 2, T)
Stamped: TypeAlias = tuple[str, Scores, float]


@dataclass
class FakeDialect:
    """Answers at `scale` times the temperature that it is asked for, and reports `reports`; checks nothing."""

    reports: float | None = None
    kind: str = "fake"
    acknowledges: bool = True

    async def ask(self, pool: Any, request: ScoreRequest, url: str | None = None, *, acknowledges: bool) -> Reply:
        count = len(request.scored_ids)
        if wants_states(request):
            return Reply(np.zeros(0, np.float32), hidden=np.ones((count, 32), np.float32), temperature=self.reports)
        logits_SV = 3 * np.random.default_rng(0).standard_normal((count, V))
        logp_SV = (logits_SV - np.log(np.exp(logits_SV).sum(axis=1, keepdims=True))).astype(np.float32)
        top_SK = np.argsort(-logp_SV, axis=1)[:, : top_k(request)]
        return Reply(
            logp_SV[np.arange(count), request.scored_ids],
            top_SK if top_k(request) else None,
            np.take_along_axis(logp_SV, top_SK, axis=1) if top_k(request) else None,
            temperature=self.reports,
        )

    async def identity(self, pool: Any, url: str) -> str:
        return "fake"

    async def tokenize(self, pool: Any, text: str) -> list[int]:
        raise NotImplementedError


def teacher_of(method: Method, reports: float | None = None, natural: float = 1.0) -> RemoteTeacher:
    """A remote teacher of a method, over a server that reports a temperature and holds weights of another."""
    section = SGLangTeacherConfig(url="http://fake", top_logprobs=60, max_rescale_error=1.0)
    client = RemoteClient("t", section, FakeDialect(reports), None, V, V)  # type: ignore[arg-type]  # never used
    heads = {"head": Head(torch.zeros(V, 32))} if method == "hidden" else {}
    info = ModelInfo("m", V, natural_temperature=natural)
    return RemoteTeacher(client, Proof(method, info, heads=heads))


def local(natural: float) -> LocalTeacher:
    """A folder that was baked is known by its config."""
    lm = tiny.fresh()
    lm.model.config.limbeck_temperature = natural
    return LocalTeacher("t", lm)


MISMATCHED: Mapping[str, Callable[[], Any]] = {
    "plain, asked at another temperature than 1": partial(teacher_of, "plain"),
    "plain, of a server started at another temperature": partial(teacher_of, "plain", 1.3),
    "native, acknowledging another temperature": partial(teacher_of, "native", 1.3),
    "native, acknowledging none": partial(teacher_of, "native"),
    "native, over a baked folder": partial(teacher_of, "native", T, 0.5),
    "baked for another temperature": partial(teacher_of, "baked", 1.0, 0.5),
    "rescale, of a server at another temperature than 1": partial(teacher_of, "rescale", 1.3),
    "rescale, over a baked folder": partial(teacher_of, "rescale", 1.0, T),
    "rescale, dividing by another temperature": partial(teacher_of, "rescale", 1.0),
    "hidden states of a baked folder": partial(teacher_of, "hidden", None, T),
    "a baked folder in this process": partial(local, T),
    "routed to a mismatched teacher": lambda: RoutedTeacher({"a": teacher_of("plain")}, "a"),
}
HONEST: Mapping[str, Callable[[], Any]] = {
    "native": partial(teacher_of, "native", T),
    "baked": partial(teacher_of, "baked", 1.0, T),
    "rescale": partial(teacher_of, "rescale", 1.0),
    "hidden": partial(teacher_of, "hidden"),
    "local": partial(local, 1.0),
}


@pytest.fixture(params=MISMATCHED)
def mismatched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stamped:
    if request.param == "rescale, dividing by another temperature":
        monkeypatch.setattr(
            remote, "rescale", lambda tops, sampled, inside, t, v: rescale(tops, sampled, inside, 1.0, v)
        )
    return request.param, scores_of(MISMATCHED[request.param]()), T


@pytest.fixture(params=HONEST)
def honest(request: pytest.FixtureRequest) -> Stamped:
    return request.param, scores_of(HONEST[request.param]()), T


def scores_of(teacher: Any, support: Support = "sampled") -> Scores:
    (scores,) = asyncio.run(teacher.score([REQUEST]))
    assert not isinstance(scores, Failure), scores
    return scores  # type: ignore[no-any-return]
