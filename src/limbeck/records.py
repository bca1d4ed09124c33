"""The records that travel through a step. Plain data: no torch, no HTTP.

    Prompt -> Rollout -> TeacherScores -> (batch.py) -> StepReport

Shape legend: L the whole sequence, S its sampled (trained) tokens, K support size, d hidden width.

Worked example, used in the field comments below: the prompt "12+34=" is six characters, hence six
tokens; the student answers "46" and the end token, three more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to answer.

    Raises `ValueError` for an empty `token_ids`: the first sampled token needs a prefix.
    """

    id: str  # "arithmetic-000017": unique within a data set, stable across runs
    token_ids: tuple[int, ...]  # [P] (11, 12, 1, 13, 14, 2), already through the chat template
    task: str = ""  # "arithmetic"
    text: str = ""  # "12+34=" as a person reads it
    answer: str | None = None  # "46"; None where nothing can be graded
    metadata: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None  # route: which of several teachers marks it

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(
                f"prompt {self.id!r} has no tokens; the first sampled token needs a prefix. "
                "Give it text, or a chat template that begins with a token."
            )


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the student samples. `temperature` is T everywhere: sampler, student loss and teacher.

    Raises `ValueError` where a value is outside its range.
    """

    temperature: float  # 0.7; > 0. T = 0 has no distribution, hence no KL
    max_tokens: int  # 32
    stop_ids: tuple[int, ...] = ()  # (3,): the stop token itself belongs to the response
    seed: int = 0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    greedy: bool = False  # evaluation only: such a rollout is refused by the learner

    def __post_init__(self) -> None:
        if not self.temperature > 0 or self.temperature == float("inf"):
            raise ValueError(
                f"temperature must be a finite number above 0, got {self.temperature}: at T = 0 the "
                "student has no distribution and a KL does not exist. For greedy evaluation set "
                "eval.greedy = true."
            )
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 0 (0 is off), got {self.top_k}")
        if not 0 <= self.min_p < 1:
            raise ValueError(f"min_p must be in [0, 1), got {self.min_p}")

    @property
    def truncated(self) -> bool:
        """Whether the sampler leaves out part of the student's distribution."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


Finish: TypeAlias = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """A prompt with one sampled response.

    Raises `ValueError` where the shapes do not fit each other.
    """

    prompt: Prompt
    sample: int  # 0: which of the prompt's samples this is
    token_ids: Ints  # [L] the six of the prompt, then "4", "6", end
    trained: Mask  # [L] False * 6, True * 3: the tokens the student sampled
    behaviour_logprobs: Floats  # [S] log mu(y_t) of the sampler, at its temperature
    policy_version: int  # how many updates the sampling weights had seen
    finish: Finish  # "length": cut at max_tokens
    sampling: Sampling

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.trained.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"rollout of prompt {self.prompt.id!r}: token_ids {self.token_ids.shape} and trained "
                f"{self.trained.shape} must be the same one-dimensional shape"
            )
        if self.behaviour_logprobs.shape != (int(self.trained.sum()),):
            raise ValueError(
                f"rollout of prompt {self.prompt.id!r}: {int(self.trained.sum())} trained tokens but "
                f"behaviour_logprobs of shape {self.behaviour_logprobs.shape}"
            )
        if self.trained.size and self.trained[0]:
            raise ValueError(
                f"rollout of prompt {self.prompt.id!r}: its first token is marked as trained, but "
                "nothing precedes it that could predict it"
            )

    @property
    def response_ids(self) -> Ints:
        """[S] the sampled tokens, in order."""
        return self.token_ids[self.trained]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The teacher's log-prob of each sampled token, and nothing else."""

    teacher: str
    temperature: float
    logprobs: Floats  # [S] log q(y_t)
    error_bound: float = 0.0  # nats; the largest certified error of any value that is trained on
    errors: Floats | None = None  # [S] nats; each position's own bound, None where all are exact
    known: Mask | None = None  # [S] False where the bound is too wide to train on: NaN stands there. None: all known


@dataclass(frozen=True, slots=True)
class TopKScores:
    """The teacher's K most likely tokens at each sampled position, and the sampled one."""

    teacher: str
    temperature: float
    ids: Ints  # [S, K]
    logprobs: Floats  # [S, K] log q, normalised over the whole vocabulary
    logprobs_of_sampled: Floats  # [S]
    error_bound: float = 0.0
    errors: Floats | None = None  # [S], see TokenScores
    known: Mask | None = None  # [S], see TokenScores


@dataclass(frozen=True, slots=True)
class HiddenScores:
    """The teacher's final hidden states: with its head, the whole distribution at any temperature."""

    teacher: str
    temperature: float
    hidden: Any  # tensor [S, d] at the position that predicts each sampled token
    head: Any  # `models.head.Head`
    error_bound: float = 0.0


TeacherScores: TypeAlias = TokenScores | TopKScores | HiddenScores


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be had, as a value: never a filler in its place."""

    prompt_id: str
    stage: Literal["sample", "score", "grade"]
    kind: str  # "timeout"
    message: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A rollout with everything the learner needs to know about it."""

    rollout: Rollout
    scores: TeacherScores
    reward: float | None = None  # 1.0: the grader's mark, None where there is no grader
    advantage: float = 0.0  # the reward, group-normalised; 0 where rewards are not trained on
    reference: HiddenScores | None = None  # the frozen reference policy, for a KL-to-reference term


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe of the contract found. `measured` and `expected` are for a person to read."""

    probe: str  # "temperature"
    measured: str  # "ratio 1.4286 nats at T = 0.7"
    expected: str  # "1.4286"
    ok: bool = True
    remedy: str = ""  # what to do about one that failed, a sentence or two


@dataclass(frozen=True, slots=True)
class Top:
    """The most likely tokens at each sampled position, most likely first."""

    ids: Ints  # [S, K]
    logprobs: Floats  # [S, K] at the rollout temperature, normalised over the whole vocabulary


@dataclass(frozen=True, slots=True)
class Trace:
    """What student and teacher thought at each sampled token, for people to look at.

    At the rollout temperature, under the student's weights as they are. None where the teacher's
    scores cannot say.
    """

    student_logprobs: Floats  # [S] log p(y_t)
    teacher_logprobs: Floats  # [S] log q(y_t)
    student_entropy: Floats  # [S] nats
    student_top: Top
    teacher_entropy: Floats | None = None  # [S]
    reverse_kl: Floats | None = None  # [S] exact, over the whole vocabulary
    teacher_top: Top | None = None


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over tokens that carries its weight, and how far responses spread around it."""

    total: float
    count: float
    spread: float | None = None  # sum over responses of (its total - mean * its count)^2

    @property
    def value(self) -> float | None:
        """The mean, or None where nothing was counted."""
        return self.total / self.count if self.count else None

    @property
    def standard_error(self) -> float | None:
        """Clustered by response: tokens of one response are not independent."""
        return math.sqrt(self.spread) / self.count if self.spread is not None and self.count else None


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one update measured. Keys are the names in `metrics.jsonl`: "reverse_kl/exact"."""

    means: Mapping[str, Mean] = field(default_factory=dict)
    maxima: Mapping[str, float] = field(default_factory=dict)
    sums: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()

    def values(self) -> dict[str, float]:
        """Every metric as one flat mapping; a mean's standard error is `NAME/se`."""
        flat = {}
        for name, mean in self.means.items():
            if mean.value is not None:
                flat[name] = mean.value
            if mean.standard_error is not None:
                flat[f"{name}/se"] = mean.standard_error
        return {**flat, **self.maxima, **self.sums, **{f"seconds/{k}": v for k, v in self.seconds.items()}}
