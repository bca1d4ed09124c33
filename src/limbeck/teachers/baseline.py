"""A fixed text and what each replica answered to it when it was proven: asked again with every step.

    baseline = await record_baseline(client, request, acknowledges, pool)     # replicas must agree
    await check_drift(client, baseline)                                       # later: is each still the same server?

Other tokens come after the text each time. By causality the text's own scores do not move with them, but a server that
answers from a cache of what it was asked before has no answer to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from limbeck.errors import ContractError, TeacherError
from limbeck.records import Ints, ScoreRequest
from limbeck.teachers.client import RemoteClient
from limbeck.wire.score import Reply, WireError

FRESH = 8  # tokens
BLOCK = 16  # positions that are looked at together: noise averages out, a change does not


@dataclass(frozen=True, slots=True)
class Baseline:
    """By URL: the reply to `request`, and the name of the served model."""

    request: ScoreRequest  # as it is sent, but for the tokens after it
    pool: Ints  # tokens that may come after it
    fresh: int  # how many
    acknowledges: bool  # whether its temperature is sent by name
    replies: Mapping[str, Reply]
    identities: Mapping[str, str]


async def record_baseline(
    client: RemoteClient, request: ScoreRequest, acknowledges: bool, pool: Ints, fresh: int = FRESH
) -> Baseline:
    """Ask every replica about at least one token. Raises `ContractError` where they differ, and `WireError`."""
    urls = client.pool.urls
    replies = {url: await _ask(client, request, url, acknowledges, pool, fresh) for url in urls}
    identities = {url: await client.identity(url) for url in urls}
    first, tolerance = urls[0], client.section.probe_tolerance
    for url in urls[1:]:
        weights = [client.pool.known[replica].weights for replica in (first, url)]
        if None not in weights and weights[0] != weights[1]:
            raise ContractError(
                f"teacher {client.name}: replicas {first} ({identities[first]}) and {url} ({identities[url]}) have "
                f"other weights ({weights[0]} and {weights[1]}). All URLs must serve one model in one dtype."
            )
        difference = block_difference(replies[first], replies[url])
        if difference > tolerance:
            raise ContractError(
                f"teacher {client.name}: replicas {first} ({identities[first]}) and {url} ({identities[url]}) differ "
                f"by {difference:.3g} nats on one text, expected at most {tolerance}. All URLs must serve one model at "
                "one temperature."
            )
    return Baseline(request, pool, fresh, acknowledges, replies, identities)


async def check_drift(client: RemoteClient, baseline: Baseline) -> None:
    """Raises `ContractError` where a replica is no longer the server that was proven.

    A replica that is away is passed over while another answers: it is asked again before it counts.
    Raises `TeacherError` where none answers.
    """
    urls = client.pool.urls
    results = await asyncio.gather(
        *(_check_replica(client, baseline, url) for url in urls), return_exceptions=len(urls) > 1
    )
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in errors:
        if not isinstance(error, WireError):
            raise error
    if errors and len(errors) == len(results):
        raise TeacherError(f"teacher {client.name}: no replica answers: {errors[0]}") from errors[0]


async def _check_replica(client: RemoteClient, baseline: Baseline, url: str) -> None:
    try:
        problem = await _find_change(client, baseline, url)
    except WireError as error:
        if len(client.pool.urls) > 1:
            raise
        raise TeacherError(f"teacher {client.name} cannot be probed ({error.kind}): {error}") from error
    if problem:
        raise ContractError(
            f"teacher {client.name} drifted: {url} {problem}. Nothing was updated in this step. Start the right server "
            "again, then the same command."
        )


async def _find_change(client: RemoteClient, baseline: Baseline, url: str) -> str | None:
    """How a replica differs from the one that was proven."""
    reply, identity = await asyncio.gather(
        _ask(client, baseline.request, url, baseline.acknowledges, baseline.pool, baseline.fresh), client.identity(url)
    )
    if identity != baseline.identities[url]:
        return f"serves {identity!r}, it was {baseline.identities[url]!r} when it was proven"
    difference = block_difference(baseline.replies[url], reply)
    if difference <= client.section.probe_tolerance:
        return None
    return (
        f"now scores a fixed text {difference:.3g} nats away from what it did when it was proven (at most "
        f"{client.section.probe_tolerance} expected): other weights, or another temperature"
    )


async def _ask(
    client: RemoteClient, request: ScoreRequest, url: str, acknowledges: bool, pool: Ints, fresh: int
) -> Reply:
    """The scores of the request's text, asked with fresh tokens after it."""
    after = np.random.default_rng().choice(pool, fresh)
    ids = np.concatenate([request.token_ids, after])
    scored = np.concatenate([request.scored, np.zeros(fresh, dtype=bool)])
    return await client.ask(replace(request, token_ids=ids, scored=scored), url, acknowledges=acknowledges)


def block_difference(a: Reply, b: Reply) -> float:
    """Nats (of hidden states: their own unit) between two replies to one request; infinite for other shapes.

    The mean over the values of some positions, where it is largest: of the tokens that were scored, of the most likely
    ones in order, and of those in both lists. Raises `ContractError` where there is nothing to compare.
    """
    left, right = (a.logprobs, b.logprobs) if a.hidden is None or b.hidden is None else (a.hidden, b.hidden)
    if left.shape != right.shape or (a.top_ids is None) != (b.top_ids is None):
        return float("inf")
    if not left.size:
        raise ContractError("the fixed text has no scored token: nothing can be compared with what was proven.")
    found = _largest_block(np.abs(left.astype(np.float64) - right))
    if a.top_logprobs is None or b.top_logprobs is None:
        return found
    assert a.top_ids is not None
    assert b.top_ids is not None
    if a.top_logprobs.shape != b.top_logprobs.shape:
        return float("inf")
    listed_SK = a.top_logprobs.astype(np.float64)
    # Tokens of equal score change places: of those that both list, by rank of the id.
    common_SKK = a.top_ids[:, :, None] == b.top_ids[:, None, :]
    row, ours, theirs = np.nonzero(common_SKK)
    of_each_SK = np.zeros(listed_SK.shape)
    of_each_SK[row, ours] = np.abs(listed_SK[row, ours] - b.top_logprobs[row, theirs])
    in_order_SK = np.abs(listed_SK - b.top_logprobs)
    return max(found, _largest_block(in_order_SK), _largest_block(of_each_SK))


def _largest_block(apart: npt.NDArray[np.float64]) -> float:
    """Of each `BLOCK` positions the mean; the largest."""
    return max(float(apart[start : start + BLOCK].mean()) for start in range(0, len(apart), BLOCK))
