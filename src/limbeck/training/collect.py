"""Samples, grades and scores: the one way in which rollouts come about.

    collected = await collect(run, prompts, run.sampling(seed), samples_per_prompt=4)
    collected.samples      what the learner is given

The loop, evaluation and recording use it and nothing else. Environments of all keys run at once; a wave is decoded
once every one of them waits for a turn, so what is decoded together follows from the requests, never from timing.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

from limbeck.environments.session import Session
from limbeck.errors import DataError, EngineError, LimbeckError, TeacherError
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
    Support,
)
from limbeck.teacher_views.same import SameView
from limbeck.training.advantage import group_advantages
from limbeck.training.metrics import describe_views
from limbeck.training.run import Run
from limbeck.training.units import plan_units

Turn: TypeAlias = tuple[SampleRequest, "asyncio.Future[Sampled | Failure]"]  # asked, and its answer
T = TypeVar("T")
SAME = SameView()  # of the reference policy, which is the student's own


@dataclass(frozen=True)
class Collected:
    """Everything that came of some prompts. The first four are of every rollout, in order."""

    rollouts: list[Rollout]
    texts: list[str]  # what graders saw
    rewards: list[float | None]
    episodes: list[int]  # which episode each is a segment of: a reward is of an episode
    samples: list[Scored]  # of the rollouts that could be scored; none where nothing was to be
    views: Mapping[str, float] = field(default_factory=dict)  # metrics of what the teacher saw in another way


async def collect(
    run: Run, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1, scored: bool = True
) -> Collected:
    """Fresh samples of `prompts`, graded and scored.

    Raises `LimbeckError` where one cannot be sampled, and `TeacherError` where fewer can be scored than the recipe
    asks for.
    """
    async with run.turn_to_sample():
        graded = await sample(run, prompts, sampling, samples_per_prompt)
    return await score(run, graded) if scored else graded


async def sample(run: Run, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1) -> Collected:
    """The first half, for whoever has the turn to sample."""
    with run.phase("sample"):
        episodes = unwrap_failures(await sample_episodes(run, prompts, sampling, samples_per_prompt))
    with run.phase("grade"):
        return _grade(run, episodes)


async def score(run: Run, graded: Collected) -> Collected:
    """The second half: what was sampled and graded, with scores."""
    async with run.turn_to_score():
        with run.phase("score"):
            samples, views = await _score(run, graded)
            run.note_seconds({f"score/{name}": seconds for name, seconds in run.teacher_seconds().items()})
    return replace(graded, samples=samples, views=views)


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

        session = Session(prompt, key, sampling, submit, run.student_top)
        try:
            return _checked(run, key, await run.environment.run(prompt, key, session))
        except LimbeckError:
            raise
        except Exception as error:
            if error is waves.failed:  # the engine's, not the environment's
                raise
            raise EngineError(
                f"environment {type(run.environment).__name__} raised {type(error).__name__} on prompt {prompt.id!r}: "
                f"{error}. Return a Failure where a prompt cannot be run."
            ) from error
        finally:
            waves.ended(number)

    return await _all_or_none(waves, (one(number, *item) for number, item in enumerate(keyed)))


async def _all_or_none(waves: _Waves, coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return. The first that raises stops the others: none goes on sampling behind the caller's back."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        under_way = [*tasks, *waves.decoding]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


def _checked(run: Run, key: Key, episode: object) -> Episode | Failure:
    """Raises `EngineError` for what is no episode of this key, or none that can be graded."""
    who = f"environment {type(run.environment).__name__}, prompt {key.prompt_id!r}"
    if isinstance(episode, Failure):
        return episode
    if not isinstance(episode, Episode):
        raise EngineError(f"{who}: run returned {type(episode).__name__}, expected generate.episode() or a Failure")
    if not episode.rollouts:
        raise EngineError(
            f"{who}: the episode has no rollouts. Call `generate` at least once before generate.episode(), or return a "
            "Failure."
        )
    if any(rollout.key != key for rollout in episode.rollouts):
        raise EngineError(f"{who}: the episode has rollouts of another key. Return what generate.episode() gives.")
    for reward in (episode.reward, *episode.turn_rewards):
        if reward is not None and not math.isfinite(reward):
            raise EngineError(f"{who}: the reward is {reward}, expected a finite number, or None for the task's grader")
    return episode


def _number(turn: Turn) -> int:
    return turn[0].key.turn


class _Waves:
    """Turns of many sessions, decoded together once every session that still runs waits for one."""

    def __init__(self, engine: Engine, sessions: int) -> None:
        self.engine, self.running = engine, set(range(sessions))
        self.waiting: dict[int, list[Turn]] = {}  # by session, of those that are running
        self.decoding: set[asyncio.Task[None]] = set()
        self.failed: Exception | None = None

    async def submit(self, session: int, request: SampleRequest) -> Sampled | Failure:
        future: asyncio.Future[Sampled | Failure] = asyncio.get_running_loop().create_future()
        if session in self.running:
            self.waiting.setdefault(session, []).append((request, future))
            self._decode_if_all_wait()
        else:  # a task that its session left behind
            future.cancel()
        return await future

    def ended(self, session: int) -> None:
        """It asks no more; a turn that it did not wait for is dropped, or the others would wait for it forever."""
        self.running.discard(session)
        for _, future in self.waiting.pop(session, []):
            future.cancel()
        self._decode_if_all_wait()

    def _decode_if_all_wait(self) -> None:
        if self.waiting and len(self.waiting) == len(self.running):
            waiting, self.waiting = self.waiting, {}
            wave = [turn for session in sorted(waiting) for turn in sorted(waiting[session], key=_number)]
            task = asyncio.create_task(self._decode(wave))
            self.decoding.add(task)  # the loop itself keeps only a weak reference
            task.add_done_callback(self.decoding.discard)

    async def _decode(self, wave: list[Turn]) -> None:
        requests = [request for request, _ in wave]
        units = plan_units(requests, self.engine.max_rows)
        try:
            answers = await asyncio.gather(*(self._sample([requests[i] for i in unit]) for unit in units))
        except Exception as error:
            self.failed = error
            for _, future in wave:
                if not future.done():
                    future.set_exception(error)
            return
        for unit, part in zip(units, answers, strict=True):
            for index, answer in zip(unit, part, strict=True):
                future = wave[index][1]
                if not future.done():  # a session that was cancelled asks no more
                    future.set_result(answer)

    async def _sample(self, unit: list[SampleRequest]) -> list[Sampled | Failure]:
        answers = await self.engine.sample(unit)
        if len(answers) != len(unit):
            raise EngineError(
                f"engine {type(self.engine).__name__} gave {len(answers)} answers to {len(unit)} requests: it must "
                "give one each, in order"
            )
        return answers


async def note_computing(run: Run, samples: Sequence[Scored]) -> None:
    """The seconds of teachers that answered before they had computed, once their answers were fetched."""
    if run.computing_seconds is None:
        return
    found = await run.computing_seconds(samples)
    run.seconds["score"] = max(run.seconds["score"], *found.values(), 0.0)
    run.seconds |= {f"score/{name}": seconds for name, seconds in found.items() if f"score/{name}" in run.seconds}


def _grade(run: Run, episodes: Sequence[Episode]) -> Collected:
    """Rollouts, their texts and rewards; the segments of an episode share its reward."""
    graded = Collected([], [], [], [], [])
    for number, episode in enumerate(episodes):
        texts = [run.decode(rollout.response_ids) for rollout in episode.rollouts]
        reward = episode.reward
        if reward is None:
            reward = run.task.grade(episode.rollouts[-1].prompt, texts[-1])
        graded.rollouts.extend(episode.rollouts)
        graded.texts.extend(texts)
        graded.rewards.extend([reward] * len(texts))
        graded.episodes.extend([number] * len(texts))
    return graded


async def _score(run: Run, graded: Collected) -> tuple[list[Scored], dict[str, float]]:
    """Scores of teacher and reference, and advantages, for each rollout that could be scored; metrics of the views."""
    rollouts, rewards = graded.rollouts, graded.rewards
    views = unwrap_failures([run.view.see(rollout, _support(run, rollout)) for rollout in rollouts])
    requests = [view.request for view in views]
    answers = await run.teacher.score(requests)
    _check_count(run.teacher.name, answers, requests)
    advantages = _advantages(run, graded)  # of the whole group, whatever the teacher could score
    kept = require_scored_fraction(answers, run.min_scored_fraction)
    scores: list[Scores] = [
        run.view.read(rollout, view, answer)
        for rollout, view, answer in zip(rollouts, views, answers, strict=True)
        if not isinstance(answer, Failure)
    ]
    references: Sequence[HiddenScores | None] = [None] * len(kept)
    if run.reference is not None:
        found = unwrap_failures(await run.reference.score([SAME.see(rollouts[i], "full").request for i in kept]))
        references = [score for score in found if isinstance(score, HiddenScores)]
    samples = [
        Scored(rollouts[i], score, rewards[i], advantages[i], reference, views[i].groups)
        for i, score, reference in zip(kept, scores, references, strict=True)
    ]
    return samples, describe_views([(rollouts[i], views[i]) for i in kept])


def _support(run: Run, rollout: Rollout) -> Support:
    """What the teacher is asked for. Raises `EngineError` where the student's own top ids are, and were not reported.

    The sampler's and not the learner's of later: a function of the prefix too, and known before the teacher is asked.
    """
    if not run.student_top:
        return run.support
    if rollout.top_ids is None or rollout.top_ids.shape[1] != run.student_top:
        given = None if rollout.top_ids is None else rollout.top_ids.shape
        raise EngineError(
            f"objective.support = 'student_top' needs the {run.student_top} most likely ids of each sampled token, but "
            f"the rollout of prompt {rollout.prompt.id!r} has {given}. The engine must report `Sampled.top_ids` as "
            "`SampleRequest.top` asks, and the environment keep them; or set objective.support to a number."
        )
    return rollout.top_ids


def _check_count(name: str, answers: Sequence[object], requests: Sequence[ScoreRequest]) -> None:
    if len(answers) != len(requests):
        raise TeacherError(
            f"teacher {name} gave {len(answers)} answers to {len(requests)} requests: it must give one each, in order"
        )


def _advantages(run: Run, graded: Collected) -> list[float]:
    """One a rollout. The group of a prompt are its episodes, however many segments each has."""
    section = run.recipe.objective.task_reward
    if section is None:
        return [0.0] * len(graded.rollouts)
    rewards: list[float] = []
    groups: list[str] = []
    missing = 0
    for rollout, reward in first_segments(graded.episodes, zip(graded.rollouts, graded.rewards, strict=True)):
        groups.append(rollout.prompt.id)
        rewards.append(reward if reward is not None else math.nan)
        missing += reward is None
    if missing:
        raise DataError(
            f"objective.task_reward needs a reward for every response, but {missing} of {len(rewards)} could not be "
            "graded. Give the task a grader and every prompt an answer."
        )
    advantages = group_advantages(rewards, groups, section)
    return [advantages[episode] for episode in graded.episodes]


def first_segments(episodes: Sequence[int], values: Iterable[T]) -> list[T]:
    """One of `values`, which are of rollouts, for each episode.

    >>> first_segments([0, 1, 1, 2], "abcd")
    ['a', 'b', 'd']
    """
    return [value for i, value in enumerate(values) if i == 0 or episodes[i] != episodes[i - 1]]


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
