"""How good the student is: accuracy on held-out prompts and reverse KL on its fresh samples.

accuracy   mean reward; the interval is Wilson's score interval over prompts at 95%, which for
           several samples a prompt is conservative (their mean varies less than a coin)
pass@k     1 - C(n - c, k) / C(n, k) of n samples with c right: unbiased (Chen et al. 2021, eq. 1)
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from limbeck.records import Rollout
from limbeck.reports import Mean
from limbeck.seeding import derive_seed
from limbeck.training.collect import collect
from limbeck.training.run import Run

CONFIDENCE = 0.95


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
    """What one evaluation found. `accuracy` is None where the task has no grader."""

    prompts: int
    samples_per_prompt: int
    greedy: bool
    accuracy: float | None
    interval: tuple[float, float] | None
    pass_at: dict[int, float]
    means: dict[str, Mean]  # "reverse_kl/exact", ...
    answers: tuple[Answer, ...]
    seconds: float

    @property
    def reverse_kl(self) -> float | None:
        """Nats a token on fresh samples: exact where the teacher allows, else the sampled estimate."""
        mean = self.means.get("reverse_kl/exact") or self.means.get("reverse_kl/sampled")
        return mean.value if mean else None

    def values(self) -> dict[str, float]:
        """As written to `metrics.jsonl`."""
        flat: dict[str, float] = {"prompts": self.prompts, "samples_per_prompt": self.samples_per_prompt}
        if self.accuracy is not None and self.interval is not None:
            flat |= {
                "accuracy": self.accuracy,
                "accuracy/low": self.interval[0],
                "accuracy/high": self.interval[1],
            }
        flat |= {f"pass@{k}": value for k, value in self.pass_at.items()}
        for name, mean in self.means.items():
            if mean.value is not None:
                flat[name] = mean.value
            if mean.standard_error is not None:
                flat[f"{name}/se"] = mean.standard_error
        return {**flat, "seconds": self.seconds}


async def evaluate(run: Run) -> Evaluation:
    """Evaluate on the first `eval.prompts` held-out prompts, with the same randomness every time."""
    section, start = run.recipe.eval, time.perf_counter()
    prompts = run.task.held_out[: section.prompts]
    sampling = run.sampling(derive_seed(run.recipe.seed, "evaluation"))
    graded = await collect(run, prompts, sampling, section.samples_per_prompt)
    means = dict((await run.learner.measure(graded.samples)).means)
    if section.greedy:  # the KL above is on samples all the same
        graded = await collect(run, prompts, run.sampling(sampling.seed, greedy=True), scored=False)
    answers = tuple(map(_answer, graded.rollouts, graded.texts, graded.rewards))
    return _summarise(answers, len(prompts), section.greedy, means, time.perf_counter() - start)


def _answer(rollout: Rollout, text: str, reward: float | None) -> Answer:
    prompt = rollout.prompt
    return Answer(prompt.id, prompt.text, text, reward, len(rollout.response_ids), rollout.finish)


def _summarise(
    answers: tuple[Answer, ...], prompts: int, greedy: bool, means: dict[str, Mean], seconds: float
) -> Evaluation:
    samples = len(answers) // prompts
    rewards = [answer.reward for answer in answers if answer.reward is not None]
    if len(rewards) < len(answers):
        return Evaluation(prompts, samples, greedy, None, None, {}, means, answers, seconds)
    rows = [rewards[i : i + samples] for i in range(0, len(rewards), samples)]
    return Evaluation(prompts, samples, greedy, *grade_summary(rows), means, answers, seconds)


def wilson(mean: float, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion `mean` of `count` trials (Wilson 1927)."""
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(mean * (1 - mean) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `samples` with `right` right."""
    if not 1 <= k <= samples:
        raise ValueError(f"pass@k needs 1 <= k <= samples, got k = {k} of {samples}")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def grade_summary(
    rewards: Sequence[Sequence[float]],
) -> tuple[float, tuple[float, float], dict[int, float]]:
    """Accuracy, its interval and pass@k at powers of two, from the rewards of each prompt's samples.

    A sample counts as right for pass@k at a reward of 1.
    """
    accuracy = statistics.fmean(statistics.fmean(row) for row in rewards)
    samples = len(rewards[0])
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k <= samples and samples > 1]
    pass_at = {k: statistics.fmean(pass_at_k(samples, sum(r >= 1 for r in row), k) for row in rewards) for k in ks}
    return accuracy, wilson(min(1.0, max(0.0, accuracy)), len(rewards)), pass_at
