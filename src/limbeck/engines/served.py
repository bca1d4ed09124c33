"""Engines `sglang` and `vllm`: a server samples, with the learner's weights and nothing else.

    load      push the weights; score a fixed text on both sides; the first time, prove the log-probs
    sample    one request a response, tokens in and tokens out; then check that the server still holds the weights

A server that dies is waited for. One that comes back holds the weights it was started with: all of its samples
are thrown away, the weights are pushed again and the unit is sampled anew.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import numpy as np

from limbeck.engines.weight_check import WeightSyncCheck, mean_abs_diff
from limbeck.engines.weights_folder import WeightsFolder
from limbeck.errors import EngineError, RecipeError
from limbeck.protocols import Policy
from limbeck.records import (
    Failure,
    Floats,
    Key,
    ProbeResult,
    Sampled,
    SampleRequest,
    Sampling,
    ScoreRequest,
    TokenScores,
    request_of,
)
from limbeck.reports import WeightTransfer
from limbeck.wire.http import Pool
from limbeck.wire.sample import SampleReply
from limbeck.wire.score import AWAY, Reply, WireError

T = TypeVar("T")

RESTARTS = 3  # of the server while one unit is sampled
REPEATS = 4  # of the fixed text at the start: one by one, then all at once
PROBES, PROBE_PROMPT, PROBE_TOKENS = 8, 8, 16  # responses whose log-probs are compared with the learner's
FULL, HALVES = "float32", ("bfloat16", "float16")  # dtypes that weights are written in


class ServerAwayError(EngineError):
    """The server does not answer, or is busy: waiting may help, and another server would."""


class Server(Protocol):
    """What an engine needs of a server, each kind in its own words."""

    kind: str
    remedy: str  # where weights do not arrive

    async def ask(
        self, pool: Pool, request: ScoreRequest, url: str | None = None, *, acknowledges: bool = False
    ) -> Reply: ...

    async def sample(self, pool: Pool, request: SampleRequest, vocabulary: int) -> SampleReply: ...

    async def push(self, pool: Pool, policy: Policy, label: str, dtype: str, weights: WeightsFolder) -> int:
        """Give the server the policy's weights under the name `label`; the bytes that were written or sent for it."""
        ...


