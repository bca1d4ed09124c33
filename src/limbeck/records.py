"""The records that travel through a step. Plain data: no torch, no HTTP, not even for types.

    Prompt -> [Environment x Engine] -> Episode of Rollouts -> ScoreRequest -> [Teacher] -> Scores
           -> Scored -> [Learner] -> StepReport (`reports.py`)

A token sequence with a mask is the currency: whoever wants log-probs asks with a `ScoreRequest`, and the answer
says at which temperature it *was* computed, not which was wished for.

Shape legend: L the whole sequence, S its trained (or scored) tokens, n tokens of one sampled turn, K support size,
d hidden width.

Worked example, used in the field comments below: the prompt "12+34=" is six characters, hence six
tokens; the student answers "46" and the end token, three more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float32]
Mask: TypeAlias = npt.NDArray[np.bool_]
Finish: TypeAlias = Literal["stop", "length"]
Role: TypeAlias = Literal["student", "context", "system", "user", "tool"]  # context: whatever was shown
Support: TypeAlias = (
    Literal["sampled", "full"] | int | Ints
)  # K: the scorer's own top; [S, K] given ids, no function of y_t
NO_VERSION = -1  # of tokens that no policy of the run sampled


@dataclass(frozen=True, slots=True)
class Chat:
    """What a prompt was rendered from by a chat template: a teacher may see it rendered otherwise."""

    messages: tuple[Mapping[str, Any], ...]  # the system's message too, wherever it came from
    tools: tuple[Mapping[str, Any], ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of the template: {"enable_thinking": False}
    continued: bool = False  # the last message is the assistant's, and is continued


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
    teacher: str | None = None  # route: which of several teachers scores it
    chat: Chat | None = None  # None: raw text

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


@dataclass(frozen=True, slots=True)
class Key:
    """What is sampled. With `Sampling.seed` it is all the randomness there is."""

    prompt_id: str  # "arithmetic-000017"
    occurrence: int = 0  # 1: the second time that this prompt is in the step
    sample: int = 0  # 3: the fourth of this prompt's samples
    turn: int = 0  # 0: the first thing the student says


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One turn to sample after `token_ids`."""

    key: Key
    token_ids: Ints  # [P] the six of the prompt
    sampling: Sampling
    top: int = 0  # report the student's own K most likely ids at each position too


@dataclass(frozen=True, slots=True)
class Sampled:
    """One turn, as an engine sampled it.

    `top_ids` are the student's by rank, whether or not the sampled token is among them: a support that depends
    on the sampled token biases the gradient.
    """

    token_ids: Ints  # [n] "4", "6", end
    logprobs: Floats  # [n] in the student's whole distribution at T: log mu(y_t) where nothing is cut off
    finish: Finish  # "length": cut at max_tokens
    version: int  # how many updates the sampling weights had seen
    top_ids: Ints | None = None  # [n, K]
    turn: int = 0  # of its session: what `Context.parent` names. Engines leave it alone


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of a rollout: what the student said, or what it was shown."""

    start: int  # 6
    end: int  # 9: [start, end) of the rollout's token_ids
    role: Role
    key: Key | None = None  # of a student's turn
    finish: Finish | None = None
    text: str = ""  # for people: what a tool answered, which call the student made. No token follows from it
    reward: float | None = None  # of a student's turn, where turns are rewarded


@dataclass(frozen=True, slots=True)
class Rollout:
    """One token sequence that a policy produced (or a data set or a teacher: then `source` says so).

    Raises `ValueError` where the shapes do not fit each other.
    """

    prompt: Prompt
    key: Key
    segment: int  # 0: which of its episode's sequences this is
    token_ids: Ints  # [L] the six of the prompt, then "4", "6", end
    trained: Mask  # [L] False * 6, True * 3. No sampled token is trained in two segments
    logprobs: Floats  # [S] of the trained tokens, see `Sampled`; NaN where nobody knows log mu: of a data set
    versions: Ints  # [S] how many updates the weights that sampled each had seen, or NO_VERSION
    sampling: Sampling
    turns: tuple[Turn, ...] = ()
    top_ids: Ints | None = None  # [S, K] the student's own most likely ids, where they were asked for
    reason: str = ""  # why a segment after the first began: "history was shortened"
    source: Literal["student", "teacher", "dataset"] = "student"

    def __post_init__(self) -> None:
        where, count = f"rollout of prompt {self.prompt.id!r}", int(self.trained.sum())
        if self.token_ids.shape != self.trained.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"{where}: token_ids {self.token_ids.shape} and trained {self.trained.shape} must be the same "
                "one-dimensional shape"
            )
        for name, values in (("logprobs", self.logprobs), ("versions", self.versions)):
            if values.shape != (count,):
                raise ValueError(f"{where}: {count} trained tokens but {name} of shape {values.shape}")
        if self.top_ids is not None and (self.top_ids.ndim != 2 or len(self.top_ids) != count):
            raise ValueError(f"{where}: {count} trained tokens but top_ids of shape {self.top_ids.shape}")
        if self.trained.size and self.trained[0]:
            raise ValueError(f"{where}: its first token is trained, but nothing precedes it that could predict it")

    @property
    def response_ids(self) -> Ints:
        """[S] the trained tokens, in order."""
        return self.token_ids[self.trained]

    @property
    def source_name(self) -> str:
        """In metrics: "student", "teacher", or the name of the data set."""
        return self.prompt.task if self.source == "dataset" else self.source

    @property
    def last_turn(self) -> Ints:
        """[n] the tokens of the student's last turn; all trained ones where turns are not known."""
        ends = next((turn for turn in reversed(self.turns) if turn.role == "student"), None)
        return self.response_ids if ends is None else self.token_ids[ends.start : ends.end]

    @property
    def finish(self) -> Finish:
        """How the student's last turn ended."""
        return next((turn.finish for turn in reversed(self.turns) if turn.finish is not None), "stop")


