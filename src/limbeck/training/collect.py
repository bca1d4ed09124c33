"""Samples, grades and scores: the one way in which rollouts come about.

    collected = await collect(run, prompts, run.sampling(seed), samples_per_prompt=4)
    collected.samples      what the learner is given

The loop, evaluation and recording use it and nothing else. What failed in the environment is a value, counted and left
out: of the loss, and of the group that a reward is compared with.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

from limbeck.errors import DataError, EngineError, LimbeckError, TeacherError
from limbeck.records import (
    Episode,
    Failure,
    Floats,
    HiddenScores,
    Key,
    Prompt,
    Rollout,
    Sampling,
    Scored,
    ScoreRequest,
    Scores,
    Support,
    View,
)
from limbeck.teacher_views.same import SameView
from limbeck.training.advantage import group_advantages, turn_advantages
from limbeck.training.episodes import require_completed_fraction, run_episodes, say_failures
from limbeck.training.journal import Answers, Journal, Keyed
from limbeck.training.metrics import describe_views
from limbeck.training.run import Run

logger = logging.getLogger("limbeck")

T = TypeVar("T")
Play: TypeAlias = Callable[[Keyed], Awaitable[Answers]]
TEACHERS_OWN = ("too_long", "no_tokens")  # why a view fails where the teacher has no score, whatever was written
SAME = SameView()  # of the reference policy, which is the student's own


@dataclass(frozen=True)
class Collected:
    """Everything that came of some prompts. The first four are of every rollout, in order."""

    rollouts: list[Rollout]
    texts: list[str]  # what graders saw
    rewards: list[float | None]
    episodes: list[int]  # which episode each is a segment of: a reward is of an episode
    samples: list[Scored]  # of the rollouts that could be scored; none where nothing was to be
    failures: list[Failure] = field(default_factory=list)  # of the episodes that were not completed
    asked: int = 0  # episodes, failed ones too: `episodes` are numbers among them
    counts: Counter[str] = field(default_factory=Counter)  # of the environment's own, summed over episodes
    views: Mapping[str, float] = field(default_factory=dict)  # metrics of what the teacher saw in another way


async def collect(
    run: Run,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples_per_prompt: int = 1,
    scored: bool = True,
    journal: Journal | None = None,
) -> Collected:
    """Fresh samples of `prompts`, graded and scored; with a `journal` those that it has of the step, if it has.

    Raises `LimbeckError` where one cannot be sampled, and `TeacherError` where fewer can be scored than the recipe
    asks for.
    """
    async with run.turn_to_sample():
        graded = await sample(run, prompts, sampling, samples_per_prompt, journal)
    return await score(run, graded) if scored else graded


async def sample(
    run: Run,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    samples_per_prompt: int = 1,
    journal: Journal | None = None,
    play: Play | None = None,
    to_train: bool = True,
) -> Collected:
    """The first half, for whoever has the turn to sample. `play` makes the episodes where not all are the student's.

    What is `to_train` on has at least one completed episode. Raises `LimbeckError` where it has not.
    """

    async def students(keyed: Keyed) -> Answers:
        return await run_episodes(run.environment, run.engine, keyed, sampling, run.limits, run.student_top)

    keyed = _keyed(prompts, samples_per_prompt)
    with run.phase("sample"):
        known = None if journal is None else journal.read(run.step, keyed)
        answers = known or await (play or students)(keyed)
    require_completed_fraction(answers, run.limits.min_completed_fraction, to_train)
    with run.phase("grade"):
        answers = [_rewarded(run, answer) for answer in answers]
        graded = _collected(run, answers)
        if journal is not None and known is None:
            journal.write(run.step, keyed, answers)
    if graded.failures:
        logger.warning("step %d: %s", run.step, say_failures(graded.failures, graded.asked))
    return graded


async def score(run: Run, graded: Collected) -> Collected:
    """The second half: what was sampled and graded, with scores."""
    async with run.turn_to_score():
        with run.phase("score"):
            samples, views = await _score(run, graded)
            run.note_seconds({f"score/{name}": seconds for name, seconds in run.teacher_seconds().items()})
    return replace(graded, samples=samples, views=views)


def _keyed(prompts: Sequence[Prompt], samples_per_prompt: int) -> list[tuple[Prompt, Key]]:
    """A key for each sample of each prompt. A prompt that comes twice is another occurrence of it."""
    seen: Counter[str] = Counter()
    keyed: list[tuple[Prompt, Key]] = []
    for prompt in prompts:
        keyed += [(prompt, Key(prompt.id, seen[prompt.id], sample)) for sample in range(samples_per_prompt)]
        seen[prompt.id] += 1
    return keyed


async def note_computing(run: Run, samples: Sequence[Scored]) -> None:
    """The seconds of teachers that answered before they had computed, once their answers were fetched."""
    if run.computing_seconds is None:
        return
    found = await run.computing_seconds(samples)
    run.seconds["score"] = max(run.seconds["score"], *found.values(), 0.0)
    run.seconds |= {f"score/{name}": seconds for name, seconds in found.items() if f"score/{name}" in run.seconds}


def _rewarded(run: Run, answer: Episode | Failure) -> Episode | Failure:
    """With the grader's reward where the environment gave none. Graders see the last turn of the episode."""
    if isinstance(answer, Failure) or answer.reward is not None:
        return answer
    last = answer.rollouts[-1]
    return replace(answer, reward=run.task.grade(last.prompt, run.decode(last.last_turn)))


