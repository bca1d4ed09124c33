"""A sampled turn as a server sent it, validated: tokens in, tokens out, never text.

    SampleRequest(key, ids, sampling)  ->  SampleReply([4, 6, 3], logprobs, "stop")

An answer that does not hold together is asked for again only where the wire may have spoilt it. One that
answers something else than what was asked is final: asking until the server sends something else would change
what the samples are drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.records import Finish, Floats, Ints, SampleRequest
from limbeck.wire.score import WireError, check_logprobs, integer, number


@dataclass(frozen=True, slots=True)
class SampleReply:
    """A validated answer. The stop token, where there is one, is its last token."""

    token_ids: Ints  # [n]
    logprobs: Floats  # [n] as the server gives them, at whatever temperature
    finish: Finish
    version: str | None = None  # of the weights it was sampled with, where the server reports it


def make_sample_reply(
    request: SampleRequest,
    vocabulary: int,
    ids: Sequence[Any],
    logprobs: Sequence[Any],
    reason: Any,
    version: str | None = None,
) -> SampleReply:
    """Validate what a dialect took out of an answer; `reason` is the server's word for why it stopped.

    Ids from `vocabulary` on are no tokens of the student. Raises `WireError`.
    """
    sampling = request.sampling
    tokens = np.array([integer(value, "token id") for value in ids], dtype=np.int64)
    if len(logprobs) != len(tokens):
        raise WireError("short", f"the answer has {len(tokens)} tokens and {len(logprobs)} log-probs")
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
    outside = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if len(outside):
        raise WireError(
            "unfit",
            f"the server sampled token {outside[0]}, but student and teacher share a vocabulary of "
            f"{vocabulary}: does it hold the student?",
        )
    values = check_logprobs(np.array([number(value, "log-prob") for value in logprobs], dtype=np.float64))
    return SampleReply(tokens, values.astype(np.float32), "stop" if stopped else "length", version)
