"""A fixed request and what each replica answered when it was proven: asked again during the run.

baseline = await record_baseline(client, request, acknowledges)     # replicas must agree
await check_drift(client, baseline)                                 # later: is each still the same server?
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from limbeck.errors import ContractError, TeacherError
from limbeck.records import ScoreRequest
from limbeck.teachers.client import RemoteClient
from limbeck.wire.score import Reply, WireError


@dataclass(frozen=True, slots=True)
class Baseline:
    """By URL: the reply to `request`, and the name of the served model."""

    request: ScoreRequest  # as it is sent
    acknowledges: bool  # whether its temperature is sent by name
    replies: Mapping[str, Reply]
    identities: Mapping[str, str]


async def record_baseline(client: RemoteClient, request: ScoreRequest, acknowledges: bool) -> Baseline:
    """Ask every replica. Raises `ContractError` where they differ, and `WireError`."""
    urls = client.pool.urls
    replies = {url: await client.ask(request, url, acknowledges=acknowledges) for url in urls}
    identities = {url: await client.identity(url) for url in urls}
    first, tolerance = urls[0], client.section.probe_tolerance
    for url in urls[1:]:
        weights = [client.pool.known[replica].weights for replica in (first, url)]
        if None not in weights and weights[0] != weights[1]:
            raise ContractError(
                f"teacher {client.name}: replicas {first} ({identities[first]}) and {url} ({identities[url]}) have "
                f"other weights ({weights[0]} and {weights[1]}). All URLs must serve one model in one dtype."
            )
        difference = max_difference(replies[first], replies[url])
        if difference > tolerance:
            raise ContractError(
                f"teacher {client.name}: replicas {first} ({identities[first]}) and {url} ({identities[url]}) differ "
                f"by {difference:.3g} nats on one text, expected at most {tolerance}. All URLs must serve one model at "
                "one temperature."
            )
    return Baseline(request, acknowledges, replies, identities)


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
        raise TeacherError(f"teacher {client.name} cannot be probed: {error}") from error
    if problem:
        raise ContractError(
            f"teacher {client.name} drifted: {url} {problem}. Nothing was updated in this step. Start the right server "
            "again, then the same command."
        )


async def _find_change(client: RemoteClient, baseline: Baseline, url: str) -> str | None:
    """How a replica differs from the one that was proven."""
    identity = await client.identity(url)
    if identity != baseline.identities[url]:
        return f"serves {identity!r}, it was {baseline.identities[url]!r} when it was proven"
    reply = await client.ask(baseline.request, url, acknowledges=baseline.acknowledges)
    difference = max_difference(baseline.replies[url], reply)
    if difference <= client.section.probe_tolerance:
        return None
    return (
        f"now scores a fixed text {difference:.3g} nats away from what it did when it was proven (at most "
        f"{client.section.probe_tolerance} expected): other weights, or another temperature"
    )


def max_difference(a: Reply, b: Reply) -> float:
    """Nats (of hidden states: their own unit) between two replies to one request; infinite for other shapes."""
    left, right = (a.logprobs, b.logprobs) if a.hidden is None or b.hidden is None else (a.hidden, b.hidden)
    if left.shape != right.shape:
        return float("inf")
    return float(np.abs(left.astype(np.float64) - right).max(initial=0.0))
