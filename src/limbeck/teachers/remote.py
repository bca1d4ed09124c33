"""A teacher behind a URL: requests out, validated scores back, each stamped with the temperature it is at.

    client = connect(name, section, vocabulary, largest_k)       # asks, and knows nothing of methods
    proof = await prove_remote(client, texts, ids, 0.7)          # `contract/remote.py`: chooses and proves a method
    teacher = RemoteTeacher(client, proof)

    method     asked for                          becomes
    plain      as the server is                   scores at its own temperature, 1
    native     log-probs at T                     scores at the temperature the server reports
    baked      as the server is                   scores at the temperature its checkpoint was baked for
    rescale    top log-probs at temperature 1     scores at T with certified errors; uncertain positions masked
    hidden     final hidden states                the whole distribution, for whoever has the head; rounded ones with
                                                  the errors that the server measured, uncertain positions masked

No stamp is copied from the request: a teacher that cannot score at the request's temperature returns scores at
another one, and the learner refuses them. With the questions of every call, as the last of them, the proof's baseline
is asked of every replica again, and no score is returned before that is answered: a server that was restarted with
other weights, or at another temperature, stops the run by name. Calls that are under way at once share the next probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from limbeck.config.teacher import StatesTeacherConfig
from limbeck.config.values import HiddenDtype
from limbeck.errors import ContractError, TeacherError
from limbeck.records import (
    Failure,
    Floats,
    HiddenScores,
    ModelInfo,
    ProbeResult,
    ScoreRequest,
    Scores,
    TokenScores,
    TopKScores,
)
from limbeck.teachers.baseline import Baseline, check_drift
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.teachers.riding import RidingProbe
from limbeck.wire.score import Reply, WireError, top_k, wants_states

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.models.head import Head

Method: TypeAlias = Literal["plain", "native", "baked", "rescale", "hidden"]


@dataclass(frozen=True, slots=True)
class Proof:
    """What the contract found out about a server, and how its scores are obtained from now on."""

    method: Method
    info: ModelInfo  # `natural_temperature`: of a baked checkpoint T
    acknowledges: bool = False  # whether the server takes a scoring temperature and names it in its answer
    baseline: Baseline | None = None  # None: it is not asked again
    error_bound: float = 0.0  # nats, as measured where a method is exact but for rounding
    noise: float = 0.0  # nats, the most that one text scored twice differs
    heads: Mapping[str, Head] = field(default_factory=dict)  # by fingerprint: the one that belongs to hidden states
    results: tuple[ProbeResult, ...] = ()


@dataclass(frozen=True, eq=False)
class ReceivedStates:
    """`protocols.States` as they came off the wire."""

    values_Sd: Floats

    @property
    def shape(self) -> tuple[int, int]:
        count, width = self.values_Sd.shape
        return count, width

    def fetch(self) -> Tensor:
        import torch  # the other methods need none, and neither do those who only check a server

        return torch.from_numpy(self.values_Sd)


class RemoteTeacher:
    """Scores by the method of `proof`."""

    def __init__(self, client: RemoteClient, proof: Proof) -> None:
        self.name, self.info, self.client, self.proof = client.name, proof.info, client, proof
        self.heads = proof.heads
        baseline = proof.baseline
        self._riding = RidingProbe(None if baseline is None else partial(check_drift, client, baseline))

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        """Scores or a `Failure` for each request, in order.

        Raises `ContractError` where the server is not the one that was proven, or where its method has no answer
        for a support, and `TeacherError` where more positions are uncertain than `max_rescale_dropped` allows.
        """
        answers = await self._riding.along_with([self._score(request) for request in unit])
        self._require_valid(answers)
        return answers

    async def close(self) -> None:
        await self.client.close()

    def sent(self, request: ScoreRequest) -> ScoreRequest:
        """What the server is asked, for this request to be answered by the method."""
        method = self.proof.method
        if method == "hidden":  # more than any support
            rounded = self._hidden_dtype != "float32"  # then the temperature is that of the errors
            return replace(request, temperature=request.temperature if rounded else 1.0, support="full")
        if wants_states(request):
            raise ContractError(
                f"teacher {self.name} scores by the method {method!r}: no whole distribution. Give teacher.head for a "
                "server that sends hidden states, or set objective.support to a top K."
            )
        if method == "native":
            return request
        if method == "rescale":
            if isinstance(request.support, np.ndarray):
                raise ContractError(
                    f"teacher {self.name} is rescaled from its own top tokens, and cannot be asked about given ids. "
                    "Set objective.support to a number, or serve the teacher with `limbeck serve`."
                )
            section = self.client.section
            top = max(min(section.top_logprobs, self.client.largest_k), top_k(request))
            return replace(request, temperature=1.0, support=top)
        return replace(request, temperature=1.0)

    async def _score(self, request: ScoreRequest) -> Scores | Failure:
        if not request.scored.any():
            return TokenScores(self.name, request.temperature, np.zeros(0, np.float32))  # nothing was divided
        sent = self.sent(request)
        acknowledges = self.proof.method == "native" or self.proof.acknowledges
        try:
            return self._scores(await self.client.ask(sent, acknowledges=acknowledges), request)
        except WireError as error:
            if error.kind == "unsupported":  # it would be for every request
                raise ContractError(f"teacher {self.name}: {error}.") from error
            return self._failure(request, error.kind, error)
        except NotADistributionError as error:
            return self._failure(request, "not_a_distribution", error)

    def _failure(self, request: ScoreRequest, kind: str, error: Exception) -> Failure:
        return Failure(request.id, "score", kind, f"teacher {self.name}: {str(error).rstrip('.')}.")

    def _scores(self, reply: Reply, request: ScoreRequest) -> Scores:
        """A reply as scores, at the temperature of the server's weights times what it reported times what we did."""
        natural = self.info.natural_temperature
        if self.proof.method == "hidden":
            assert reply.hidden is not None
            ((head, rows),) = self.heads.items()
            width, expected = reply.hidden.shape[1], rows.weight_Vd.shape[1]
            if len(reply.hidden) and width != expected:
                raise ContractError(
                    f"teacher {self.name} answers with hidden states of width {width}, but teacher.head takes states "
                    f"of {expected}: another model is behind its address, or the head is another model's."
                )
            return self._rounded(reply, head, natural)
        temperature = natural * (1.0 if reply.temperature is None else reply.temperature)
        if self.proof.method == "rescale":
            return self._rescaled(reply, request, temperature)
        if reply.top_ids is None:
            return TokenScores(self.name, temperature, reply.logprobs, self.proof.error_bound)
        assert reply.top_logprobs is not None
        self._check_shared(reply, reply.top_ids.shape[1])
        return TopKScores(
            self.name, temperature, reply.top_ids, reply.top_logprobs, reply.logprobs, self.proof.error_bound
        )

    def _rounded(self, reply: Reply, head: str, natural: float) -> HiddenScores:
        """States, and where the server rounded them what it measured of that."""
        states_Sd, errors = reply.hidden, reply.errors
        assert states_Sd is not None
        if errors is None or reply.prefix_errors is None:
            return HiddenScores(self.name, ReceivedStates(states_Sd), head, natural)
        # By the error of the likely tokens, which follow from the prefix. A choice that looks at the error of the
        # sampled token is biased: see `_rescaled`.
        valid = reply.prefix_errors <= self.client.section.max_rescale_error
        states_Sd = np.where(valid[:, None], states_Sd, np.float32(np.nan))
        bound = float(errors[valid].max(initial=0.0))
        return HiddenScores(self.name, ReceivedStates(states_Sd), head, natural, bound, errors, valid)

    @property
    def _hidden_dtype(self) -> HiddenDtype:
        section = self.client.section
        return section.hidden_dtype if isinstance(section, StatesTeacherConfig) else "float32"

    def _rescaled(self, reply: Reply, request: ScoreRequest, temperature: float) -> Scores:
        assert reply.top_ids is not None
        assert reply.top_logprobs is not None
        inside_S = (reply.top_ids == request.scored_ids[:, None]).any(axis=1)
        vocabulary = self.client.vocabulary
        rescaled = rescale(reply.top_logprobs, reply.logprobs, inside_S, request.temperature, vocabulary)
        errors, temperature = rescaled.half_width_S, temperature * rescaled.temperature
        # By the width that the prefix has, not by the value's own: a choice that looks at the sampled token is biased.
        valid = rescaled.prefix_width_S <= self.client.section.max_rescale_error
        bound = float(errors[valid].max(initial=0.0))
        # NaN where invalid: whatever would use such a value by mistake stops at once.
        sampled_S = np.where(valid, rescaled.sampled_S, np.float32(np.nan))
        k = top_k(request)
        if not k:
            return TokenScores(self.name, temperature, sampled_S, bound, errors, valid)
        self._check_shared(reply, k)
        tops_SK = np.where(valid[:, None], rescaled.top_SK[:, :k], np.float32(np.nan))
        return TopKScores(self.name, temperature, reply.top_ids[:, :k], tops_SK, sampled_S, bound, errors, valid)

    def _check_shared(self, reply: Reply, k: int) -> None:
        assert reply.top_ids is not None
        highest = int(reply.top_ids[:, :k].max(initial=-1))
        if self.client.counted and highest >= self.client.largest_k:
            raise ContractError(
                f"teacher {self.name} has token {highest} among its top {k}, but the student's head has only "
                f"{self.client.largest_k} rows: they have different tokenizers, or different padding. Lower "
                "objective.support, or resize the student's head."
            )

    def _require_valid(self, answers: Sequence[Scores | Failure]) -> None:
        masks = [a.valid_mask for a in answers if not isinstance(a, Failure) and a.valid_mask is not None]
        total, dropped = sum(len(mask) for mask in masks), sum(int((~mask).sum()) for mask in masks)
        section = self.client.section
        if dropped > section.max_rescale_dropped * total:
            raise TeacherError(
                f"teacher {self.name}: {dropped} of {total} positions are less certain than max_rescale_error = "
                f"{section.max_rescale_error} nats, more than max_rescale_dropped = {section.max_rescale_dropped}. "
                f"Nothing was updated. {self._remedy()}"
            )

    def _remedy(self) -> str:
        """What to do about positions that are too uncertain."""
        if self.proof.method == "hidden":
            finer = "" if self._hidden_dtype == "bfloat16" else "'bfloat16' or "
            return (
                f"Their hidden states were rounded to hidden_dtype = {self._hidden_dtype!r}: set it to "
                f"{finer}'float32', serve the model in bfloat16 (then bfloat16 rounds nothing), or raise "
                "max_rescale_error."
            )
        return (
            f"Raise top_logprobs (now {self.client.section.top_logprobs}), serve a checkpoint of `limbeck bake`, or "
            "use `limbeck serve`."
        )
