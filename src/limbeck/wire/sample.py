"""A sampled turn as a server sent it, validated: tokens in, tokens out, never text.

    SampleRequest(key, ids, sampling)  ->  SampleReply([4, 6, 3], logprobs, "stop")

An answer that does not hold together is asked for again only where the wire may have spoilt it. One that
answers something else than what was asked is final: asking until the server sends something else would change
what the samples are drawn from.

Shape legend: n sampled tokens, K most likely tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.records import Finish, Floats, Ints, SampleRequest
from limbeck.wire.score import AGREEMENT, CLAMP, WireError, check_logprobs, integer, number


@dataclass(frozen=True, slots=True)
class SampleReply:
    """A validated answer. The stop token, where there is one, is its last token."""

    token_ids: Ints  # [n]
    logprobs: Floats  # [n] as the server gives them, at whatever temperature
    finish: Finish
    version: str | None = None  # of the weights it was sampled with, where the server reports it
    top_ids: Ints | None = None  # [n, K] by rank, whether or not the sampled token is among them


def make_sample_reply(
    request: SampleRequest,
    vocabulary: int,
    ids: Sequence[Any],
    logprobs: Sequence[Any],
    reason: Any,
    version: str | None = None,
    tops: Sequence[Sequence[tuple[Any, Any]]] | None = None,
) -> SampleReply:
    """Validate what a dialect took out of an answer: `ids` and `logprobs` [n], `tops` [n][K] of (id, log-prob).

    `reason` is the server's word for why it stopped. Ids from `vocabulary` on are no tokens of the student. Raises
    `WireError`.
    """
    tokens = np.array([integer(value, "token id") for value in ids], dtype=np.int64)
    if len(logprobs) != len(tokens):
        raise WireError("short", f"the answer has {len(tokens)} tokens and {len(logprobs)} log-probs")
    finish = _finish(request, tokens, reason)
    _check_vocabulary(tokens, vocabulary, "sampled")
    values = check_logprobs(np.array([number(value, "log-prob") for value in logprobs], dtype=np.float64))
    top_ids = _top_ids(request.top, tokens, tops) if request.top else None
    if top_ids is not None:
        _check_vocabulary(top_ids, vocabulary, "lists")
    return SampleReply(tokens, values.astype(np.float32), finish, version, top_ids)


def _finish(request: SampleRequest, tokens: Ints, reason: Any) -> Finish:
    """Raises `WireError` for a response that is not complete, or not what was asked for."""
    sampling = request.sampling
    if reason not in ("stop", "length"):
        raise WireError("server", f"the response ended with {reason!r}, expected 'stop' or 'length'")
    if not 0 < len(tokens) <= sampling.max_tokens:
        raise WireError("short", f"the answer has {len(tokens)} tokens, expected 1 to {sampling.max_tokens}")
    stops = np.flatnonzero(np.isin(tokens, sampling.stop_ids))
    stopped = len(stops) > 0 and int(stops[0]) == len(tokens) - 1
    if len(stops) and not stopped:
        raise WireError(
            "unfit", f"the server went on after the stop token {tokens[stops[0]]}: it does not heed stop_token_ids"
        )
    if not stopped and reason == "stop":
        raise WireError(
            "unfit",
            f"the server stopped after token {tokens[-1]}, which is none of the stop tokens {sampling.stop_ids}, or it "
            "leaves the stop token out. Add the token to rollout.stop_ids, or start the server without stop strings",
        )
    if not stopped and len(tokens) < sampling.max_tokens:
        raise WireError("short", f"the answer breaks off after {len(tokens)} of {sampling.max_tokens} tokens")
    return "stop" if stopped else "length"


def _top_ids(k: int, tokens: Ints, tops: Sequence[Sequence[tuple[Any, Any]]] | None) -> Ints:
    """[n, K] the most likely tokens, the first one first. Raises `WireError`.

    A server may add the sampled token to its K. Where there are K + 1, that is the one to take out: a support that
    depends on what was sampled biases the gradient.
    """
    if tops is None or len(tops) != len(tokens):
        found = "no top tokens" if tops is None else f"{len(tops)} lists of top tokens"
        raise WireError("short", f"the answer has {found} for {len(tokens)} sampled tokens")
    rows = np.zeros((len(tokens), k), dtype=np.int64)
    for position, (row, sampled) in enumerate(zip(tops, tokens.tolist(), strict=True)):
        entries = {integer(i, "top token id"): number(x, "top log-prob") for i, x in row}
        added = entries.pop(sampled, -np.inf) if len(row) == k + 1 else -np.inf
        if len(entries) != k:
            raise WireError(
                "short", f"position {position} has {len(row)} top tokens, {k} different ones were asked for"
            )
        values = np.array(list(entries.values()))
        if not (np.isfinite(values).all() and (values > CLAMP).all()):
            raise WireError(
                "unfit",
                f"position {position} has fewer than {k} tokens that can be sampled: the server lists the top of a cut "
                "distribution. Set rollout.top_p = 1, rollout.top_k = 0 and rollout.min_p = 0, or a smaller "
                "objective.support",
            )
        if added > values.min() + AGREEMENT:
            raise WireError("inconsistent", f"position {position} lists tokens less likely than the sampled one")
        rows[position] = np.array(list(entries))[np.argsort(-values, kind="stable")]
    return rows


def _check_vocabulary(ids: Ints, vocabulary: int, did: str) -> None:
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        raise WireError(
            "unfit",
            f"the server {did} token {outside[0]}, but student and teacher share a vocabulary of {vocabulary}: does it "
            "hold the student?",
        )
