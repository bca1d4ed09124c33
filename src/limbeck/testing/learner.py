"""A learner that learns nothing and counts, and the policy it publishes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.errors import ModelError
from limbeck.records import Adapter, Failure, ModelInfo, Scored, ScoreRequest, Scores
from limbeck.reports import Mean, StepReport, Top, Trace
from limbeck.testing.teacher import BigramTeacher, Doubles

STATE_FILE, TABLE_FILE = "learner.json", "table.npy"


class FixedPolicy:
    """Scores by a table whatever the version; has no tensors, and saves the table."""

    def __init__(self, table: Doubles, version: int) -> None:
        self.table, self.version = table, version
        self.info = ModelInfo("fixed", len(table))
        self.adapter: Adapter | None = None

    def tensors(self, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
        return iter(())

    def save(self, folder: Path, dtype: str = "float32") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / TABLE_FILE, self.table)

    def save_adapter(self, folder: Path) -> None:
        raise ModelError("a fixed policy has no adapter")

    def hold(self) -> FixedPolicy:
        return self

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return await BigramTeacher(self.table, "fixed").score(unit)


class CountingLearner:
    """`version` counts the updates; `seen` keeps the samples of each."""

    def __init__(self, table: Doubles) -> None:
        self.table, self.version = table, 0
        self.seen: list[list[Scored]] = []

    async def update(self, samples: Sequence[Scored]) -> StepReport:
        self.seen.append(list(samples))
        self.version += 1
        return await self.measure(samples)

    async def measure(self, samples: Sequence[Scored]) -> StepReport:
        trained = float(sum(int(sample.rollout.trained.sum()) for sample in samples))
        return StepReport(means={"objective": Mean(0.0, trained)}, sums={"tokens/trained": trained})

    async def trace(self, samples: Sequence[Scored], top: int) -> list[Trace]:
        traces = []
        for sample in samples:
            zeros = np.zeros_like(sample.rollout.logprobs)
            tops = Top(np.zeros((len(zeros), top), np.int64), np.zeros((len(zeros), top), np.float32))
            traces.append(Trace(sample.rollout.logprobs, zeros, zeros, tops))
        return traces

    async def publish(self) -> FixedPolicy:
        return FixedPolicy(self.table, self.version)

    def restore_policy(self, folder: Path, version: int) -> FixedPolicy:
        return FixedPolicy(np.load(folder / TABLE_FILE), version)

    def save(self, folder: Path) -> None:
        (folder / STATE_FILE).write_text(json.dumps({"version": self.version}), encoding="utf-8")

    def restore(self, folder: Path) -> None:
        self.version = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["version"]
