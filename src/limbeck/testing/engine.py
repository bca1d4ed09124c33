"""An engine whose distribution depends on the token before alone: a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.protocols import Policy
from limbeck.records import Failure, Finish, Ints, Sampled, SampleRequest
from limbeck.seeding import uniforms
from limbeck.testing.teacher import Doubles, log_softmax


class BigramEngine:
    """Samples from `table` [V, V] of log-probs at temperature 1; `loaded` lists the versions it was given."""

    def __init__(self, table: Doubles, max_rows: int | None = None) -> None:
        self.table, self.max_rows = table, max_rows
        self.loaded: list[int] = []
        self.units: list[list[SampleRequest]] = []

    async def load(self, policy: Policy) -> None:
        self.loaded.append(policy.version)

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        self.units.append(list(unit))
        return [self._one(request) for request in unit]

    def _one(self, request: SampleRequest) -> Sampled:
        sampling, before = request.sampling, int(request.token_ids[-1])
        ids: list[int] = []
        logprobs: list[float] = []
        tops: list[Ints] = []
        finish: Finish = "length"
        for uniform in uniforms(sampling.seed, request.key, sampling.max_tokens):
            logp_V = log_softmax(self.table[before] / sampling.temperature)
            reached = int(np.searchsorted(np.exp(logp_V).cumsum(), uniform, side="right"))
            before = int(logp_V.argmax()) if sampling.greedy else min(reached, len(logp_V) - 1)
            ids.append(before)
            tops.append(np.argsort(-logp_V, kind="stable")[: request.top])
            logprobs.append(float(logp_V[before]))
            if before in sampling.stop_ids:
                finish = "stop"
                break
        version = self.loaded[-1] if self.loaded else 0
        top_ids = np.stack(tops).astype(np.int64) if request.top else None
        return Sampled(np.array(ids, dtype=np.int64), np.array(logprobs, dtype=np.float32), finish, version, top_ids)
