"""A teacher that is the student's own past: what scores each step, and that a resumed run has it to the bit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.config.self_teacher import members_of
from limbeck.config.teacher import LocalTeacherConfig, SelfTeacherConfig
from limbeck.errors import RecipeError, RunError
from limbeck.learners.past import PastSelf, SelfTeacher
from limbeck.learners.policy import LocalPolicy
from limbeck.records import HiddenScores, Scored, ScoreRequest
from tests.helpers import learner_of, random_rollout, tiny_lm

WAYS: dict[str, dict[str, Any]] = {"start": {}, "lagged": {"lag": 2}, "average": {"decay": 0.75}}
LORA: dict[str, Any] = {"lora": {"rank": 2}}
TEXT = np.arange(3, 9)


def states(scorer: Any) -> torch.Tensor:
    request = ScoreRequest("r", TEXT, np.arange(6) > 0, 1.0, "full")
    (answer,) = asyncio.run(scorer.score([request]))
    assert isinstance(answer, HiddenScores)
    return answer.states.fetch()


def world(way: str, **config: Any):
    """A learner, the teacher of its past, and a step that learns from that teacher; lr is large, so weights move."""
    learner = learner_of(tiny_lm(0), lr=0.05, **config)
    past = PastSelf("teacher", learner, **WAYS[way])
    learner.pasts.append(past)
    teacher = SelfTeacher("teacher", LocalPolicy(learner.lm), past)

    def step(number: int) -> None:
        rng = np.random.default_rng(number)
        rollouts = [random_rollout(rng, i, 4) for i in range(2)]
        requests = [ScoreRequest(r.prompt.id, r.token_ids[::-1].copy(), r.trained, 0.7, "full") for r in rollouts]
        scores = asyncio.run(teacher.score(requests))  # of other texts: a view of its own, so there is a gradient
        asyncio.run(learner.update([Scored(r, s) for r, s in zip(rollouts, scores, strict=True)]))

    return learner, teacher, step


def test_an_average_without_a_share_of_its_own_is_the_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "average", {"decay": 0.0})
    learner, teacher, step = world("average")
    for number in range(2):
        step(number)
        torch.testing.assert_close(states(teacher), states(LocalPolicy(learner.lm)), rtol=0, atol=0)


@pytest.mark.parametrize("config", [{}, LORA], ids=["full", "lora"])
def test_which_weights_score_each_step(config: dict[str, Any]) -> None:
    base = states(LocalPolicy(tiny_lm(0)))
    for way in WAYS:
        learner, teacher, step = world(way, **config)
        seen = [states(asyncio.run(learner.publish()))]
        average = {name: p.detach().clone() for name, p in learner.parameters.items()}
        for number in range(5):
            if way == "start":
                assert torch.allclose(states(teacher), base, atol=1e-4)
            elif way == "lagged":
                assert torch.equal(states(teacher), seen[max(0, number - 2)])
            else:
                expected = learner.policy_of(0, average.items())
                assert torch.allclose(states(teacher), states(expected), atol=1e-6)
            step(number)
            seen.append(states(asyncio.run(learner.publish())))
            assert not torch.equal(seen[-1], seen[-2])  # the weights move, and scoring did not leave others behind
            average = {n: 0.75 * a + 0.25 * learner.parameters[n].detach() for n, a in average.items()}


@pytest.mark.parametrize("config", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_learner_goes_on_with_the_same_past_to_the_bit(tmp_path: Path, way: str, config: Any) -> None:
    learner, teacher, step = world(way, **config)
    for number in range(3):
        step(number)
    learner.save(tmp_path)
    again, its_teacher, its_step = world(way, **config)
    if not config:
        again.lm.model.load_state_dict(learner.lm.model.state_dict())  # as loaded from model/
    again.restore(tmp_path)
    for number in range(3, 6):
        assert torch.equal(states(its_teacher), states(teacher))
        step(number)
        its_step(number)
    for name, parameter in learner.parameters.items():
        assert torch.equal(parameter, again.parameters[name])


def test_a_past_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    learner, _, step = world("average")
    step(0)
    learner.save(tmp_path)
    step(1)
    past = learner.pasts[0]
    with pytest.raises(RunError, match="of update 1 or of other weights than the student's of update 2"):
        past.restore(tmp_path)
    (tmp_path / "past-teacher.safetensors").unlink()
    with pytest.raises(RunError, match="cannot read the weights that the teacher teacher scores with"):
        past.restore(tmp_path)


def recipe(**tables: Any) -> Recipe:
    return parse_recipe({"student": {"model": "demo:student"}, "task": {"kind": "arithmetic"}, **tables})


def test_the_beginning_is_a_model_of_its_own_unless_adapters_alone_are_trained() -> None:
    teacher = {"kind": "self", "view": {"kind": "prompted", "system": "Be sure."}}
    (own,) = members_of(recipe(teacher=teacher)).values()
    assert isinstance(own, LocalTeacherConfig)
    assert (own.model, own.view.kind) == ("demo:student", "prompted")
    (base,) = members_of(recipe(teacher=teacher, learner=LORA)).values()
    assert isinstance(base, SelfTeacherConfig)
    (fleet,) = members_of(recipe(teacher=teacher, learner=LORA, cluster={})).values()
    assert isinstance(fleet, LocalTeacherConfig)


@pytest.mark.parametrize(
    ("teacher", "tables", "message"),
    [
        ({"of": "lagged"}, {}, "of = 'lagged' needs lag"),
        ({"of": "average"}, {}, "of = 'average' needs decay"),
        ({"lag": 3}, {}, "lag = 3 goes with of = 'lagged', but of = 'start'"),
        ({"of": "lagged", "lag": 3}, {"cluster": {}}, "those of a fleet do not"),
        ({"of": "lagged", "lag": 3}, {"rollout": {"lag": 1}}, "Set rollout.lag = 0"),
        ({"of": "average", "decay": 0.9}, {"learner": {"kind": "python", "factory": "a:b"}}, "of your own does not"),
    ],
)
def test_what_a_past_cannot_go_with(teacher: dict[str, Any], tables: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(teacher={"kind": "self", **teacher}, **tables)