def _collected(run: Run, answers: Sequence[Episode | Failure]) -> Collected:
    """Rollouts, their texts and rewards; the segments of an episode share its reward."""
    graded = Collected([], [], [], [], [], [answer for answer in answers if isinstance(answer, Failure)], len(answers))
    for number, episode in enumerate(answers):
        if isinstance(episode, Episode):
            count = len(episode.rollouts)
            graded.counts.update(episode.counts)
            graded.rollouts.extend(episode.rollouts)
            graded.texts.extend(run.decode(rollout.response_ids) for rollout in episode.rollouts)
            graded.rewards.extend([episode.reward] * count)
            graded.episodes.extend([number] * count)
    return graded


async def _score(run: Run, graded: Collected) -> tuple[list[Scored], dict[str, float]]:
    """Scores of teacher and reference, and advantages, for each rollout that could be scored; metrics of the views."""
    advantages = _advantages(run, graded)  # of the whole group, whatever the teacher could score
    seen = [run.view.see(rollout, _support(run, rollout)) for rollout in graded.rollouts]
    unseen = [view for view in seen if isinstance(view, Failure) and view.kind not in TEACHERS_OWN]
    _require_seen_fraction(run, unseen, len(seen))
    shown = [
        (place, view) for place, view in enumerate(seen) if not isinstance(view, Failure) or view.kind in TEACHERS_OWN
    ]
    answers = await _answers(run, [view for _, view in shown])
    scored = require_scored_fraction(answers, run.min_scored_fraction)
    places = [shown[index][0] for index in scored]
    views = unwrap_failures([seen[place] for place in places])
    kept = list(zip(places, views, strict=True))
    given = [answer for answer in answers if not isinstance(answer, Failure)]
    scores: list[Scores] = [
        run.view.read(graded.rollouts[place], view, answer) for (place, view), answer in zip(kept, given, strict=True)
    ]
    references: Sequence[HiddenScores | None] = [None] * len(kept)
    if run.reference is not None:
        asked = [SAME.see(graded.rollouts[place], "full").request for place, _ in kept]
        found = unwrap_failures(await run.reference.score(asked))
        references = [score for score in found if isinstance(score, HiddenScores)]
    samples = [
        Scored(graded.rollouts[place], score, graded.rewards[place], advantages[place], reference, view.groups)
        for (place, view), score, reference in zip(kept, scores, references, strict=True)
    ]
    return samples, describe_views([(graded.rollouts[place], view) for place, view in kept], unseen)


async def _answers(run: Run, shown: Sequence[View | Failure]) -> list[Scores | Failure]:
    """The teacher's. What has failed already it is not asked."""
    requests = [view.request for view in shown if isinstance(view, View)]
    given = await run.teacher.score(requests) if requests else []
    _check_count(run.teacher.name, given, requests)
    left = iter(given)
    return [view if isinstance(view, Failure) else next(left) for view in shown]


def _require_seen_fraction(run: Run, unseen: Sequence[Failure], asked: int) -> None:
    """What an environment wrote in a way that a teacher cannot be shown is left out, like an episode that failed.

    Raises `TeacherError` for fewer than `environment.min_completed_fraction`, or none: the step is not made.
    """
    if not unseen:
        return
    kinds = ", ".join(f"{kind}: {count}" for kind, count in sorted(Counter(one.kind for one in unseen).items()))
    first, least = unseen[0], run.limits.min_completed_fraction
    what = (
        f"{len(unseen)} of {asked} responses cannot be shown to the teacher ({kinds}). The first is of {first.id!r}: "
        f"{first.message.rstrip('.')}."
    )
    if len(unseen) == asked or asked - len(unseen) < least * asked:
        needed = f" At least a share of environment.min_completed_fraction = {least} must be." if least < 1 else ""
        raise TeacherError(
            f"{what}{needed} Nothing was updated; start the same command again to go on from the last checkpoint."
        )
    logger.warning("step %d: %s They are left out.", run.step, what)


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


def _advantages(run: Run, graded: Collected) -> Sequence[float | Floats]:
    """One a rollout, or [S] where turns are rewarded. The group of a prompt are its episodes.

    What the student did not sample, it is not rewarded for: such rollouts come last, and have none.
    """
    own, count = sum(rollout.source == "student" for rollout in graded.rollouts), len(graded.rollouts)
    if own < count:
        first = replace(
            graded, rollouts=graded.rollouts[:own], rewards=graded.rewards[:own], episodes=graded.episodes[:own]
        )
        return [*_advantages(run, first), *[0.0] * (count - own)]
    section = run.recipe.objective.task_reward
    if section is None:
        return [0.0] * len(graded.rollouts)
    if section.of == "turn":
        return turn_advantages(graded.rollouts, graded.episodes, section)
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
    by_episode = dict(zip(dict.fromkeys(graded.episodes), advantages, strict=True))
    return [by_episode[episode] for episode in graded.episodes]


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
