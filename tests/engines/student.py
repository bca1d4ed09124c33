"""A student whose weights move in place, as a learner's do, and its policies, which are leases on one version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from limbeck.errors import StalePolicyError
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.models.layout import lay_out
from limbeck.models.scoring import score_hidden
from limbeck.records import Adapter, Failure, ModelInfo, ScoreRequest, Scores, TokenScores


class Student:
    def __init__(self, lm: CausalLM, version: int = 0) -> None:
        self.lm, self.version = lm, version

    def publish(self) -> Lease:
        return Lease(self, self.version)

    def step(self, size: float = 0.02) -> Lease:
        """The policy after one more update."""
        self.version += 1
        generator = torch.Generator().manual_seed(self.version)
        with torch.no_grad():
            for parameter in self.lm.model.parameters():
                parameter.add_(size * parameter.std() * torch.randn(parameter.shape, generator=generator))
        return self.publish()


@dataclass
class Lease:
    """`protocols.Policy`."""

    student: Student
    version: int
    adapter: Adapter | None = None

    @property
    def info(self) -> ModelInfo:
        return self.student.lm.info()

    @property
    def lm(self) -> CausalLM:
        if self.student.version != self.version:
            raise StalePolicyError(f"version {self.version} was replaced by {self.student.version}")
        return self.student.lm

    def tensors(self, dtype: str = "float32") -> Iterator[tuple[str, Any]]:
        for name, tensor in self.lm.model.state_dict().items():
            yield name, tensor.to(getattr(torch, dtype))

    def save(self, folder: Path, dtype: str = "float32") -> None:
        LocalPolicy(self.lm, self.version).save(folder, dtype)

    def hold(self) -> Lease:
        raise NotImplementedError("an engine has no use for a copy")

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return [self._score(request) for request in unit]

    @torch.inference_mode()
    def _score(self, request: ScoreRequest) -> TokenScores:
        batch = lay_out([request], "padded")
        hidden_Sd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N)
        ids_S = torch.from_numpy(request.scored_ids)
        scores = score_hidden(self.lm.head(), hidden_Sd, ids_S, request.temperature)
        return TokenScores("student", scores.temperature, scores.logprobs_S.numpy())
