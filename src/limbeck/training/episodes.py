"""Episodes of a step: environments of all keys at once, each within its limits, and failures as values.

    answers = await run_episodes(environment, engine, keyed, sampling, limits)      an Episode or a Failure each

An episode that hangs, raises or returns nothing fails alone: its turn is waited for no longer, and the others go on.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from limbeck.environments.session import Session
from limbeck.errors import EngineError, LimbeckError, place_of
from limbeck.protocols import BatchesTurns, Environment, Samples
from limbeck.records import Episode, Failure, Key, Prompt, Sampled, SampleRequest, Sampling
from limbeck.training.units import plan_units
from limbeck.training.waves import Waves

T = TypeVar("T")

LINGER = 0.01  # seconds that a turn waits for company where an engine does not batch by itself, and no rule says whose
GRACE = 1.0  # seconds that an environment has to clean up after it was cancelled


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """See `config.environment.EpisodesConfig`. Single turns have the defaults: any failure stops the step."""

    timeout: float | None = None  # seconds of the environment's own
    max_turns: int | None = None
    concurrency: int | None = None
    min_completed_fraction: float = 1.0
    at_once: bool = False  # turns are decoded as they come: of agents that run elsewhere, nobody knows who asks next
    context: int | None = None  # tokens of a whole sequence: what student and teachers can read
    vocabulary: int | None = None  # of the student: ids of contexts are below it


async def run_episodes(
    environment: Environment,
    engine: Samples,
    keyed: Sequence[tuple[Prompt, Key]],
    sampling: Sampling,
    limits: EpisodeLimits,
    student_top: int = 0,
) -> list[Episode | Failure]:
    """One a key, in order. Raises what the engine raises, and `EngineError` for what is no episode at all."""
    batches = isinstance(engine, BatchesTurns)
    at_once = limits.at_once or batches
    groups = [list(range(len(keyed)))] if at_once else _groups(engine, keyed, sampling, limits.concurrency)
    waves = [Waves(engine, group, at_once, 0.0 if batches else LINGER) for group in groups]
    slots: AbstractAsyncContextManager[None] = nullcontext()
    if limits.concurrency is not None:
        slots = asyncio.Semaphore(limits.concurrency)

    async def one(number: int, mine: Waves) -> Episode | Failure:
        prompt, key = keyed[number]
        clock = _Clock(limits.timeout)

        async def submit(request: SampleRequest) -> Sampled | Failure:
            with clock.paused():
                return await mine.submit(number, request)

        session = Session(
            prompt, key, sampling, submit, student_top, limits.max_turns, limits.context, limits.vocabulary
        )
        try:
            async with slots:
                return await clock.within(_play(environment, prompt, key, session, mine), prompt)
        finally:
            mine.ended(number)

    # Slots go to whole groups, one after another: a group whose sessions wait for slots would wait forever.
    order = [(number, mine) for group, mine in zip(groups, waves, strict=True) for number in group]
    answers = await _all_or_none(waves, (one(*item) for item in order))
    found = {number: answer for (number, _), answer in zip(order, answers, strict=True)}
    return [found[number] for number in range(len(keyed))]


def _groups(
    engine: Samples, keyed: Sequence[tuple[Prompt, Key]], sampling: Sampling, concurrency: int | None
) -> list[list[int]]:
    """Sessions that take their turns together: those whose first turns would be one unit."""
    most = min((size for size in (engine.max_rows, concurrency) if size is not None), default=None)
    first = [SampleRequest(key, np.asarray(prompt.token_ids), sampling) for prompt, key in keyed]
    return plan_units(first, most)


async def _play(
    environment: Environment, prompt: Prompt, key: Key, session: Session, waves: Waves
) -> Episode | Failure:
    """What the environment makes of a prompt; what it raises is a failure of this episode."""
    try:
        episode = await environment.run(prompt, key, session)
    except LimbeckError:
        raise
    except (Exception, SystemExit) as error:  # no environment ends a run with exit status 0
        if error is waves.failed:  # the engine's, not the environment's
            raise
        return Failure(
            prompt.id,
            "run",
            "exception",
            f"environment {type(environment).__name__} raised {type(error).__name__} on prompt {prompt.id!r}: {error} "
            f"({place_of(error)})",
        )
    return _checked(environment, prompt, key, episode)


def _checked(environment: Environment, prompt: Prompt, key: Key, episode: object) -> Episode | Failure:
    """Raises `EngineError` for what is no episode of this key; one that cannot be trained on is a failure."""
    who = f"environment {type(environment).__name__}, prompt {key.prompt_id!r}"
    if isinstance(episode, Failure):
        return episode
    if not isinstance(episode, Episode):
        raise EngineError(f"{who}: run returned {type(episode).__name__}, expected generate.episode() or a Failure")
    if any(rollout.key != key or rollout.prompt is not prompt for rollout in episode.rollouts):
        raise EngineError(f"{who}: the episode has rollouts of another key. Return what generate.episode() gives.")
    if not episode.rollouts:
        why = (
            "the episode has no rollouts. Call `generate` at least once before generate.episode(), or return a Failure."
        )
        return Failure(key.prompt_id, "run", "no_turns", f"{who}: {why}")
    for reward in (episode.reward, *episode.turn_rewards):
        if reward is not None and not math.isfinite(reward):
            why = f"the reward is {reward}, expected a finite number, or None for the task's grader"
            return Failure(key.prompt_id, "run", "reward", f"{who}: {why}")
    return episode


async def _all_or_none(waves: Sequence[Waves], coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What they return. The first that raises stops the others: none goes on sampling behind the caller's back."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        under_way = [*tasks, *(task for mine in waves for task in mine.decoding)]
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


class _Clock:
    """Seconds that an episode may take. While it waits for the student they stand still: others may be slow."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = self.left = seconds
        self._timer: asyncio.Timeout | None = None
        self._pauses = 0

    async def within(self, work: Coroutine[Any, Any, Episode | Failure], prompt: Prompt) -> Episode | Failure:
        """What `work` returns, or a failure where it takes too long, even one that will not be cancelled."""
        if self.left is None:
            return await work
        task = asyncio.create_task(work)
        try:
            async with asyncio.timeout(self.left) as self._timer:
                await asyncio.wait({task})
        except TimeoutError:
            why = f"the episode took more than {self.seconds:g} seconds beside its turns"
            remedy = "Look at what it waits for, or raise environment.timeout."
            last_words = await _cancelled(task)
            return Failure(prompt.id, "run", "timeout", " ".join(filter(None, (f"{why}.", last_words, remedy))))
        finally:
            await _cancelled(task)
        if task.cancelled():
            return Failure(prompt.id, "run", "cancelled", "the environment cancelled its own task")
        return task.result()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Turns may be asked for at the same time: the clock runs while none is waited for."""
        timer, now = self._timer, asyncio.get_running_loop().time
        if timer is not None and self._pauses == 0 and (when := timer.when()) is not None:
            self.left = when - now()
            timer.reschedule(None)
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
            if timer is not None and self._pauses == 0 and not timer.expired() and self.left is not None:
                timer.reschedule(now() + self.left)


async def _cancelled(task: asyncio.Task[Any]) -> str:
    """What a task says as it is cancelled, in its `CancelledError`."""
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=GRACE)
    try:
        return str(task.exception() or "") if task.done() else ""
    except asyncio.CancelledError as cancelled:
        return str(cancelled)


def require_completed_fraction(answers: Sequence[Episode | Failure], least: float, to_train: bool) -> list[Episode]:
    """The episodes that were completed, at least a share `least`; `to_train` at least one. Raises `LimbeckError`."""
    failures = [answer for answer in answers if isinstance(answer, Failure)]
    done = [answer for answer in answers if not isinstance(answer, Failure)]
    if not failures or (len(done) >= least * len(answers) and (done or not to_train)):
        return done
    first = failures[0]
    if least == 1:
        raise LimbeckError(
            f"{len(failures)} of {len(answers)} prompts failed to {first.stage}, the first {first.id!r}: "
            f"{first.kind}: {first.message}"
        )
    why = f"At least a share of environment.min_completed_fraction = {least} must be completed."
    if len(done) >= least * len(answers):
        why = "Without a completed one there is nothing to train on."
    raise LimbeckError(
        f"{say_failures(failures, len(answers))} {why} Nothing was updated; start the same command again to go on from "
        "the last checkpoint."
    )


def say_failures(failures: Sequence[Failure], asked: int) -> str:
    """One sentence for people.

    >>> say_failures([Failure("p1", "run", "timeout", "it took more than 5 seconds")], 8)
    "1 of 8 episodes failed (timeout: 1). The first is of 'p1': timeout: it took more than 5 seconds."
    """
    kinds = Counter(failure.kind for failure in failures)
    first = failures[0]
    counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
    return (
        f"{len(failures)} of {asked} episodes failed ({counts}). The first is of {first.id!r}: {first.kind}: "
        f"{first.message.rstrip('.')}."
    )