def single_turn(prompt: Prompt, key: Key, sampled: Sampled, sampling: Sampling) -> Rollout:
    """The rollout of a prompt with one response."""
    prefix, count = len(prompt.token_ids), len(sampled.token_ids)
    return Rollout(
        prompt=prompt,
        key=key,
        segment=0,
        token_ids=np.concatenate([np.asarray(prompt.token_ids, dtype=np.int64), sampled.token_ids]),
        trained=np.arange(prefix + count) >= prefix,
        logprobs=sampled.logprobs,
        versions=np.full(count, sampled.version, dtype=np.int64),
        sampling=sampling,
        turns=(
            Turn(0, prefix, "context"),
            Turn(prefix, prefix + count, "student", key, sampled.finish),
        ),
        top_ids=sampled.top_ids,
    )


@dataclass(frozen=True, slots=True)
class Episode:
    """What an environment made of one key: one rollout, or segments that share prefixes."""

    key: Key
    rollouts: tuple[Rollout, ...]
    reward: float | None = None  # None: the task's grader decides
    turn_rewards: tuple[float, ...] = ()  # one for each turn that was sampled, in the order of asking; () for none
    counts: Mapping[str, float] = field(default_factory=dict)  # {"env/spliced": 3}: a step's metric is the sum


@dataclass(frozen=True, slots=True)
class Context:
    """What a student is shown before its next turn: tokens put after the exact ids of turn `parent`.

    `parent` None begins a whole new prefix, hence a new segment, and `reason` says why.
    """

    token_ids: Ints
    parent: int | None = None  # 0: after what was said in turn 0, see `Sampled.turn`
    reason: str = ""
    role: Role = "context"  # whose words these are, and the words themselves: shown to people
    text: str = ""
    max_tokens: int | None = None  # of this turn, where it is to be shorter than all others


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A question: the log-probs of some tokens of a sequence. `id` names it; no randomness follows from it.

    Raises `ValueError` where the shapes do not fit each other.
    """

    id: str
    token_ids: Ints  # [L]
    scored: Mask  # [L] False * 6, True * 3; scored[0] is False
    temperature: float  # T that is asked for
    support: Support = "sampled"
    teacher: str | None = None  # which of several teachers answers

    def __post_init__(self) -> None:
        if self.token_ids.shape != self.scored.shape or self.token_ids.ndim != 1:
            raise ValueError(
                f"request {self.id!r}: token_ids {self.token_ids.shape} and scored {self.scored.shape} must be the "
                "same one-dimensional shape"
            )
        if self.scored.size and self.scored[0]:
            raise ValueError(f"request {self.id!r}: nothing precedes its first token that could predict it")

    @property
    def scored_ids(self) -> Ints:
        """[S] the tokens to score, in order."""
        return self.token_ids[self.scored]

    @property
    def start(self) -> int:
        """Index of the first scored token; the length where there is none."""
        places = np.flatnonzero(self.scored)
        return int(places[0]) if len(places) else len(self.token_ids)


def request_of(
    ids: npt.ArrayLike, start: int, temperature: float, support: Support = "sampled", id: str = ""
) -> ScoreRequest:
    """The question about `ids[start:]`. Given ids [K] are asked about at each of its positions.

    >>> request_of([11, 12, 4, 6], 2, 0.7).scored_ids.tolist()
    [4, 6]
    """
    token_ids = np.asarray(ids, dtype=np.int64)
    if isinstance(support, np.ndarray) and support.ndim == 1:
        support = np.tile(support, (max(0, len(token_ids) - start), 1))
    return ScoreRequest(id, token_ids, np.arange(len(token_ids)) >= start, temperature, support)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """The log-prob of each scored token, and nothing else."""

    scorer: str
    temperature: float  # stamped by what divided by it
    logprobs: Floats  # [S] log q(y_t)
    error_bound: float = 0.0  # nats; the largest certified error of any value that is trained on
    errors: Floats | None = None  # [S] nats; each position's own bound, None where all are exact
    valid_mask: Mask | None = None  # [S] False where the bound is too wide to train on: NaN is there. None: all valid


@dataclass(frozen=True, slots=True)
class TopKScores:
    """K tokens at each scored position, the scorer's most likely or the ones asked for, and the sampled one."""

    scorer: str
    temperature: float  # stamped by what divided by it
    ids: Ints  # [S, K]
    logprobs: Floats  # [S, K] log q, normalised over the whole vocabulary
    logprobs_of_sampled: Floats  # [S]
    error_bound: float = 0.0
    errors: Floats | None = None  # [S], see TokenScores
    valid_mask: Mask | None = None  # [S], see TokenScores


