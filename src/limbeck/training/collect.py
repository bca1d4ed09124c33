"""Samples, grades and scores: the one way in which rollouts come about.

    collected = await collect(run, prompts, run.sampling(seed), samples_per_prompt=4)
    collected.samples      what the learner is given

The loop, evaluation and recording use it and nothing else. Environments of all keys run at once; a wave is decoded
once every one of them waits for a turn, so what is decoded together follows from the requests, never from timing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from limbeck.environments.session import Session
from limbeck.errors import DataError, LimbeckError, TeacherError
from limbeck.protocols import Engine
from limbeck.records import (
    Episode,
    Failure,
    HiddenScores,
    Key,
    Prompt,
    Rollout,
    Sampled,
    SampleRequest,
    Sampling,
    Scored,
    ScoreRequest,
    Scores,
)
from limbeck.training.advantage import group_advantages
from limbeck.training.run import Run
from limbeck.training.units import plan_units

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """Everything that came of some prompts. The first three are of every rollout, in order."""

    rollouts: list[Rollout]
    texts: list[str]  # what graders saw
    rewards: list[float | None]
    samples: list[Scored]  # of the rollouts that could be scored; none where nothing was to be


async def collect(
    run: Run, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1, scored: bool = True
) -> Collected:
    """Fresh samples of `prompts`, graded and scored.

    Raises `LimbeckError` where one cannot be sampled, and `TeacherError` where fewer can be scored than the recipe
    asks for.
    """
    with run.phase("sample"):
        episodes = unwrap_failures(await sample_episodes(run, prompts, sampling, samples_per_prompt))
    with run.phase("grade"):
        rollouts, texts, rewards = _grade(run, episodes)
    if not scored:
        return Collected(rollouts, texts, rewards, [])
    with run.phase("score"):
        samples = await _score(run, rollouts, rewards)
        run.note_seconds({f"score/{name}": seconds for name, seconds in run.teacher_seconds().items()})
    return Collected(rollouts, texts, rewards, samples)


async def sample_episodes(
    run: Run, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int
) -> list[Episode | Failure]:
    """One episode for each sample of each prompt. A prompt that comes twice is another occurrence of it."""
    seen: Counter[str] = Counter()
    keyed: list[tuple[Prompt, Key]] = []
    for prompt in prompts:
        keyed += [(prompt, Key(prompt.id, seen[prompt.id], sample)) for sample in range(samples_per_prompt)]
        seen[prompt.id] += 1
    waves = _Waves(run.engine, len(keyed))

    async def one(number: int, prompt: Prompt, key: Key) -> Episode | Failure:
        async def submit(request: SampleRequest) -> Sampled | Failure:
            return await waves.submit(number, request)

        try:
            return await run.environment.run(prompt, key, Session(prompt, key, sampling, submit, run.student_top))
        finally:
            waves.ended()

    return list(await asyncio.gather(*(one(number, *item) for number, item in enumerate(keyed))))


class _Waves:
    """Turns of many sessions, decoded together once every session that still runs waits for one."""

    def __init__(self, engine: Engine, sessions: int) -> None:
        self.engine, self.running = engine, sessions
        self.waiting: list[tuple[int, SampleRequest, asyncio.Future[Sampled | Failure]]] = []
        self.decoding: asyncio.Task[None] | None = None

    async def submit(self, session: int, request: SampleRequest) -> Sampled | Failure:
        future: asyncio.Future[Sampled | Failure] = asyncio.get_running_loop().create_future()
        self.waiting.append((session, request, future))
        self._decode_if_all_wait()
        return await future

    def ended(self) -> None:
        self.running -= 1
        self._decode_if_all_wait()

    def _decode_if_all_wait(self) -> None:
        if self.waiting and len({session for session, _, _ in self.waiting}) == self.running:
            wave, self.waiting = sorted(self.waiting, key=lambda item: (item[0], item[1].key.turn)), []
            self.decoding = asyncio.create_task(self._decode(wave))

    async def _decode(self, wave: list[tuple[int, SampleRequest, asyncio.Future[Sampled | Failure]]]) -> None:
        requests = [request for _, request, _ in wave]
        units = plan_units(requests, self.engine.max_rows)
        try:
            answers = await asyncio.gather(*(self.engine.sample([requests[i] for i in unit]) for unit in units))
        except Exception as error:
            for _, _, future in wave:
                if not future.done():
                    future.set_exception(error)
            return
        for unit, part in zip(units, answers, strict=True):
            for index, answer in zip(unit, part, strict=True):
                if not wave[index][2].done():  # a session that was cancelled asks no more
                    wave[index][2].set_result(answer)


def _grade(run: Run, episodes: Sequence[Episode]) -> tuple[list[Rollout], list[str], list[float | None]]:
    """Rollouts, their texts and rewards; the segments of an episode share its reward."""
    rollouts: list[Rollout] = []
    texts: list[str] = []
    rewards: list[float | None] = []
    for episode in episodes:
        said = [run.decode(rollout.response_ids) for rollout in episode.rollouts]
        reward = episode.reward
        if reward is None and episode.rollouts:
            reward = run.task.grade(episode.rollouts[-1].prompt, said[-1])
        rollouts += episode.rollouts
        texts += said
        rewards += [reward] * len(said)
    return rollouts, texts, rewards


async def _score(run: Run, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[Scored]:
    """Scores of teacher and reference, and advantages, for each rollout that could be scored."""
    views = unwrap_failures([run.view.see(rollout, run.support) for rollout in rollouts])
    requests = [view.request for view in views]
    answers = await run.teacher.score(requests)
    _check_count(run.teacher.name, answers, requests)
    advantages = _advantages(run, rollouts, rewards)  # of the whole group, whatever the teacher could score
    kept = require_scored_fraction(answers, run.min_scored_fraction)
    scores: list[Scores] = [answer for answer in answers if not isinstance(answer, Failure)]
    references: Sequence[HiddenScores | None] = [None] * len(kept)
    if run.reference is not None:
        found = unwrap_failures(await run.reference.score([requests[i] for i in kept]))
        references = [score for score in found if isinstance(score, HiddenScores)]
    return [
        Scored(rollouts[i], score, rewards[i], advantages[i], reference)
        for i, score, reference in zip(kept, scores, references, strict=True)
    ]


def _check_count(name: str, answers: Sequence[object], requests: Sequence[ScoreRequest]) -> None:
    if len(answers) != len(requests):
        raise TeacherError(
            f"teacher {name} gave {len(answers)} answers to {len(requests)} requests: it must give one each, in order"
        )


def _advantages(run: Run, rollouts: Sequence[Rollout], rewards: Sequence[float | None]) -> list[float]:
    section = run.recipe.objective.task_reward
    if section is None:
        return [0.0] * len(rollouts)
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) < len(rewards):
        raise DataError(
            f"objective.task_reward needs a reward for every response, but {len(rewards) - len(graded)} of "
            f"{len(rewards)} could not be graded. Give the task a grader and every prompt an answer."
        )
    return group_advantages(graded, [rollout.prompt.id for rollout in rollouts], section)


def require_scored_fraction(answers: Sequence[T | Failure], least: float) -> list[int]:
    """Places of the answers that are not failures, at least a share `least` of them.

    Raises `TeacherError` for fewer, naming the first failure: the step is not made.
    """
    kept = [index for index, answer in enumerate(answers) if not isinstance(answer, Failure)]
    if len(kept) < least * len(answers) or (answers and not kept):
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        first = failures[0]
        why = f"{first.kind}: {first.message.rstrip('.')}."
        raise TeacherError(
            f"{len(failures)} of {len(answers)} responses could not be scored, but teacher.min_scored_fraction = "
            f"{least}. The first is of {first.id!r}: {why} Nothing was updated; "
            "start the same command again to go on from the last checkpoint."
        )
    return kept


def unwrap_failures(answers: Sequence[T | Failure]) -> list[T]:
    """The answers, none of which may be a failure. Raises `LimbeckError` naming the first that is."""
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    if failures:
        first = failures[0]
        raise LimbeckError(
            f"{len(failures)} of {len(answers)} prompts failed to {first.stage}, the first {first.id!r}: "
            f"{first.kind}: {first.message}"
        )
    return [answer for answer in answers if not isinstance(answer, Failure)]
