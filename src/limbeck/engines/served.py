"""Engines `sglang` and `vllm`: a server samples, with the learner's weights and nothing else.

    load      push the weights; score a fixed text on both sides; the first time, prove the log-probs
    sample    one request a response, tokens in and tokens out; then look whether the server is still the same

A server that dies is waited for. One that comes back holds the weights it was started with: its samples
are thrown away, whatever they say, the weights are pushed again and the step is sampled anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np

from limbeck.engines.weight_check import Held, apart
from limbeck.errors import EngineError
from limbeck.protocols import Policy
from limbeck.records import Failure, Floats, Prompt, Rollout, Sampling
from limbeck.wire.http import Pool
from limbeck.wire.sample import Sampled, SampleRequest
from limbeck.wire.score import Question, Reply, WireError

RESTARTS = 3  # of the server during one step's sampling
REPEATS = 4  # of the fixed text at the start: alone, then all at once
PROBES, PROBE_TOKENS = 8, 16  # responses whose log-probs are compared with the learner's at the start


class Server(Protocol):
    """What an engine needs of a server, each kind in its own words."""

    kind: str
    remedy: str  # where weights do not arrive

    async def ask(self, pool: Pool, question: Question, url: str | None = None) -> Reply: ...

    async def sample(self, pool: Pool, request: SampleRequest) -> Sampled: ...

    async def push(self, pool: Pool, policy: Policy, label: str, folder: Path) -> None:
        """Give the server the policy's weights under the name `label`, by way of `folder` where it reads them."""
        ...


