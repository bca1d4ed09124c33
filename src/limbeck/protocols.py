"""The seams of the house. Each takes records and returns records, or a `Failure` per item.

A backend is one class in its own folder that satisfies one of these; `assemble.py` is the only
place that chooses between them. Answers stand in the order of the questions, one each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from limbeck.records import Failure, Floats, Prompt, Rollout, Sampling, Scored, StepReport, TeacherScores, Trace


class Policy(Protocol):
    """The student's weights after an update, as an engine may want them."""

    @property
    def version(self) -> int: ...

    def named_tensors(self) -> Iterator[tuple[str, Any]]:
        """The weights under their Hugging Face names."""
        ...

    def save(self, folder: Path) -> None:
        """Write an ordinary Hugging Face model folder."""
        ...

    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Floats]:
        """[S] for each rollout: log-prob of every sampled token in the distribution its `sampling` draws from.

        Of these weights, so only until the next update where they are shared with the learner.
        """
        ...


class Engine(Protocol):
    """Samples from the student."""

    async def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1
    ) -> list[Rollout | Failure]:
        """`samples_per_prompt` answers for each prompt, prompt by prompt.

        The k-th sample of a prompt depends on the weights, `sampling.seed`, the prompt and k
        only, not on what else is in the batch.
        """
        ...

    async def load(self, policy: Policy) -> None:
        """Sample from these weights from now on."""
        ...

    async def close(self) -> None: ...


class Teacher(Protocol):
    """Marks every sampled token, at the temperature it was sampled at."""

    name: str

    @property
    def seconds(self) -> Mapping[str, float]:
        """Of the last `score`, by the name of each teacher that took part; {} for one alone."""
        ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]: ...

    async def close(self) -> None: ...


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
    """Prompts to answer, and how to mark an answer."""

    train: Sequence[Prompt]
    held_out: Sequence[Prompt]

    def grade(self, prompt: Prompt, response: str) -> float | None:
        """1.0 right, 0.0 wrong, anything between; None where this prompt cannot be graded."""
        ...


class TokenNames(Protocol):
    """How single tokens are shown to people."""

    special_ids: frozenset[int]  # end of sequence, template marks: never part of a plain text

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """The text of each token on its own."""
        ...


class Observer(Protocol):
    """Sees what happens and cannot change it: the console, a tracker.

    `line` is the very mapping that was appended to `metrics.jsonl`.
    """

    def started(self, step: int, steps: int) -> None: ...

    def phase(self, step: int, name: str) -> None: ...

    def stepped(self, line: Mapping[str, Any]) -> None: ...

    def evaluated(self, line: Mapping[str, Any]) -> None: ...

    def closed(self) -> None: ...
