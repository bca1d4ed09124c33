"""A teacher whose distribution depends on the token before alone: a table.

Shape legend: V vocabulary, S scored tokens, K support size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from limbeck.records import Failure, ModelInfo, ScoreRequest, Scores, TokenScores, TopKScores

Doubles = npt.NDArray[np.float64]


def random_bigrams(vocabulary: int, seed: int = 0, scale: float = 2.0) -> Doubles:
    """[V, V] log-probs at temperature 1 of the next token, by the token before."""
    return log_softmax(scale * np.random.default_rng(seed).standard_normal((vocabulary, vocabulary)))


def log_softmax(logits: Doubles) -> Doubles:
    """Over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: Doubles = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


class BigramTeacher:
    """Scores by `table` [V, V] at the temperature of the request, and stamps it.

    With `stuck_at` it divides by that temperature whatever is asked, and says so: a teacher that a run must refuse.
    `calls` keeps every request.
    """

    def __init__(self, table: Doubles, name: str = "bigrams", stuck_at: float | None = None) -> None:
        self.table, self.name, self.stuck_at = table, name, stuck_at
        self.info = ModelInfo(name, len(table), window=1)
        self.calls: list[ScoreRequest] = []

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        self.calls += unit
        return [self._one(request) for request in unit]

    def _one(self, request: ScoreRequest) -> Scores:
        temperature = self.stuck_at or request.temperature
        places_S = np.flatnonzero(request.scored)
        logq_SV = log_softmax(self.table[request.token_ids[places_S - 1]] / temperature)
        sampled_S = logq_SV[np.arange(len(places_S)), request.scored_ids].astype(np.float32)
        if isinstance(request.support, str):
            return TokenScores(self.name, temperature, sampled_S)
        if isinstance(request.support, int):
            ids_SK = np.argsort(-logq_SV, axis=1, kind="stable")[:, : request.support]
        else:
            ids_SK = request.support
        top_SK = np.take_along_axis(logq_SV, ids_SK, axis=1).astype(np.float32)
        return TopKScores(self.name, temperature, ids_SK, top_SK, sampled_S)