class ServedEngine:
    """Samples from `server`, asked through `pool`.

    `text` is a fixed text as tokens, `sampling` the run's, `vocabulary` what student and teacher share, `weights` a
    place for weights that the server sees under the same path. The policy is kept until the next `load`: after a
    restart of the server its weights are pushed again.

    Raises `EngineError` where the server cannot be had or does not hold what it was given (`ServerAwayError` where it
    does not answer), and `RecipeError` for stop ids that are not in the vocabulary.
    """

    batches_turns: Literal[True] = True

    def __init__(
        self, server: Server, pool: Pool, weights: WeightsFolder, text: Sequence[int], sampling: Sampling,
        vocabulary: int, tolerance: float, max_rows: int | None = None,
    ) -> None:  # fmt: skip
        _check_stop_ids(sampling, vocabulary)
        self.server, self.pool, self.weights, self.vocabulary = server, pool, weights, vocabulary
        self.max_rows = max_rows  # of a unit; the server makes batches of its own
        self.text = request_of(text, 1, 1.0, id="the fixed text")  # at 1, where every server scores
        self.sampling = replace(sampling, top_p=1.0, top_k=0, min_p=0.0)
        self.check = WeightSyncCheck(f"engine {server.kind} at {pool.urls[0]}", tolerance, server.remedy)
        self.run, self.label = uuid.uuid4().hex[:8], ""
        self.pushes = 0  # of weights: what was sampled before the last one counts for nothing
        self._pushing = asyncio.Lock()
        self.policy: Policy | None = None
        self.dtype: str | None = None  # that weights are written in: what the server holds them in, once it is known
        self.transfer = WeightTransfer()  # of the last load
        self.proven = False
        self.logprobs_at_T = False  # whether the server's log-probs are those of the distribution it samples from
        self.student_top = 0  # of the student's most likely ids that each sampled token will be asked for with
        self.results: list[ProbeResult] = []

    async def load(self, policy: Policy) -> None:
        """Push the weights and make sure of them."""
        async with self._pushing:
            self.policy, self.transfer = policy, WeightTransfer()
            if self.proven:
                await self._push()
                return
            self.results, self.dtype = [], None
            distance = await self._push(measure_noise=True)
            measured, expected = f"{distance:.1e} nats a token off", f"at most {self.check.tolerance}"
            self.results.append(ProbeResult("engine: weights", measured, expected))
            self.dtype = await self._find_dtype(distance)
            await self._prove_logprobs()
            self.proven = True

    async def restore(self) -> None:
        """Push the weights again where the server no longer holds them. Raises `ServerAwayError`."""
        async with self._pushing:
            if not self.check.is_unchanged(await self._theirs()):
                self.check.forget_movement()
                await self._push()

    async def close(self) -> None:
        self.policy = None
        self.weights.close()
        await self.pool.close()

    async def sample(self, unit: Sequence[SampleRequest]) -> list[Sampled | Failure]:
        """See `protocols.Engine`. Several units may be sampled at the same time.

        What vLLM samples follows from the seed of a request; what SGLang samples does only where the server was
        started with `--enable-deterministic-inference`.
        """
        assert self.policy is not None
        for request in unit:
            _check_stop_ids(request.sampling, self.vocabulary)
        for _ in range(RESTARTS + 1):
            pushes = self.pushes
            replies = await asyncio.gather(*(self._one(request) for request in unit))
            unchanged = await self._weights_unchanged(replies)
            async with self._pushing:
                if unchanged and pushes == self.pushes:
                    return await self._with_logprobs(unit, replies)
                if pushes == self.pushes:  # else another unit has done it
                    self.check.forget_movement()
                    await self._push()
        raise EngineError(
            f"{self.check.name} lost the weights of update {self.policy.version} {RESTARTS + 1} times while one step "
            "was sampled: it restarts again and again, or another run pushes its weights to it. Look at its log."
        )

    # --- sampling -------------------------------------------------------------------------------------

    async def _one(self, request: SampleRequest) -> SampleReply | Failure:
        try:
            return await self.server.sample(self.pool, request, self.vocabulary)
        except WireError as error:
            return Failure(request.key.prompt_id, "sample", error.kind, f"{self.check.name}: {error}")

    async def _weights_unchanged(self, replies: Sequence[SampleReply | Failure]) -> bool:
        """Whether all were sampled with the weights that were pushed."""
        versions = {reply.version for reply in replies if isinstance(reply, SampleReply)}
        return versions <= {None, self.label} and self.check.is_unchanged(await self._theirs())

    async def _with_logprobs(
        self, unit: Sequence[SampleRequest], replies: Sequence[SampleReply | Failure]
    ) -> list[Sampled | Failure]:
        """With log-probs in the whole distribution at T: the server's where that is proven, else recomputed."""
        assert self.policy is not None
        answers: list[Sampled | Failure] = [
            reply
            if isinstance(reply, Failure)
            else Sampled(reply.token_ids, reply.logprobs, reply.finish, self.policy.version, reply.top_ids)
            for reply in replies
        ]
        unproven = {
            i: _question(request, answer)
            for i, (request, answer) in enumerate(zip(unit, answers, strict=True))
            if isinstance(answer, Sampled) and not (self.logprobs_at_T and _untruncated(request.sampling))
        }
        for i, ours in zip(unproven, await self._ours(list(unproven.values())), strict=True):
            answer = answers[i]
            assert isinstance(answer, Sampled)
            answers[i] = ours if isinstance(ours, Failure) else replace(answer, logprobs=ours)
        return answers

    async def _ours(self, requests: Sequence[ScoreRequest]) -> list[Floats | Failure]:
        """[S] log-probs by the learner. Raises `EngineError` where it answers something else than was asked."""
        assert self.policy is not None
        if not requests:
            return []
        found: list[Floats | Failure] = []
        for request, scores in zip(requests, await self.policy.score(requests), strict=True):
            if isinstance(scores, Failure):
                found.append(replace(scores, id=request.id, stage="sample"))
            elif isinstance(scores, TokenScores) and scores.temperature == request.temperature:
                found.append(scores.logprobs)
            else:
                raise EngineError(
                    f"the learner's policy answered a request for log-probs of sampled tokens at temperature "
                    f"{request.temperature:g} with {type(scores).__name__} at temperature "
                    f"{getattr(scores, 'temperature', 'unknown')}. Its `score` must return TokenScores at the "
                    "request's temperature."
                )
        return found

    # --- weights --------------------------------------------------------------------------------------

    async def _push(self, measure_noise: bool = False) -> float:
        """Nats a token between the server and the learner afterwards."""
        policy = self.policy
        assert policy is not None
        await self._send(self.dtype or _exact_dtype(policy))
        if measure_noise:
            noise = self.check.measure_noise_floor([await self._theirs(), *await self._theirs_together()])
            self.results.append(
                ProbeResult("engine: noise", f"{noise:.1e} nats a token", "the same text, the same answer")
            )
        (ours,) = await self._ours([self.text])
        if isinstance(ours, Failure):
            raise EngineError(f"the learner could not score the fixed text of the weight check: {ours.message}")
        return self.check.check_update(policy.version, ours, await self._theirs())

    async def _send(self, dtype: str) -> None:
        policy = self.policy
        assert policy is not None
        label, start = f"limbeck-{self.run}-{policy.version}", time.perf_counter()
        try:
            size = await self.server.push(self.pool, policy, label, dtype, self.weights)
        except WireError as error:
            raise _error(
                error,
                f"{self.check.name} did not take the weights of update {policy.version}: {error}. {self.check.remedy}",
            ) from error
        before, seconds = self.transfer, time.perf_counter() - start
        self.transfer = WeightTransfer(before.bytes + size, before.seconds + seconds)
        self.label, self.pushes = label, self.pushes + 1

    async def _find_dtype(self, distance: float) -> str:
        """The dtype that the server holds weights in.

        Weights that were rounded before change nothing for a server that rounds them itself, and for no other.
        """
        assert self.policy is not None
        exact = _exact_dtype(self.policy)
        if exact != FULL or distance <= self.check.resolution:
            return exact
        for half in HALVES:
            await self._send(half)
            if self.check.is_unchanged(await self._theirs()):
                self.results.append(ProbeResult("engine: dtype", half, "that weights are written in: the server's own"))
                return half
        await self._push()
        return exact

    async def _theirs(self) -> Floats:
        """[n] the server's log-probs of the fixed text."""
        try:
            return (await self.server.ask(self.pool, self.text)).logprobs
        except WireError as error:
            raise _error(error, f"the weights of {self.check.name} cannot be checked: {error}.") from error

    async def _theirs_together(self) -> list[Floats]:
        return list(await asyncio.gather(*(self._theirs() for _ in range(REPEATS))))

    async def _prove_logprobs(self) -> None:
        """Are the log-probs of sampled tokens at the temperature they are sampled at? Sets `logprobs_at_T`."""
        temperature, tolerance = self.sampling.temperature, self.check.tolerance
        short = replace(self.sampling, max_tokens=min(PROBE_TOKENS, self.sampling.max_tokens))
        prompt = self.text.token_ids[:PROBE_PROMPT]
        top = self.student_top
        unit = [SampleRequest(Key("probe", sample=number), prompt, short, top) for number in range(PROBES)]
        answers = await asyncio.gather(*(self._one(request) for request in unit))
        if top and (failed := next((a for a in answers if isinstance(a, Failure)), None)):
            raise EngineError(
                f"{failed.message.rstrip('.')}. objective.k = {top} asks for so many top log-probs of each sampled "
                f"token: start vLLM with --max-logprobs {top} (it gives 20 by itself), or lower objective.k."
            )
        replies = [_unwrap(reply) for reply in answers]
        questions = [_question(request, reply) for request, reply in zip(unit, replies, strict=True)]
        at_one = [replace(question, temperature=1.0) for question in questions]
        ours = [_unwrap(logprobs) for logprobs in await self._ours([*questions, *at_one])]
        theirs = np.concatenate([reply.logprobs for reply in replies])
        distance = mean_abs_diff(theirs, np.concatenate(ours[:PROBES]))
        distance_at_one = mean_abs_diff(theirs, np.concatenate(ours[PROBES:]))
        self.logprobs_at_T = distance <= min(distance_at_one, tolerance)
        if not self.logprobs_at_T and not distance_at_one <= tolerance:
            raise EngineError(
                f"{self.check.name}: its log-probs of sampled tokens are {distance:.3g} nats a token away from the "
                f"learner's at temperature {temperature}, and {distance_at_one:.3g} at temperature 1 (expected at most "
                f"engine.tolerance = {tolerance}), though it scores a fixed text as the learner does. Look for a logit "
                "processor, a penalty or a grammar among its options."
            )
        whose = "the server's" if self.logprobs_at_T else "recomputed by the learner: the server's are at temperature 1"
        measured = (
            f"{distance:.1e} nats a token off at temperature {temperature:g}, {distance_at_one:.1e} at 1: {whose}"
        )
        self.results.append(ProbeResult("engine: log-probs", measured, f"at temperature {temperature:g}"))