class ServedEngine:
    """Samples from `server`, asked through `pool`.

    `text` is a fixed text as tokens, `sampling` the run's, `vocabulary` what student and teacher share,
    `folder` a place for weights that the server sees under the same path. Raises `EngineError` where the
    server cannot be had or does not hold what it was given.
    """

    def __init__(
        self, server: Server, pool: Pool, folder: Path, text: Sequence[int], sampling: Sampling, vocabulary: int,
        tolerance: float,
    ) -> None:  # fmt: skip
        self.server, self.pool, self.folder, self.vocabulary = server, pool, folder, vocabulary
        self.question = Question(np.array(text, dtype=np.int64), 1)
        self.sampling = replace(sampling, top_p=1.0, top_k=0, min_p=0.0)
        self.held = Held(f"engine {server.kind} at {pool.urls[0]}", tolerance, server.remedy)
        self.run, self.label = uuid.uuid4().hex[:8], ""
        self.policy: Policy | None = None
        self.tempered = False  # whether the server's log-probs are those of the distribution it draws from
        self.proofs: list[tuple[str, str, str]] = []  # probe, measured, expected

    async def load(self, policy: Policy) -> None:
        """Push the weights and make sure of them."""
        first, self.policy = self.policy is None, policy
        await self._push(first)
        if first:
            await self._prove_logprobs(policy)

    async def close(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)  # a copy of weights that the run keeps elsewhere
        await self.pool.close()

    async def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, samples_per_prompt: int = 1
    ) -> list[Rollout | Failure]:
        """See `protocols.Engine`. The dice of a response are vLLM's own, by seed; of SGLang's only where it is
        started with `--enable-deterministic-inference`."""
        assert self.policy is not None
        wanted = [(prompt, number) for prompt in prompts for number in range(samples_per_prompt)]
        for _ in range(RESTARTS + 1):
            found = await asyncio.gather(*(self._one(prompt, number, sampling) for prompt, number in wanted))
            if await self._still_there(found):
                return self._with_logprobs(found)
            self.held.forget()
            await self._push()
        raise EngineError(
            f"{self.held.name} lost the weights of update {self.policy.version} {RESTARTS + 1} times while one step "
            "was sampled: it restarts again and again, or another run pushes its weights to it. Look at its log."
        )

    # --- sampling -------------------------------------------------------------------------------------

    async def _one(self, prompt: Prompt, number: int, sampling: Sampling) -> tuple[Rollout | Failure, str | None]:
        """A response, and the label of the weights it was sampled with where the server says."""
        assert self.policy is not None
        request = SampleRequest(prompt.token_ids, sampling, _seed(sampling, prompt, number), self.vocabulary)
        try:
            sampled = await self.server.sample(self.pool, request)
        except WireError as error:
            message = f"{self.held.name}: {error}"
            return Failure(prompt.id, "sample", error.kind, message), None
        prefix, count = len(prompt.token_ids), len(sampled.token_ids)
        rollout = Rollout(
            prompt=prompt,
            sample=number,
            token_ids=np.concatenate([np.asarray(prompt.token_ids, dtype=np.int64), sampled.token_ids]),
            trained=np.arange(prefix + count) >= prefix,
            behaviour_logprobs=sampled.logprobs,
            policy_version=self.policy.version,
            finish=sampled.finish,
            sampling=sampling,
        )
        return rollout, sampled.version

    async def _still_there(self, found: Sequence[tuple[Rollout | Failure, str | None]]) -> bool:
        """Whether all were sampled with the weights that were pushed."""
        if any(version not in (None, self.label) for _, version in found):
            return False
        return self.held.still(await self._score())

    def _with_logprobs(self, found: Sequence[tuple[Rollout | Failure, str | None]]) -> list[Rollout | Failure]:
        """With log mu of the distribution that was drawn from: the server's where that is proven, else recomputed."""
        assert self.policy is not None
        answers = [answer for answer, _ in found]
        doubtful = [
            i
            for i, answer in enumerate(answers)
            if isinstance(answer, Rollout) and not (self.tempered and _plain(answer.sampling))
        ]
        rollouts = [answer for i in doubtful if isinstance(answer := answers[i], Rollout)]
        for i, rollout, logprobs in zip(doubtful, rollouts, self.policy.logprobs(rollouts), strict=True):
            answers[i] = replace(rollout, behaviour_logprobs=logprobs)
        return answers

    # --- weights --------------------------------------------------------------------------------------

    async def _push(self, first: bool = False) -> None:
        policy = self.policy
        assert policy is not None
        label = f"limbeck-{self.run}-{policy.version}"
        folder = self.folder / label
        try:
            await self.server.push(self.pool, policy, label, folder)
            if first:
                noise = self.held.measure_noise_floor([await self._score(), *await self._score_together()])
                self.proofs.append(("engine: noise", f"{noise:.1e} nats a token", "the same text, the same answer"))
        except WireError as error:
            raise EngineError(
                f"{self.held.name} did not take the weights of update {policy.version}: {error}. {self.held.remedy}"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # it has read them
        self.label = label
        (ours,) = policy.logprobs([self._as_rollout()])
        distance = self.held.pushed(policy.version, ours, await self._score())
        if first:
            self.proofs.append(
                ("engine: weights", f"{distance:.1e} nats a token off", f"at most {self.held.tolerance}")
            )

    async def _score(self) -> Floats:
        try:
            return (await self.server.ask(self.pool, self.question)).logprobs
        except WireError as error:
            raise EngineError(f"{self.held.name} cannot be held to its weights: {error}.") from error

    async def _score_together(self) -> list[Floats]:
        return list(await asyncio.gather(*(self._score() for _ in range(REPEATS))))

    def _as_rollout(self) -> Rollout:
        """The fixed text as if sampled at temperature 1, which is what stock servers score at."""
        ids = self.question.token_ids
        return Rollout(
            prompt=Prompt("fixed", (int(ids[0]),)),
            sample=0,
            token_ids=ids,
            trained=np.arange(len(ids)) >= 1,
            behaviour_logprobs=np.zeros(len(ids) - 1, np.float32),
            policy_version=0,
            finish="length",
            sampling=Sampling(1.0, max_tokens=len(ids)),
        )

    async def _prove_logprobs(self, policy: Policy) -> None:
        """Are the log-probs of sampled tokens at the temperature they are sampled at? Sets `tempered`."""
        temperature = self.sampling.temperature
        short = replace(self.sampling, max_tokens=min(PROBE_TOKENS, self.sampling.max_tokens))
        prompt = Prompt("probe", tuple(self.question.token_ids[:8].tolist()))
        found = await asyncio.gather(*(self._one(prompt, number, short) for number in range(PROBES)))
        failures = [answer for answer, _ in found if isinstance(answer, Failure)]
        if failures:
            raise EngineError(f"{failures[0].message}.")
        rollouts = [answer for answer, _ in found if isinstance(answer, Rollout)]
        theirs = np.concatenate([rollout.behaviour_logprobs for rollout in rollouts])
        at_one = [replace(rollout, sampling=replace(short, temperature=1.0)) for rollout in rollouts]
        off = apart(theirs, np.concatenate(policy.logprobs(rollouts)))
        off_raw = apart(theirs, np.concatenate(policy.logprobs(at_one)))
        self.tempered = off <= min(off_raw, self.held.tolerance)
        if not self.tempered and not off_raw <= self.held.tolerance:
            raise EngineError(
                f"{self.held.name}: its log-probs of sampled tokens are {off:.3g} nats a token away from the learner's "
                f"at temperature {temperature}, and {off_raw:.3g} at temperature 1 (expected at most engine.tolerance "
                f"= {self.held.tolerance}), though it scores a fixed text as the learner does. Look for a logit "
                "processor, a penalty or a grammar among its options."
            )
        whose = "the server's" if self.tempered else "recomputed by the learner: the server's are at temperature 1"
        self.proofs.append(
            (
                "engine: log-probs",
                f"{off:.1e} nats a token off at temperature {temperature:g}, {off_raw:.1e} at 1: {whose}",
                f"at temperature {temperature:g}",
            )
        )


def _plain(sampling: Sampling) -> bool:
    """A distribution whose log-probs were proven: servers differ in whether they renormalise a cut one."""
    return not sampling.truncated and not sampling.greedy


def _seed(sampling: Sampling, prompt: Prompt, number: int) -> int:
    """31 bits, which every server takes."""
    digest = hashlib.blake2b(f"{sampling.seed}\x1f{prompt.id}\x1f{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
