"""How good the student is: rewards on held-out prompts (`intervals.py`) and reverse KL on its fresh samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from limbeck.records import Prompt, Rollout
from limbeck.reports import Mean
from limbeck.training.collect import Collected, sample, score
from limbeck.training.eval_sets import EvalSet, eval_sets
from limbeck.training.finite import require_finite
from limbeck.training.intervals import RewardSummary, summarise_rewards
from limbeck.training.metrics import describe_episodes, describe_scores
from limbeck.training.run import Run
from limbeck.training.transcripts import question_of, response_turns, text_of


@dataclass(frozen=True)
class Answer:
    """One graded response, for people to read."""

    prompt_id: str
    prompt: str
    question: str  # what the user asked last
    answer: str | None  # the right one, where it is known
    sample: int  # which of the prompt's
    segment: int  # which of the episode's sequences
    response: str
    turns: tuple[Mapping[str, str], ...]  # role and text of each, where there are several
    reward: float | None
    tokens: int
    finish: str


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found. `rewards` is None where the task has no grader."""

    prompts: int
    samples_per_prompt: int
    greedy: bool
    rewards: RewardSummary | None
    means: dict[str, Mean]  # "reverse_kl/exact", ...
    answers: tuple[Answer, ...]
    seconds: float
    scores: Mapping[str, float] = field(default_factory=dict)  # what of the teacher's was left out, as of a step
    sets: Mapping[str, Evaluation] = field(default_factory=dict)  # of `[eval.sets]`, by name

    @property
    def accuracy(self) -> float | None:
        """Mean reward; None where the task has no grader."""
        return self.rewards.mean if self.rewards else None

    @property
    def reverse_kl(self) -> float | None:
        """Nats a token on fresh samples: exact where the teacher allows, else the sampled estimate."""
        mean = self.means.get("reverse_kl/exact") or self.means.get("reverse_kl/sampled")
        return mean.value if mean else None

    def own_values(self) -> dict[str, float]:
        """Of this set alone."""
        flat: dict[str, float] = {"prompts": self.prompts, "samples_per_prompt": self.samples_per_prompt}
        flat |= self.rewards.values() if self.rewards else {}
        for name, mean in self.means.items():
            if mean.value is not None:
                flat[name] = mean.value
            if mean.standard_error is not None:
                flat[f"{name}/se"] = mean.standard_error
        return {**flat, **self.scores, "seconds": self.seconds}

    def values(self) -> dict[str, float]:
        """As written to `metrics.jsonl`: those of `[eval.sets.NAME]` are `NAME/...`."""
        flat = self.own_values()
        for name, found in self.sets.items():
            flat |= {f"{name}/{key}": value for key, value in found.own_values().items()}
        return flat


async def evaluate(run: Run) -> Evaluation:
    """Evaluate on every set, with the same randomness every time; the run's own held-out prompts are the first."""
    async with run.turn_to_sample():  # one turn, so that later steps are sampled while this is scored and measured
        sampled = [await _sample(run, one) for one in eval_sets(run.recipe, run.task, run.eval_tasks)]
    own, *others = [await _measure(run, one) for one in sampled]
    return replace(own, sets={one.of.name: found for one, found in zip(sampled[1:], others, strict=True)})


@dataclass(frozen=True)
class _Sampled:
    """The answers to one set."""

    of: EvalSet
    sampled: Collected  # what is scored
    graded: Collected  # what is rewarded: the most likely answers, or the same
    seconds: float


async def _sample(run: Run, one: EvalSet) -> _Sampled:
    start = time.perf_counter()
    mine = run.on(one.task, one.temperature)
    sampling = one.sampling(run.sampling(run.recipe.seed))
    graded = sampled = await sample(mine, one.prompts, sampling, one.samples_per_prompt, to_train=False)
    if one.greedy:  # the KL is on samples all the same
        graded = await sample(mine, one.prompts, replace(sampling, greedy=True), to_train=False)
    return _Sampled(one, sampled, graded, time.perf_counter() - start)


async def _measure(run: Run, answers: _Sampled) -> Evaluation:
    start = time.perf_counter()
    one, sampled, graded = answers.of, answers.sampled, answers.graded
    means: dict[str, Mean] = {}
    scores = describe_episodes(graded.rollouts, graded.episodes, graded.failures, graded.counts)
    if one.scored and run.scores_samples and sampled.rollouts:
        samples = (await score(run.on(one.task, one.temperature), sampled)).samples
        means = dict((await run.learner.measure(samples)).means)
        scores = {**describe_scores(samples, len(sampled.rollouts)), **scores}
    rewards, prompts = _of_all(graded), len(one.prompts)
    found = Evaluation(
        prompts=prompts,
        samples_per_prompt=len(rewards) // prompts,
        greedy=one.greedy,
        rewards=_summarise(rewards, prompts),
        means=means,
        answers=_answers(run, graded),
        seconds=answers.seconds + time.perf_counter() - start,
        scores={**scores, **_by_task(one.prompts, rewards)},
    )
    where = f" on {one.name}" if one.name else ""
    require_finite(found.values(), f"the evaluation after step {run.step}{where}")
    return found


def _by_task(prompts: Sequence[Prompt], rewards: Sequence[float | None]) -> dict[str, float]:
    """`task/NAME/accuracy` and the like, where prompts are of several tasks."""
    names, samples = [prompt.task for prompt in prompts], len(rewards) // len(prompts)
    numbers: dict[str, float] = {}
    for name in sorted(set(names)) if len(set(names)) > 1 else ():
        mine = [place for place, one in enumerate(names) if one == name]
        of_mine = [reward for place in mine for reward in rewards[place * samples : (place + 1) * samples]]
        summary = _summarise(of_mine, len(mine))
        numbers |= {f"task/{name}/{key}": value for key, value in summary.values().items()} if summary else {}
    return numbers


def _answers(run: Run, graded: Collected) -> tuple[Answer, ...]:
    return tuple(
        Answer(
            prompt_id=rollout.prompt.id,
            prompt=rollout.prompt.text,
            question=question_of(rollout.prompt),
            answer=rollout.prompt.answer,
            sample=rollout.key.sample,
            segment=rollout.segment,
            response=text,
            turns=_several_turns(run, rollout),
            reward=reward,
            tokens=len(rollout.response_ids),
            finish=rollout.finish,
        )
        for rollout, text, reward in zip(graded.rollouts, graded.texts, graded.rewards, strict=True)
    )


def _several_turns(run: Run, rollout: Rollout) -> tuple[Mapping[str, str], ...]:
    turns = response_turns(rollout)
    shown = [{"role": turn.role, "text": text_of(turn, rollout, run.decode)} for turn in turns]
    return tuple(shown) if len(shown) > 1 else ()  # a single one is the response


def _of_all(graded: Collected) -> list[float | None]:
    """A reward for each episode that was asked for. One that failed earned nothing: it counts as 0."""
    rewards: list[float | None] = [0.0] * graded.asked
    for episode, reward in zip(graded.episodes, graded.rewards, strict=True):
        rewards[episode] = reward
    return rewards


def _summarise(rewards: Sequence[float | None], prompts: int) -> RewardSummary | None:
    """Of the episodes of `prompts` prompts, as many of each; None where one could not be graded."""
    graded = [reward for reward in rewards if reward is not None]
    if len(graded) < len(rewards):
        return None
    samples = len(rewards) // prompts
    return summarise_rewards([graded[i : i + samples] for i in range(0, len(graded), samples)])
