"""How good the student is: rewards on held-out prompts (`intervals.py`) and reverse KL on its fresh samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from limbeck.records import Rollout, Scored
from limbeck.reports import Mean
from limbeck.seeding import derive_seed
from limbeck.training.collect import Collected, sample, score
from limbeck.training.finite import require_finite
from limbeck.training.intervals import RewardSummary, summarise_rewards
from limbeck.training.metrics import describe_episodes, describe_scores
from limbeck.training.run import Run


@dataclass(frozen=True)
class Answer:
    """One graded response, for people to read."""

    prompt_id: str
    prompt: str
    response: str
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

    @property
    def accuracy(self) -> float | None:
        """Mean reward; None where the task has no grader."""
        return self.rewards.mean if self.rewards else None

    @property
    def reverse_kl(self) -> float | None:
        """Nats a token on fresh samples: exact where the teacher allows, else the sampled estimate."""
        mean = self.means.get("reverse_kl/exact") or self.means.get("reverse_kl/sampled")
        return mean.value if mean else None

    def values(self) -> dict[str, float]:
        """As written to `metrics.jsonl`."""
        flat: dict[str, float] = {"prompts": self.prompts, "samples_per_prompt": self.samples_per_prompt}
        flat |= self.rewards.values() if self.rewards else {}
        for name, mean in self.means.items():
            if mean.value is not None:
                flat[name] = mean.value
            if mean.standard_error is not None:
                flat[f"{name}/se"] = mean.standard_error
        return {**flat, **self.scores, "seconds": self.seconds}


async def evaluate(run: Run) -> Evaluation:
    """Evaluate on the first `eval.prompts` held-out prompts, with the same randomness every time."""
    section, start = run.recipe.eval, time.perf_counter()
    prompts = run.task.held_out[: section.prompts]
    sampling = run.sampling(derive_seed(run.recipe.seed, "evaluation"))
    async with run.turn_to_sample():  # one turn, so that later steps are sampled while this is scored and measured
        graded = sampled = await sample(run, prompts, sampling, section.samples_per_prompt)
        if section.greedy:  # the KL is on samples all the same
            graded = await sample(run, prompts, run.sampling(sampling.seed, greedy=True))
    samples: list[Scored] = []
    means: dict[str, Mean] = {}
    scores = describe_episodes(graded.rollouts, graded.episodes, graded.failures, graded.counts)
    if run.scores_samples:
        samples = (await score(run, sampled)).samples
        means = dict((await run.learner.measure(samples)).means)
        scores = {**describe_scores(samples, len(sampled.rollouts)), **scores}
    answers = tuple(map(_answer, graded.rollouts, graded.texts, graded.rewards))
    rewards = _of_all(graded)
    summary = _summarise(rewards, len(prompts))
    samples_per_prompt = len(rewards) // len(prompts)
    seconds = time.perf_counter() - start
    found = Evaluation(len(prompts), samples_per_prompt, section.greedy, summary, means, answers, seconds, scores)
    require_finite(found.values(), f"the evaluation after step {run.step}")
    return found


def _answer(rollout: Rollout, text: str, reward: float | None) -> Answer:
    prompt = rollout.prompt
    return Answer(prompt.id, prompt.text, text, reward, len(rollout.response_ids), rollout.finish)


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
