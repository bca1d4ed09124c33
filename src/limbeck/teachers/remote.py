"""A teacher behind a URL: questions out, validated scores at the rollout temperature back.

    method     asked for                          becomes
    plain      as the server is, at T = 1         scores
    native     log-probs at T                     scores
    baked      as the server is: q_T by weights   scores
    rescale    top log-probs at temperature 1     scores with certified errors; unsure positions left out
    hidden     final hidden states                the whole distribution, through the head that is here

`contract` chooses and proves the method before `score` is ever used for training. Every `probe_every`
calls a fixed probe is asked again of every replica: a server that was restarted with other weights, or
at another temperature, stops the run by name.

JSON has no digest. Once an answer was found to be damaged on the way, all are asked for until two agree, those
of the step at hand included: damage that does not show costs time, as damage that does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from limbeck.config.teacher import RemoteTeacherConfig
from limbeck.errors import ContractError, RecipeError, TeacherError
from limbeck.records import Failure, HiddenScores, Mask, Rollout, TeacherScores, TokenScores, TopKScores
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.wire.agreement import confirmed
from limbeck.wire.dialects import Dialect
from limbeck.wire.http import Pool
from limbeck.wire.score import Question, Reply, WireError

if TYPE_CHECKING:
    from limbeck.models.head import Head

MAX_NOISE = 0.05  # nats: noise beyond this makes every probe meaningless
ANSWERS = 10  # to one question, at most, until two agree

Method: TypeAlias = Literal["plain", "native", "baked", "rescale", "hidden"]


@dataclass(frozen=True)
class Baseline:
    """A fixed question and what each replica answered at the start."""

    question: Question
    replies: dict[str, Reply]
    identities: dict[str, str]


class RemoteTeacher:
    """Asks `pool` in `dialect`. `support` is the objective's K; 0 is the sampled token alone.

    `vocabulary` is the number of tokens the server's distribution has, or more; `largest_k` that number, or
    less: a K above it kills some servers, and a token beyond it the student does not have.
    """

    def __init__(
        self,
        name: str,
        section: RemoteTeacherConfig,
        dialect: Dialect,
        pool: Pool,
        vocabulary: int,
        largest_k: int,
        support: int,
        head: Head | None = None,
    ) -> None:
        self.name, self.section, self.dialect, self.pool = name, section, dialect, pool
        self.vocabulary, self.largest_k, self.support, self.head = vocabulary, largest_k, support, head
        self.method: Method = "plain"
        self.anchor: Baseline | None = None
        self.acknowledges = dialect.exact  # whether the server is known to take a scoring temperature
        self.agreement = MAX_NOISE  # nats within which two answers are the same, until the noise is measured
        self.error_bound = 0.0  # nats, as measured by the contract where the method is exact but for rounding
        self.seconds: dict[str, float] = {}
        self._calls = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        """Scores or a `Failure` for each rollout, in order.

        Raises `ContractError` where the server is not the one that was proven, and `TeacherError` where
        more positions are uncertain than `max_rescale_dropped` allows.
        """
        self._calls += 1
        trusted = not self.pool.doubtful
        answers = await self._mark_all(rollouts)
        if trusted and self.pool.doubtful:  # what was damaged and did not show may be among them
            answers = await self._mark_all(rollouts)
        self._limit_left_out(answers)
        return answers

    async def close(self) -> None:
        await self.pool.close()

    async def ask(self, question: Question, url: str | None = None) -> Reply:
        """One answer, said twice where the wire is known to damage answers.

        Raises `WireError`; `RecipeError` for a K that some servers do not survive; `ContractError` for a token
        beyond `vocabulary`, on which every certificate rests.
        """
        if question.top_k > self.largest_k:
            raise RecipeError(
                f"teacher {self.name}: top {question.top_k} of a vocabulary of {self.largest_k}. Lower "
                "objective.support or teacher.top_logprobs."
            )
        reply = await self._undamaged(question, url)
        highest = -1 if reply.top_ids is None else int(reply.top_ids.max(initial=-1))
        if highest >= self.vocabulary:
            raise ContractError(
                f"teacher {self.name} answers with token {highest}, but its vocabulary is said to have "
                f"{self.vocabulary}. Set teacher.vocabulary to the rows of its output head, or more."
            )
        return reply

    async def _undamaged(self, question: Question, url: str | None) -> Reply:
        replies = [await self.dialect.ask(self.pool, question, url)]
        if not self.pool.doubtful:
            return replies[0]
        while len(replies) < ANSWERS:
            replies.append(await self.dialect.ask(self.pool, question, url))
            if (reply := confirmed(replies, self.agreement)) is not None:
                return reply
        raise WireError(
            "inconsistent",
            f"no two of {ANSWERS} answers to one question agree to {self.agreement:.1e} nats: the wire damages nearly "
            "all of them, or the server is noisier than it was when it was proven",
        )

    async def identity(self, url: str) -> str:
        """The model behind one replica, as two answers in a row have it: one may be damaged."""
        name = await self.dialect.identity(self.pool, url)
        for _ in range(ANSWERS):
            before, name = name, await self.dialect.identity(self.pool, url)
            if before == name:
                break
        return name

    def question(self, rollout: Rollout) -> Question:
        """What to ask about a rollout by the present method."""
        ids, start = rollout.token_ids, int(np.flatnonzero(rollout.trained)[0])
        temperature = rollout.sampling.temperature
        if self.method == "native":
            return Question(ids, start, temperature, self.support)
        if self.method == "hidden":  # the same at any temperature
            return Question(ids, start, self.temperature_one, hidden=True)
        if self.method == "rescale":
            top = max(min(self.section.top_logprobs, self.largest_k), self.support)
            return Question(ids, start, self.temperature_one, top)
        return Question(ids, start, self.temperature_one, self.support)

    @property
    def temperature_one(self) -> float | None:
        """How temperature 1 is asked for: by name where the server knows the field."""
        return 1.0 if self.acknowledges else None

    async def _mark_all(self, rollouts: Sequence[Rollout]) -> list[TeacherScores | Failure]:
        answers = list(await asyncio.gather(*(self._mark(rollout) for rollout in rollouts)))
        if self.anchor is not None and self._calls % self.section.probe_every == 0:
            await self.check_drift()  # after the answers: a server that changed under them is not trained on
        return answers

    async def _mark(self, rollout: Rollout) -> TeacherScores | Failure:
        temperature = rollout.sampling.temperature
        if not rollout.trained.any():
            return TokenScores(self.name, temperature, np.zeros(0, np.float32))
        try:
            try:
                return await self._scored(rollout)
            except (NotADistributionError, ContractError):
                if self.pool.doubtful:
                    raise
                self.pool.doubt(f"teacher {self.name}")  # damaged, or meant: two answers that agree will tell
                return await self._scored(rollout)
        except WireError as error:
            return self._failure(rollout, error.kind, error)
        except NotADistributionError as error:
            return self._failure(rollout, "not_a_distribution", error)

    async def _scored(self, rollout: Rollout) -> TeacherScores:
        question = self.question(rollout)
        reply = await self.ask(question)
        return self._scores(reply, rollout.trained[question.start :], rollout, rollout.sampling.temperature)

    def _failure(self, rollout: Rollout, kind: str, error: Exception) -> Failure:
        said = str(error).rstrip(".")
        return Failure(rollout.prompt.id, "score", kind, f"teacher {self.name}: {said}.")

    def _scores(self, reply: Reply, trained_n: Mask, rollout: Rollout, temperature: float) -> TeacherScores:
        """Only the trained positions of a reply, at temperature T."""
        if self.method == "hidden":
            import torch  # the other methods need none, and neither do those who only check a server

            assert reply.hidden is not None
            assert self.head is not None
            hidden_Sd = torch.from_numpy(reply.hidden[trained_n].copy()).to(self.head.weight_Vd.device)
            return HiddenScores(self.name, temperature, hidden_Sd, self.head)
        sampled_S = reply.logprobs[trained_n]
        ids_SK = None if reply.top_ids is None else reply.top_ids[trained_n]
        tops_SK = None if reply.top_logprobs is None else reply.top_logprobs[trained_n]
        errors, known = None, None
        if self.method == "rescale":
            assert ids_SK is not None
            assert tops_SK is not None
            inside_S = (ids_SK == rollout.response_ids[:, None]).any(axis=1)
            rescaled = rescale(tops_SK, sampled_S, inside_S, temperature, self.vocabulary)
            errors = rescaled.half_width_S
            known = errors <= self.section.max_rescale_error
            # NaN where unknown: whatever would use such a value by mistake stops at once.
            sampled_S = np.where(known, rescaled.sampled_S, np.float32(np.nan))
            tops_SK = np.where(known[:, None], rescaled.top_SK, np.float32(np.nan))
        bound = self.error_bound if errors is None or known is None else float(errors[known].max(initial=0.0))
        if not self.support:
            return TokenScores(self.name, temperature, sampled_S, bound, errors, known)
        assert ids_SK is not None
        assert tops_SK is not None
        k = self.support
        highest = int(ids_SK[:, :k].max(initial=-1))
        if highest >= self.largest_k:
            raise ContractError(
                f"teacher {self.name} has token {highest} among its top {k}, but the student's head has only "
                f"{self.largest_k} rows: they have different tokenizers, or different padding. Lower "
                "objective.support, or resize the student's head."
            )
        return TopKScores(self.name, temperature, ids_SK[:, :k], tops_SK[:, :k], sampled_S, bound, errors, known)

    def _limit_left_out(self, answers: Sequence[TeacherScores | Failure]) -> None:
        known = [a.known for a in answers if isinstance(a, TokenScores | TopKScores) and a.known is not None]
        total, left_out = sum(len(k) for k in known), sum(int((~k).sum()) for k in known)
        section = self.section
        if left_out > section.max_rescale_dropped * total:
            raise TeacherError(
                f"teacher {self.name}: {left_out} of {total} positions are known less well than "
                f"max_rescale_error = {section.max_rescale_error} nats, more than max_rescale_dropped = "
                f"{section.max_rescale_dropped}. Nothing was updated. Raise top_logprobs (now {section.top_logprobs}), "
                "serve a checkpoint of `limbeck bake`, or use `limbeck serve`."
            )

    async def record_baseline(self, question: Question) -> Baseline:
        """Ask every replica, and hold them to it from now on. Raises `ContractError` where they differ."""
        replies = {url: await self.ask(question, url) for url in self.pool.urls}
        identities = {url: await self.identity(url) for url in self.pool.urls}
        first = self.pool.urls[0]
        for url in self.pool.urls[1:]:
            apart = _apart(replies[first], replies[url])
            if apart > self.section.probe_tolerance:
                raise ContractError(
                    f"teacher {self.name}: replicas {first} ({identities[first]}) and {url} ({identities[url]}) differ "
                    f"by {apart:.3g} nats on one text, expected at most {self.section.probe_tolerance}. All URLs must "
                    "serve one model at one temperature."
                )
        self.anchor = Baseline(question, replies, identities)
        return self.anchor

    async def check_drift(self) -> None:
        """Raises `ContractError` where a replica is no longer the server that was proven.

        A replica that is away is passed over while another answers: it is asked again before it counts.
        """
        anchor = self.anchor
        assert anchor is not None
        results = await asyncio.gather(
            *(self._drift(anchor, url) for url in self.pool.urls), return_exceptions=len(self.pool.urls) > 1
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if not isinstance(error, WireError):
                raise error
        if errors and len(errors) == len(results):
            raise TeacherError(f"teacher {self.name}: no replica answers: {errors[0]}") from errors[0]

    async def _drift(self, anchor: Baseline, url: str) -> None:
        try:
            problem = await self._changed(anchor, url) and await self._changed(anchor, url)  # one answer may be damaged
        except WireError as error:
            if len(self.pool.urls) > 1:
                raise
            raise TeacherError(f"teacher {self.name} cannot be probed: {error}") from error
        if problem:
            raise ContractError(
                f"teacher {self.name} drifted: {url} {problem}. Nothing was updated in this step. Start the right "
                "server again, then the same command."
            )

    async def _changed(self, anchor: Baseline, url: str) -> str | None:
        """How a replica differs from the one that was proven."""
        identity = await self.identity(url)
        if identity != anchor.identities[url]:
            return f"serves {identity!r}, it was {anchor.identities[url]!r} when it was proven"
        apart = _apart(anchor.replies[url], await self.ask(anchor.question, url))
        if apart <= self.section.probe_tolerance:
            return None
        return (
            f"now scores a fixed text {apart:.3g} nats away from what it did when it was proven (at most "
            f"{self.section.probe_tolerance} expected): other weights, or another temperature"
        )


def _apart(a: Reply, b: Reply) -> float:
    """Nats (of hidden states: their own unit) between two replies to one question."""
    left, right = (a.logprobs, b.logprobs) if a.hidden is None or b.hidden is None else (a.hidden, b.hidden)
    return (
        float(np.abs(left.astype(np.float64) - right).max(initial=0.0)) if left.shape == right.shape else float("inf")
    )
