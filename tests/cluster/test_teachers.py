"""Local teachers in processes: the bits of one process, whatever dies; the update begins before scoring has ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.cluster.teachers import TeacherPool
from limbeck.cluster.worker import Worker
from limbeck.config.base import ModelConfig
from limbeck.errors import TeacherError
from limbeck.learners.batch import request_for
from limbeck.learners.local import LocalLearner
from limbeck.models.loading import load_model, load_outline
from limbeck.records import Failure, HiddenScores, Rollout, Scored, request_of
from limbeck.teachers.local import LocalTeacher
from tests.cluster.fleets import table, train, weights
from tests.cluster.parts import GatedTeacher
from tests.helpers import learner_of, random_rollout, save_tiny, tiny_lm

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]

BUDGET = 40  # tokens of a unit: several of them in a step


def step(seed: int) -> list[Rollout]:
    rng = np.random.default_rng(seed)
    return [random_rollout(rng, number, int(rng.integers(2, 9))) for number in range(16)]


async def scored(teacher: Any, rollouts: list[Rollout]) -> list[Scored]:
    answers = await teacher.score([request_for(rollout) for rollout in rollouts])
    assert all(isinstance(answer, HiddenScores) for answer in answers)
    return [Scored(rollout, answer) for rollout, answer in zip(rollouts, answers, strict=True)]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():
        await asyncio.sleep(0.02)


def weights_of(learner: LocalLearner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.parameters.values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


async def test_what_is_fetched_is_what_one_process_computes_whatever_happens(tmp_path: Path) -> None:
    section = ModelConfig(model=save_tiny(tmp_path / "teacher", 2))
    outline = load_outline(section)
    build = partial(GatedTeacher, section.model, BUDGET, tmp_path)
    workers = [Worker(f"teacher {number}", build, torch.get_num_threads()) for number in (1, 2)]
    pool, alone = (
        TeacherPool("teacher", outline, workers),
        LocalTeacher("teacher", load_model(section, torch.device("cpu")), BUDGET),
    )
    await pool.start()
    assert (pool.info, pool.facts.fingerprint) == (alone.info, alone.fingerprint)
    learner, other = (learner_of(tiny_lm(1), alone.lm, micro_batch_tokens=BUDGET) for _ in range(2))
    gate = tmp_path / "open"

    async def update(number: int) -> asyncio.Task[Any]:
        """Begun; as it would be, in `other`."""
        samples = await scored(pool, step(number))
        await other.update(await scored(alone, step(number)))
        return asyncio.create_task(asyncio.to_thread(asyncio.run, learner.update(samples)))

    # The update begins while units are not computed yet.
    (tmp_path / "open-0").touch()
    first = await update(0)

    async def has_begun() -> bool:
        return sum([(await worker.call("progress"))[1] for worker in workers]) >= 2

    await until(has_begun)
    assert not first.done()
    assert [(await worker.call("progress"))[0] for worker in workers] == [2, 2]
    gate.touch()
    await first
    assert same(weights_of(learner), weights_of(other))

    # One dies in computing: nothing was fetched of it yet.
    gate.unlink()
    (tmp_path / "open-0").unlink()
    second = await update(1)
    await asyncio.sleep(0.1)
    os.kill((await workers[0].link.actor.who.remote())[1], signal.SIGKILL)
    gate.touch()
    await second
    assert same(weights_of(learner), weights_of(other))

    # One dies between computing and fetching.
    samples = await scored(pool, step(2))
    states = [sample.scores.states for sample in samples]
    await until(lambda: _computed(pool, states))
    os.kill((await workers[1].link.actor.who.remote())[1], signal.SIGKILL)
    await asyncio.to_thread(asyncio.run, learner.update(samples))
    await other.update(await scored(alone, step(2)))
    assert same(weights_of(learner), weights_of(other))
    assert 0 < await pool.seconds_of(states) < 60

    # What fails in computing is raised in the update, which is not made.
    (tmp_path / "fail").touch()
    failing, version = await scored(pool, step(3)), learner.version
    with pytest.raises(
        TeacherError, match=r"teacher teacher could not score \d+ responses .*OutOfMemory.*no memory left"
    ):
        await asyncio.to_thread(asyncio.run, learner.update(failing))
    (tmp_path / "fail").unlink()
    assert learner.version == version
    assert same(weights_of(learner), weights_of(other))
    await asyncio.to_thread(asyncio.run, learner.update(failing))  # the very same, once it works again
    await other.update(await scored(alone, step(3)))
    assert same(weights_of(learner), weights_of(other))

    # What the model has no answer to is known without asking for it.
    long = request_of([5] * 65, 1, 0.7, "full", "long")
    assert await pool.score([long]) == await alone.score([long])
    assert isinstance((await pool.score([long]))[0], Failure)
    for worker in workers:
        worker.kill()


async def _computed(pool: TeacherPool, states: list[Any]) -> bool:
    """Whether every unit took its time."""
    seconds = [await worker.call("seconds", [one.unit.id]) for worker in pool.workers for one in states]
    return sum(second > 0 for second in seconds) == len(states)


def test_routed_teachers_and_a_reference_make_the_weights_of_one_process(tmp_path: Path) -> None:
    recipe = table(
        tmp_path,
        teacher={
            "kind": "routed",
            "default": "general",
            "teachers": {
                "general": {"kind": "local", "model": save_tiny(tmp_path / "general", 5)},
                "other": {"kind": "local", "model": save_tiny(tmp_path / "other", 6)},
            },
        },
        objective={"reference": {"weight": 0.1}},
        steps=2,
    )
    alone = train(recipe, tmp_path / "alone")
    fleet = train(recipe, tmp_path / "fleet", cluster={"teachers": 1, "state_mb": 1})
    assert weights(tmp_path / "fleet") == weights(tmp_path / "alone")
    for line in fleet.steps:
        assert line["seconds/score"] >= line["seconds/score/general"] > 1e-4
        assert line["tokens_per_second/score"] > 0
        for role in ("learner", "sampler", "teacher/general", "reference"):
            assert line[f"seconds/worked/{role}"] > 0
            assert line[f"seconds/waited/{role}"] >= 0
            assert line[f"system/memory/{role}"] > 2**20
    assert (tmp_path / "fleet/run/teacher-general.jsonl").read_text() == (
        tmp_path / "alone/run/teacher-general.jsonl"
    ).read_text()
    assert [r["reverse_kl/exact"] for r in fleet.evaluations] == [r["reverse_kl/exact"] for r in alone.evaluations]
