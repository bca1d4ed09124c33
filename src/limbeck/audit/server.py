"""The teacher's side where it is a server: proven first, then asked at each temperature at which it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from limbeck.audit.dump import Reals, Row
from limbeck.audit.recompute import Curves
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import RecipeError, TeacherError
from limbeck.records import Failure, ScoreRequest
from limbeck.teachers.connect import BACKENDS, connect
from limbeck.teachers.remote import RemoteTeacher
from limbeck.wire.score import WireError

if TYPE_CHECKING:
    from limbeck.models.causal_lm import CausalLM

SERVERS = ("sglang=", "vllm=", "limbeck=", "http://", "https://")
SERVER_GRID = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
SERVER_ROWS = 200
PROBE_TEXTS = 8
PADDING = 512  # output heads are padded to multiples of at most this


def ask_server(target: str, rows: Sequence[Row], temperature: float, student: CausalLM) -> Curves:
    """A server's scores, once its contract is proven at `temperature`.

    Raises `RecipeError` for an address that is none, `TeacherError` where it cannot be asked, and `ContractError`.
    """
    kind, _, urls = ("limbeck", "", target) if target.startswith("http") else target.partition("=")
    try:
        section = BACKENDS[kind].config(url=tuple(urls.split(",")), retry_seconds=5.0)
    except ValidationError as error:
        faults = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        raise RecipeError(f"--teacher {target}: {faults}") from None
    vocabulary = -(-student.head_rows // PADDING) * PADDING + PADDING
    texts = [tuple(int(i) for i in row.token_ids) for row in rows[:PROBE_TEXTS]]
    ids = continuations(max(texts, key=len), student.vocabulary)

    async def ask() -> Curves:
        client = connect("of the audit", section, vocabulary, student.vocabulary)
        try:
            proof = await prove_remote(client, texts, ids, temperature, student.tokenizer)
            return await served_curves(RemoteTeacher(client, proof), rows, temperature)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except WireError as error:
        raise TeacherError(f"{error}. Is the server up, and of kind {kind}?") from None


async def served_curves(teacher: RemoteTeacher, rows: Sequence[Row], temperature: float) -> Curves:
    """The curves of a server: its scores at each temperature at which it gives any. Raises `TeacherError`."""
    method = teacher.proof.method
    asked = sorted({temperature, *(SERVER_GRID if method in ("native", "rescale") else ())}, reverse=True)
    requests = [ScoreRequest(f"row {i}", r.token_ids, np.arange(len(r.token_ids)) > 0, 1.0) for i, r in enumerate(rows)]
    columns: list[Reals] = []
    betas: list[float] = []
    for tau in asked:
        try:
            scored = await _ask(teacher, requests, tau)
        except TeacherError:
            if tau == temperature:
                raise
            continue  # that far from temperature 1 too few of its log-probs are certain: a point fewer on the grid
        betas.append(1.0 / tau)
        columns.append(scored)
    logp_NG = np.stack(columns, axis=1)
    grid = np.asarray(betas)
    slope_NG = np.gradient(logp_NG, grid, axis=1) if len(grid) > 1 else np.zeros_like(logp_NG)
    lengths = [len(row.token_ids) for row in rows]
    first = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    zero, nan = np.zeros(len(logp_NG)), np.full(len(logp_NG), np.nan)
    known = np.where(np.isnan(logp_NG).any(axis=1), np.nan, zero)
    return Curves(grid, -logp_NG, -slope_NG, first, known, nan, nan, zero, zero, nan, served=True)


async def _ask(teacher: RemoteTeacher, requests: Sequence[ScoreRequest], tau: float) -> Reals:
    """[N] the scores at `tau`, a NaN for the last state of each row."""
    answers = await teacher.score([replace(request, temperature=tau) for request in requests])
    parts: list[Reals] = []
    for answer in answers:
        if isinstance(answer, Failure):
            raise TeacherError(answer.message)
        values: Any = getattr(answer, "logprobs_of_sampled", None)
        values = getattr(answer, "logprobs", None) if values is None else values
        parts.append(np.append(np.asarray(values, dtype=np.float64), np.nan))
    return np.concatenate(parts)
