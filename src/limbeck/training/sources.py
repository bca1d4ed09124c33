"""The sequences of a step that has several sources: the student's samples, the teacher's, and rows of data sets.

    collected = await collect_mixed(run, prompts, sampling, samples_per_prompt)

`prompts` are those of the task: the first of them are answered by the student, the others by the teacher. All
sequences are scored alike, and each says where it is from. Rewards are trained on where the student sampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from limbeck.records import (
    NO_VERSION,
    Episode,
    Failure,
    Floats,
    HiddenScores,
    Key,
    Prompt,
    Sampled,
    Sampling,
    Scored,
    TopKScores,
    single_turn,
)
from limbeck.seeding import derive_seed
from limbeck.tasks.completions import Completion
from limbeck.training.collect import Collected, sample, score
from limbeck.training.episodes import run_episodes
from limbeck.training.journal import Answers, Keyed
from limbeck.training.run import Run
from limbeck.training.shares import STUDENT, TEACHER


async def collect_mixed(run: Run, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int) -> Collected:
    """Everything that the update of the run's step is made of, scored. Raises as `collect` does."""
    assert run.sources is not None
    own = run.sources.shares.at(run.step - 1).get(STUDENT, 0) * samples_per_prompt

    async def play(keyed: Keyed) -> Answers:
        ours = await run_episodes(run.environment, run.engine, keyed[:own], sampling, run.limits, run.student_top)
        return [*ours, *await _played_by_teachers(run, keyed[own:], sampling)]

    async with run.turn_to_sample():
        sampled = await sample(run, prompts, sampling, samples_per_prompt, run.journal, play)
    data = _of_data(run, run.sources.drawn(run.step - 1, samples_per_prompt), sampling)
    scored = await score(run, _joined(sampled, data))
    return replace(scored, samples=[_with_logprobs(sample) for sample in scored.samples])


async def _played_by_teachers(run: Run, keyed: Keyed, sampling: Sampling) -> Answers:
    """What teachers answer, one a key. Nobody asks for the most likely tokens of a teacher."""
    assert run.sources is not None
    names = [run.sources.route(prompt) for prompt, _ in keyed]
    theirs = replace(sampling, seed=derive_seed(sampling.seed, TEACHER))
    answers: dict[int, Episode | Failure] = {}
    for name in dict.fromkeys(names):
        places = [place for place, mine in enumerate(names) if mine == name]
        async with run.turn_to_score():
            part = [keyed[place] for place in places]
            found = await run_episodes(run.environment, run.sources.samplers[name], part, theirs, run.limits)
        answers |= dict(zip(places, map(_as_teachers, found), strict=True))
    return [answers[place] for place in range(len(keyed))]


def _as_teachers(answer: Episode | Failure) -> Episode | Failure:
    if isinstance(answer, Failure):
        return answer
    rollouts = [
        replace(rollout, source="teacher", versions=np.full_like(rollout.versions, NO_VERSION))
        for rollout in answer.rollouts
    ]
    return replace(answer, rollouts=tuple(rollouts))


def _of_data(run: Run, drawn: Sequence[Completion], sampling: Sampling) -> Collected:
    """Rows as rollouts. Nobody knows with which probability their tokens were written: log mu is NaN."""
    seen: Counter[str] = Counter()
    rollouts = []
    for one in drawn:
        key, ids = Key(one.prompt.id, seen[one.prompt.id]), np.asarray(one.token_ids, dtype=np.int64)
        seen[one.prompt.id] += 1
        unknown: Floats = np.full(len(ids), np.nan, dtype=np.float32)
        rollout = single_turn(one.prompt, key, Sampled(ids, unknown, "stop", NO_VERSION), sampling)
        rollouts.append(replace(rollout, source="dataset"))
    texts = [run.decode(rollout.response_ids) for rollout in rollouts]
    count = len(rollouts)
    return Collected(rollouts, texts, [None] * count, list(range(count)), [], asked=count)


def _joined(sampled: Collected, data: Collected) -> Collected:
    """What was sampled comes first, and of that the student's; episodes are numbered on."""
    return replace(
        sampled,
        rollouts=[*sampled.rollouts, *data.rollouts],
        texts=[*sampled.texts, *data.texts],
        rewards=[*sampled.rewards, *data.rewards],
        episodes=[*sampled.episodes, *(sampled.asked + number for number in data.episodes)],
        asked=sampled.asked + data.asked,
    )


def _with_logprobs(sample: Scored) -> Scored:
    """A server may say anything of what it sampled; what the teacher was proven to give its own tokens is log mu."""
    rollout, scores = sample.rollout, sample.scores
    if rollout.source != "teacher" or isinstance(scores, HiddenScores) or not np.isnan(rollout.logprobs).any():
        return sample
    known = scores.logprobs_of_sampled if isinstance(scores, TopKScores) else scores.logprobs
    return replace(sample, rollout=replace(rollout, logprobs=known))
