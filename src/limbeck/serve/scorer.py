"""From requests to results: one forward pass over a batch, logits chunk by chunk, at each request's temperature.

    scorer = Scorer(lm)
    results = scorer.score([Asked(request_of(ids, start, temperature=0.7, support=20)), ...])

Shape legend: S scored tokens of a request, J listed tokens, K top tokens, N scored tokens of a batch, d hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.config.values import HiddenDtype
from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import use_fused_forward
from limbeck.models.layout import lay_out, split
from limbeck.models.llama import parts_of
from limbeck.models.scoring import CHUNK_BYTES, ChunkedScores, Support, score_hidden
from limbeck.records import ScoreRequest
from limbeck.serve.cached_states import CachedStates
from limbeck.serve.limits import Asked
from limbeck.serve.prefix_cache import PrefixCache
from limbeck.wire.binary import Result, RoundedStates
from limbeck.wire.score import wants_states
from limbeck.wire.states import encode

PREFIX_BYTES = 512 * 2**20
LIKELY = 20  # tokens of a position on which the rounding of its state is measured


class Scorer:
    """A frozen model. `budget` bounds the tokens of a forward pass, `chunk_bytes` the logits alive at once,
    `prefix_bytes` the prefixes that are kept for those that begin alike (`cached_states`; 0: none are).

    With `batch_invariant` every sequence is computed by itself and from its beginning, so an answer does not depend
    on what else was asked: slower, and the same to the last bit every time. Prefixes are kept of Llama-like models
    alone (`equivalence.use_fused_forward`); `unshared` says why not of this one.
    """

    def __init__(
        self,
        lm: CausalLM,
        budget: int = 8192,
        chunk_bytes: int = CHUNK_BYTES,
        batch_invariant: bool = False,
        prefix_bytes: int = PREFIX_BYTES,
    ) -> None:
        self.lm, self.budget, self.chunk_bytes, self.batch_invariant = lm, budget, chunk_bytes, batch_invariant
        lm.model.eval().requires_grad_(False)
        self.head = lm.head()
        self._cached: CachedStates | None = None
        self.unshared = use_fused_forward(lm)
        if self.unshared is None and prefix_bytes and not batch_invariant:
            parts = parts_of(lm)
            assert not isinstance(parts, str)
            self._cached = CachedStates(parts, PrefixCache(prefix_bytes), budget, lm.device)

    def score(self, asked: Sequence[Asked]) -> list[Result]:
        """A result for each, in order."""
        requests = [_with_last_state(one.request) if one.hidden else one.request for one in asked]
        with torch.inference_mode():
            states = self._states(requests) if self._cached is None else self._cached.states(requests)
            return [self._result(one, hidden_Sd) for one, hidden_Sd in zip(asked, states, strict=True)]

    def _states(self, requests: Sequence[ScoreRequest]) -> list[Tensor]:
        """[n, d] for each request, each computed from its beginning."""
        alone = [[i] for i in range(len(requests))]
        states: dict[int, Tensor] = {}
        for part in alone if self.batch_invariant else split(requests, self.budget, "padded"):
            batch = lay_out([requests[i] for i in part], "padded").to(self.lm.device)
            hidden_Nd = self.lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N)
            counts = [len(requests[i].scored_ids) for i in part]
            states |= dict(zip(part, torch.split(hidden_Nd, counts), strict=True))
        return [states[i] for i in range(len(requests))]

    def _result(self, asked: Asked, hidden_Sd: Tensor) -> Result:
        """`hidden_Sd` has one row more where the state of the last token is wanted."""
        request = asked.request
        hidden = _numpy(hidden_Sd) if asked.hidden or wants_states(request) else None
        if wants_states(request):
            if asked.hidden_dtype != "float32":
                return self._round(request, hidden_Sd, asked.hidden_dtype)
            return Result(None, hidden=hidden)
        hidden_Sd = hidden_Sd[: len(request.scored_ids)]
        scores = self._score(request, hidden_Sd, _support(request))
        listed = self._score(request, hidden_Sd, torch.tensor(asked.listed)) if asked.listed else None
        return Result(
            _numpy(scores.logprobs_S),
            None if scores.top_ids_SK is None else scores.top_ids_SK.cpu().numpy(),
            None if scores.top_logprobs_SK is None else _numpy(scores.top_logprobs_SK),
            hidden,
            None if listed is None or listed.top_logprobs_SK is None else _numpy(listed.top_logprobs_SK),
            temperature=scores.temperature,
        )

    def _round(self, request: ScoreRequest, hidden_Sd: Tensor, dtype: HiddenDtype) -> Result:
        """The states as they travel, and how far the log-probs of the likely and of the scored tokens move by it.

        Measured as the asker computes them, in float32 whatever the model's dtype.
        """
        encoded = encode(_numpy(hidden_Sd), dtype)
        rounded_Sd = torch.from_numpy(encoded.decode()).to(hidden_Sd.device)
        if torch.equal(rounded_Sd, hidden_Sd.float()):  # a model that computes in bfloat16
            nothing_S = np.zeros(len(hidden_Sd), np.float32)
            return Result(None, rounded=RoundedStates(encoded, nothing_S, nothing_S), temperature=request.temperature)
        exact = self._score(request, hidden_Sd.float(), min(LIKELY, self.head.vocabulary))
        assert exact.top_ids_SK is not None
        moved = self._score(request, rounded_Sd, exact.top_ids_SK)
        assert exact.top_logprobs_SK is not None
        assert moved.top_logprobs_SK is not None
        prefix_S = (moved.top_logprobs_SK - exact.top_logprobs_SK).abs().amax(dim=1)
        errors_S = torch.maximum(prefix_S, (moved.logprobs_S - exact.logprobs_S).abs())
        rounded = RoundedStates(encoded, _numpy(errors_S), _numpy(prefix_S))
        return Result(None, rounded=rounded, temperature=moved.temperature)

    def _score(self, request: ScoreRequest, hidden_Sd: Tensor, support: Support) -> ChunkedScores:
        ids_S = torch.from_numpy(request.scored_ids).to(hidden_Sd.device)
        return score_hidden(self.head, hidden_Sd, ids_S, request.temperature, support, chunk_bytes=self.chunk_bytes)


def _support(request: ScoreRequest) -> Support:
    if isinstance(request.support, np.ndarray):
        return torch.from_numpy(request.support)
    return request.support if isinstance(request.support, int) else "sampled"


def _with_last_state(request: ScoreRequest) -> ScoreRequest:
    """The same with a token more, in the place of what comes after the last one. It is not fed to the model."""
    return replace(
        request,
        token_ids=np.append(request.token_ids, 0),
        scored=np.append(request.scored, True),
        support="sampled",
    )


def _numpy(values: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return values.float().cpu().numpy()
