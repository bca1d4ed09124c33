"""The fixed text that every step asks about again, and that it is answered now as it was in the proof.

It is nearly as long as training's longest text, so that a context that is cut later shows, up to `LONGEST` tokens; it
is asked as training asks, with fewer tokens of a position where that would be much to send with every step.
"""

from __future__ import annotations

import numpy as np

from limbeck.contract.answers import refusal
from limbeck.contract.methods import ProofState
from limbeck.records import ScoreRequest, request_of
from limbeck.teachers.baseline import FRESH, Baseline
from limbeck.wire.score import wants_states

LONGEST = 2048  # tokens
ENTRIES = 2**16  # of all positions' lists together
STATES = 64  # positions at the end whose hidden states are asked for


def fresh_of(state: ProofState) -> int:
    """Tokens that come after the text, new each time."""
    return min(FRESH, state.length // 4)


def first_request(state: ProofState) -> ScoreRequest:
    """Before anything is known: a text of the prompts' length, at temperature 1."""
    return request_of(state.probe.base[: max(2, state.length - fresh_of(state))], 1, 1.0)


def fixed_request(as_sent: ScoreRequest, state: ProofState) -> ScoreRequest:
    """`as_sent`: how the method asks."""
    assert state.long is not None
    text = state.long.base.request.token_ids
    length = max(2, min(LONGEST, len(text) - fresh_of(state)))
    start, support = 1, as_sent.support
    if wants_states(as_sent):
        start = max(1, length - STATES)
    elif isinstance(support, int):
        support = max(1, min(support, ENTRIES // length))
    elif isinstance(support, np.ndarray):
        support = "sampled"
    return request_of(text[:length], start, as_sent.temperature, support, "probe")


def check_held(state: ProofState, baseline: Baseline) -> None:
    """The replies are those that the proof holds for the same text: what was proven is what is recorded.

    Raises `ContractError`.
    """
    assert state.long is not None
    held = state.long_at_t if baseline.request.temperature != 1 and state.long_at_t else state.long
    if wants_states(baseline.request) or baseline.request.temperature != held.base.request.temperature:
        return  # states were compared with the server's own log-probs
    limit = state.client.section.probe_tolerance + 4 * state.noise_floor
    for url, reply in baseline.replies.items():
        rows = slice(0, len(reply.logprobs))
        apart = float(np.abs(held.base.sampled_S[rows] - reply.logprobs).mean())
        if reply.top_logprobs is not None and held.base.top_SK is not None:
            k = min(reply.top_logprobs.shape[1], held.base.top_SK.shape[1])
            apart = max(apart, float(np.abs(held.base.top_SK[rows, :k] - reply.top_logprobs[:, :k]).mean()))
        if not apart <= limit:
            raise refusal(
                "baseline",
                f"teacher {state.name}: {url} scores a text {apart:.3g} nats on average from what it did a moment ago "
                f"(expected at most {limit:.2g}): it changed during the proof.",
                "Wait until the server is up to date, and start again.",
                f"{apart:.3g} nats from the proof",
                f"at most {limit:.2g}",
            )