@dataclass(frozen=True, slots=True)
class HiddenScores:
    """The scorer's final hidden states: with its head, the whole distribution at any temperature.

    States are not divided by T: whoever has the head does that.
    """

    scorer: str
    states: Any  # `protocols.States` [S, d], at the position that predicts each scored token
    head: str  # fingerprint of the output head that belongs to them
    natural_temperature: float = 1.0  # of a baked model T, and then the learner refuses it
    error_bound: float = 0.0  # see TokenScores; of states that were rounded for the wire
    errors: Floats | None = None  # [S] nats, as measured at the request's temperature; None where nothing was rounded
    valid_mask: Mask | None = None  # [S], see TokenScores


Scores: TypeAlias = TokenScores | TopKScores | HiddenScores


@dataclass(frozen=True, slots=True)
class Groups:
    """Which scored tokens of a teacher say the text of which trained tokens of the student.

    Worked example: the student says "4", "6", end, the teacher has one token for "46":

        student [0, 0, 1]    teacher [0, 1]    teacher_ids ["46", its end]    sizes [2, 0]
    """

    student: Ints  # [S] the group of each trained token; -1: not compared, hence not trained
    teacher: Ints  # [S'] the group of each scored token; -1: not compared
    teacher_ids: Ints  # [S'] the scored tokens
    sizes: Ints  # [G] bytes of each group's text; 0 of a token that says none
    text_bytes: int  # of the whole response


@dataclass(frozen=True, slots=True)
class View:
    """How a teacher sees a rollout: its request, and which of its tokens belong to which of the student's.

    Tokens of one group say the same text. For the same tokens after the same prompt both are arange(S).
    """

    request: ScoreRequest
    student_group: Ints  # [S] -1: not compared, and counted in `left_out`
    teacher_group: Ints  # [S'] of the request's scored tokens
    left_out: Mapping[str, int] = field(default_factory=dict)  # {"end_of_turn": 3}: why, and how many
    groups: Groups | None = None  # where the request is in other tokens: its scores are of groups, not of tokens


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What one may want to know of a model without holding its weights."""

    name: str
    vocabulary: int  # rows of the output head that are compared
    context: int | None = None  # tokens; None where its config does not say
    stop_ids: tuple[int, ...] = ()
    dtype: str = "float32"
    natural_temperature: float = 1.0  # T of a folder that `limbeck bake` wrote
    window: int | None = None  # 1: a score follows from the one token before it; None: from all of the text


@dataclass(frozen=True, slots=True)
class Adapter:
    """A low-rank adapter over a base that stays on disk."""

    base: str  # model folder or hub name
    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be obtained, as a value: nothing is made up in its place."""

    id: str  # of the prompt or the request
    stage: Literal["run", "sample", "score", "grade"]
    kind: str  # "timeout"
    message: str


@dataclass(frozen=True, slots=True)
class Scored:
    """A rollout with everything the learner needs to know about it."""

    rollout: Rollout
    scores: Scores
    reward: float | None = None  # 1.0, as graded; None where there is no grader
    advantage: float | Floats = 0.0  # the reward, group-normalised; [S] where turns are rewarded; 0: not trained on
    reference: HiddenScores | None = None  # the frozen reference policy, for a KL-to-reference term
    groups: Groups | None = None  # of a teacher with other tokens; None: each score is of one trained token


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What one probe of the contract found. `measured` and `expected` are for a person to read."""

    probe: str  # "temperature"
    measured: str  # "ratio 1.4286 nats at T = 0.7"
    expected: str  # "1.4286"
    ok: bool = True
    remedy: str = ""  # what to do about one that failed, a sentence or two
