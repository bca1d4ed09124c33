"""What the parts of a run are to each other. Each takes records and returns records, or a `Failure` for each item.

A part of your own is a class that satisfies one of these: the guide *Parts of your own* shows each, and
`limbeck.testing` has a fake of each. Answers are in the order of the questions, one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from limbeck.records import (
    Adapter,
    Context,
    Episode,
    Failure,
    Key,
    ModelInfo,
    Prompt,
    Rollout,
    Sampled,
    SampleRequest,
    Sampling,
    Scored,
    ScoreRequest,
    Scores,
    Support,
    View,
)
from limbeck.reports import StepReport, Trace, WeightTransfer


class Policy(Protocol):
    """A lease on the student's weights of one version.

    After the next update it raises `StalePolicyError`, unless it came from `hold`.
    """

    version: int  # updates that had been made
    info: ModelInfo
    adapter: Adapter | None  # None: whole weights

    def tensors(self, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
        """The weights under their Hugging Face names, adapters merged in, one at a time."""
        ...

    def save(self, folder: Path, dtype: str = "float32") -> None:
        """Write an ordinary Hugging Face model folder, adapters merged in."""
        ...

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter alone, in peft's format. Only where `adapter` is not None."""
        ...

    def hold(self) -> Policy:
        """A copy that no update reaches."""
        ...

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """Log-probs under these weights."""
        ...


@runtime_checkable
class Samples(Protocol):
    """Whoever answers prompts, one unit a call: an `Engine`, or a teacher."""

    max_rows: int | None  # requests in a unit; None: all of a step at once

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """A turn for each request."""
        ...


class Engine(Protocol):
    """Samples from the student, one unit a call: the same batch whoever decodes it."""

    max_rows: int | None  # requests in a unit; None: all of a step at once

    async def load(self, policy: Policy) -> None:
        """Sample from these weights from now on."""
        ...

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """A turn for each request.

        What is sampled follows from the weights and the request alone, not from what else is in the unit.
        """
        ...


@runtime_checkable
class MovesWeights(Protocol):
    """An engine that holds a copy of the weights: what the last `load` moved."""

    @property
    def transfer(self) -> WeightTransfer: ...


@runtime_checkable
class BatchesTurns(Protocol):
    """An engine that batches by itself, such as a server: turns are given to it as they come, not in waves."""

    batches_turns: Literal[True]


class Generate(Protocol):
    """What an environment asks for the student's turns."""

    sampling: Sampling

    async def __call__(self, context: Context) -> Sampled | Failure:
        """The student's next turn after `context`; its `turn` is what a later context names as its parent.

        A `Failure` where it cannot be sampled, no token is left in the context, or there were too many turns already.
        What was sampled before is still there: return the failure, and the episode is counted as failed and not
        trained on; or return `episode()`, and it ends there.
        """
        ...

    def episode(self, reward: float | None = None, turn_rewards: Sequence[float] = ()) -> Episode:
        """Everything that was sampled so far, as rollouts.

        `reward` None: the task's grader decides. `turn_rewards`: one for each turn that was sampled, in the order in
        which they were asked for; without `reward` their sum is the episode's. Raises `ValueError` for another number.
        """
        ...


class Environment(Protocol):
    """Decides what comes before, between and after the student's turns. Many run at once."""

    async def run(self, prompt: Prompt, key: Key, generate: Generate) -> Episode | Failure: ...


class TeacherView(Protocol):
    """How a teacher sees a rollout."""

    def prompt_ids(self, prompt: Prompt) -> Sequence[int]:
        """What it sees before the student's first turn: the contract is proven on these."""
        ...

    def see(self, rollout: Rollout, support: Support) -> View | Failure:
        """What the teacher is asked. `support` is in the student's ids, the request in the teacher's."""
        ...

    def read(self, rollout: Rollout, view: View, scores: Scores) -> Scores:
        """The answer to the view's request, about the student's tokens: in its ids, one score a trained token [S]."""
        ...


class States(Protocol):
    """Final hidden states, wherever they are."""

    @property
    def shape(self) -> tuple[int, int]:
        """(S, d)"""
        ...

    def fetch(self) -> Any:
        """The tensor [S, d]."""
        ...


class Teacher(Protocol):
    """Scores tokens, and stamps each answer with the temperature it was computed at."""

    name: str
    info: ModelInfo

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]: ...


@runtime_checkable
class HoldsHeads(Protocol):
    """A teacher that answers with hidden states: the output heads that belong to them, by fingerprint."""

    @property
    def heads(self) -> Mapping[str, Any]: ...


class Learner(Protocol):
    """Owns the student's weights and their optimizer."""

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        """One optimizer step over all the samples. Raises `NonFiniteError` before a bad one."""
        ...

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        """The metrics of `update` without the update."""
        ...

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        """Per-token numbers of a few samples, with the `top` most likely tokens of each side."""
        ...

    async def publish(self) -> Policy: ...

    def save(self, folder: Path) -> None:
        """Write the model folder and the state that a resumed run needs."""
        ...

    def restore(self, folder: Path) -> None: ...


@runtime_checkable
class RestoresPolicies(Protocol):
    """A learner whose earlier policies can be taken up again: `rollout.lag` needs one."""

    def restore_policy(self, folder: Path, version: int) -> Policy:
        """What `save` of that version's policy wrote, or `save_adapter` where it has an adapter. No update reaches it.

        Raises `RunError` where the folder does not hold it.
        """
        ...


class Objective(Protocol):
    """What is minimised, elementwise over the vocabulary: then any support, chunk and rank can use it.

    With p = softmax(z/T) and q the teacher's, dD/dx = pull - p * pull.sum(-1) for x = z/T.
    """

    def pull(self, p: Any, logp: Any, logq: Any) -> Any:
        """p * a; reverse KL: p * (logp - logq)."""
        ...

    def gain(self, logp: Any, logq: Any) -> Any:
        """a, of a sampled token outside the support."""
        ...

    def value(self, p: Any, logp: Any, logq: Any) -> Any:
        """What is summed over the vocabulary to the divergence."""
        ...


class Task(Protocol):
    """Prompts to answer, and how to grade an answer."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]

    def grade(self, prompt: Prompt, response: str) -> float | None:
        """1.0 right, 0.0 wrong, anything between; None where this prompt cannot be graded."""
        ...


class TokenNames(Protocol):
    """How single tokens are shown to people."""

    special_ids: frozenset[int]  # end of sequence, template tokens: never part of a plain text

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """The text of each token on its own."""
        ...


class Observer(Protocol):
    """Sees what happens and cannot change it: the console, a tracker.

    `line` is the very mapping that was appended to `metrics.jsonl`. `started` comes again, with an earlier step, where
    a fleet lost its learner and goes on from a checkpoint; `closed` comes once.
    """

    def started(self, step: int, steps: int) -> None: ...

    def phase(self, step: int, name: str) -> None: ...

    def stepped(self, line: Mapping[str, Any]) -> None: ...

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def closed(self) -> None: ...


@runtime_checkable
class SeesTeachers(Protocol):
    """An observer that also receives, before `started`, what the contract proved."""

    def proven(self, methods: Sequence[str]) -> None:
        """`methods`: a line for each teacher, such as `teacher at T = 0.7: exact, by the server`."""
        ...


@runtime_checkable
class SeesLoading(Protocol):
    """An observer that also hears when the models begin to load; `closed` comes after it even if no step does."""

    def loading(self, takes: str) -> None:
        """`takes`: what memory and disk the run takes, in one line; empty where that is not known."""
        ...