def _exact_dtype(policy: Policy) -> str:
    """The smallest dtype that the learner's weights are written in without rounding. Merging adapters makes others."""
    return policy.info.dtype if policy.adapter is None and policy.info.dtype in HALVES else FULL


def _error(error: WireError, message: str) -> EngineError:
    return ServerAwayError(message) if error.kind in AWAY else EngineError(message)


def _question(request: SampleRequest, reply: SampleReply | Sampled) -> ScoreRequest:
    """What log-probs the response has at the temperature it was sampled at."""
    ids = np.concatenate([request.token_ids, reply.token_ids])
    return request_of(ids, len(request.token_ids), request.sampling.temperature, id=request.key.prompt_id)


def _untruncated(sampling: Sampling) -> bool:
    """Whether every token can be sampled: of truncated and greedy sampling, each server reports something else."""
    return not sampling.truncated and not sampling.greedy


def _unwrap(answer: T | Failure) -> T:
    """Raises `EngineError` for a failure."""
    if isinstance(answer, Failure):
        raise EngineError(f"{answer.message}.")
    return answer


def _check_stop_ids(sampling: Sampling, vocabulary: int) -> None:
    """Raises `RecipeError` for ids that are not tokens: no response would end with one, and some servers die of it."""
    outside = [i for i in sampling.stop_ids if not 0 <= i < vocabulary]
    if outside:
        raise RecipeError(
            f"stop ids {outside} are not in the vocabulary of {vocabulary} that student and teacher share, expected 0 "
            f"to {vocabulary - 1}. Correct rollout.stop_ids, or eos_token_id in the student's generation_config.json."
        )
