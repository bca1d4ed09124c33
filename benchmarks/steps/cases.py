"""What is measured: models, prompts and the length of every response. Read by both sides, imports neither."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

TEMPERATURE = 1.0
LEARNING_RATE = 1e-5
BETAS = (0.9, 0.95)
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """One configuration. Lengths are in tokens."""

    name: str
    models: str  # "tiny" or "smollm2"
    prompts: int
    samples: int  # of each prompt
    prompt_tokens: int
    new_tokens: int  # of the longest response
    shortest: int | None = None  # None: every response has `new_tokens`
    peer_rows: int | None = None  # rows of TRL's micro-batch; None: all at once
    vocabulary: int | None = None  # of random tiny models; None: that of the models as they are
    warmups: int = 0  # steps before the timed ones, besides the one that is checked

    @property
    def rows(self) -> int:
        return self.prompts * self.samples

    def lengths(self) -> list[int]:
        """Tokens of each response, stop token included: prompt by prompt, sample by sample."""
        if self.shortest is None:
            return [self.new_tokens] * self.rows
        span, steps = self.new_tokens - self.shortest, self.rows - 1
        lengths = [self.shortest + round(span * row / steps) for row in range(self.rows)]
        random.Random(0).shuffle(lengths)
        return lengths

    def trained_tokens(self) -> int:
        return sum(self.lengths())

    def quick(self) -> Case:
        """Fewer rows of half the length: does it run, and do both sides agree? Its ratios say less."""
        prompts, samples = max(1, self.prompts // 4), min(4, self.samples)
        return replace(self, prompts=prompts, samples=samples, new_tokens=self.new_tokens // 2)

    def describe(self) -> str:
        spread = "" if self.shortest is None else f"{self.shortest} to "
        return (
            f"{self.models}, {self.prompts} prompts of {self.prompt_tokens} tokens x {self.samples}, "
            f"{spread}{self.new_tokens} new tokens"
        )


CASES = {
    "a": Case("a", "tiny", prompts=64, samples=1, prompt_tokens=8, new_tokens=40, warmups=2),
    "b": Case("b", "smollm2", prompts=8, samples=4, prompt_tokens=128, new_tokens=64),
    "c": Case("c", "smollm2", prompts=8, samples=4, prompt_tokens=128, new_tokens=64, shortest=4),
    # 18 thousand tokens at once would need more memory than this class of machine has: two halves.
    "d": Case("d", "smollm2", prompts=2, samples=8, prompt_tokens=512, new_tokens=64, peer_rows=8),
}


@dataclass(frozen=True)
class Work:
    """A case with its model folders and its texts: what a worker reads from one file."""

    case: Case
    student: str
    teacher: str
    texts: list[list[str]]  # prompts of each step
    threads: int

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: str | Path) -> Work:
        given: dict[str, Any] = json.loads(Path(path).read_text())
        return cls(**{**given, "case": Case(**given["case"])})


def prompt_id(step: int, prompt: int) -> str:
    return f"{step}:{prompt}"


def row_of(id_: str, sample: int, case: Case) -> int:
    """Which of a step's rows a sample is."""
    return int(id_.partition(":")[2]) * case.samples + sample
