"""Log-probs of given tokens from hidden states, chunk by chunk: the one place where a scorer divides by T.

    scores = score_hidden(lm.head(), hidden_Sd, ids_S, temperature=0.7, support=20)
    scores.logprobs_S, scores.top_ids_SK, scores.top_logprobs_SK, scores.temperature

Logits of some positions at a time are computed, read and dropped: [S, V] is never stored whole. The whole
distribution is therefore never an answer: who wants it takes the hidden states and the head.

Shape legend: S scored positions, C positions of one chunk, V vocabulary, K support size, d hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head, at_least_float32
from limbeck.models.sampling import truncate
from limbeck.records import Failure, Ints, Sampling, ScoreRequest

CHUNK_BYTES = 48 * 2**20

Support: TypeAlias = Literal["sampled"] | int | Tensor


@dataclass(frozen=True, eq=False)
class ChunkedScores:
    """Log-probs at `temperature`, in float32 (float64 for float64 states).

    With the ids [3, 8] at two positions of which the most likely tokens are [3, 5] and [8, 3], at support=2:

        logprobs_S       [-0.1, -0.2]
        top_ids_SK       [[3, 5], [8, 3]]
        top_logprobs_SK  [[-0.1, -2.5], [-0.2, -2.0]]
    """

    temperature: float  # what the logits were divided by
    logprobs_S: Tensor  # of the given ids
    top_ids_SK: Tensor | None = None  # most likely first, or the given support in its own order
    top_logprobs_SK: Tensor | None = None
    entropy_S: Tensor | None = None


def score_hidden(
    head: Head,
    hidden_Sd: Tensor,
    ids_S: Tensor,
    temperature: float,
    support: Support = "sampled",
    *,
    entropy: bool = False,
    truncation: Sampling | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> ChunkedScores:
    """Score `ids_S` under softmax(logits / T), where `hidden_Sd` are the states that predict them.

    `support` asks for more tokens of each position: an int for that many of the most likely, int64 [S, K] for these
    very ids, [K] for the same ids at every position. With `truncation` the distribution is renormalised over what
    its top_k, top_p and min_p keep; its own temperature is not read. `chunk_bytes` bounds one chunk's logits.

    No gradient flows. Raises `ValueError` for T <= 0, for ids outside the head's vocabulary and for shapes that do
    not fit.
    """
    ids_SK = _check(head, hidden_Sd, ids_S, temperature, support)
    parts: dict[str, list[Tensor]] = {"logprobs_S": [], "top_ids_SK": [], "top_logprobs_SK": [], "entropy_S": []}
    item = at_least_float32(hidden_Sd[:0]).element_size()
    rows = max(1, chunk_bytes // (item * head.vocabulary))
    with torch.no_grad(), torch.autocast(hidden_Sd.device.type, enabled=False):
        for start in range(0, max(1, len(ids_S)), rows):  # one empty chunk gives empty answers their shapes
            c = slice(start, start + rows)
            logp_CV = torch.log_softmax(head.logits(hidden_Sd[c]).div_(temperature), dim=-1)
            if truncation is not None and truncation.truncated:
                logp_CV = truncate(logp_CV, truncation)
            parts["logprobs_S"].append(logp_CV.gather(1, ids_S[c, None])[:, 0])
            if isinstance(support, int):
                top = logp_CV.topk(support, dim=1)
                parts["top_ids_SK"].append(top.indices)
                parts["top_logprobs_SK"].append(top.values)
            elif ids_SK is not None:
                parts["top_ids_SK"].append(ids_SK[c])
                parts["top_logprobs_SK"].append(logp_CV.gather(1, ids_SK[c]))
            if entropy:
                parts["entropy_S"].append(torch.special.entr(logp_CV.exp_()).sum(dim=1))
    return ChunkedScores(temperature, **{name: torch.cat(chunks) for name, chunks in parts.items() if chunks})


def _check(head: Head, hidden_Sd: Tensor, ids_S: Tensor, temperature: float, support: Support) -> Tensor | None:
    """[S, K] the ids of a given support."""
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: at T = 0 there are no log-probs")
    count = hidden_Sd.shape[0]
    if ids_S.shape != (count,):
        raise ValueError(f"expected one id for each of {count} hidden states, got ids of shape {list(ids_S.shape)}")
    _check_range("scored ids", ids_S, head.vocabulary)
    if isinstance(support, Tensor):
        if support.shape[:-1] not in ((), (count,)):
            raise ValueError(f"expected a support of shape [{count}, K] or [K], got {list(support.shape)}")
        _check_range("the support", support, head.vocabulary)
        return support.to(hidden_Sd.device).expand(count, -1)
    if isinstance(support, int):
        if not 1 <= support <= head.vocabulary:
            raise ValueError(f"expected a support of 1 to {head.vocabulary} tokens, got {support}")
    elif support != "sampled":
        raise ValueError(
            f"support is {support!r}, expected 'sampled', a number or ids. The whole distribution is the hidden "
            "states and the head."
        )
    return None


def _check_range(name: str, ids: Tensor, vocabulary: int) -> None:
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary):
        raise ValueError(f"{name} range from {int(ids.min())} to {int(ids.max())}, expected 0 to {vocabulary - 1}")


def refusal(lm: CausalLM, request: ScoreRequest) -> Failure | None:
    """Why a model has no answer to a request: ids that it does not have, or more tokens than its context.

    Beyond the context nothing was learned, and what is there may depend on its neighbours in the batch.
    """
    ids, rows = request.token_ids, lm.vocabulary
    embedded = lm.model.get_input_embeddings().weight.shape[0]
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= embedded:
        why = f"its {len(ids)} token ids are not all from 0 to {embedded - 1}"
    elif request.scored_ids.size and request.scored_ids.max() >= rows:
        why = f"it asks for token {request.scored_ids.max()}, but the output head has {rows}"
    elif not isinstance(request.support, str) and (odd := _odd_support(request.support, rows)):
        why = f"it asks for {odd}, but the output head has {rows} tokens"
    elif lm.context is not None and len(ids) > lm.context:
        why = f"it has {len(ids)} tokens, but the model's context is {lm.context}"
    else:
        return None
    return Failure(request.id, "score", "bad_request", f"{lm.name} cannot score {request.id!r}: {why}.")


def _odd_support(support: int | Ints, rows: int) -> str | None:
    """What of a support the head does not have."""
    if isinstance(support, int):
        return None if 1 <= support <= rows else f"the top {support}"
    outside = support[(support < 0) | (support >= rows)]
    return f"token {outside[0]}" if outside.size else None
