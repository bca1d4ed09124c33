"""How scores at T are obtained from a server: each method in turn, until one proves itself (`teachers/remote.py`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from limbeck.contract.answers import TOP, Answer, Asker, Heads, logprobs_of_sampled
from limbeck.contract.bake_probe import FILE, ProbeFile, read_probe_file
from limbeck.contract.causality import TOLERANCE, check_alike, check_causality, check_listed
from limbeck.contract.distribution import check_at_temperature
from limbeck.contract.length import Long, ask_long_again, check_places
from limbeck.contract.natural import natural_temperature_of, refuse_baked
from limbeck.contract.probes import AT_T_TOLERANCE, Text
from limbeck.contract.ratios import check_ratios, gaps_of
from limbeck.contract.texts import LENGTH, ProbeTexts
from limbeck.errors import ContractError, LimbeckError
from limbeck.records import (
    Failure,
    HiddenScores,
    Ints,
    Mask,
    ModelInfo,
    ProbeResult,
    ScoreRequest,
    Support,
    request_of,
)
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.remote import Method, Proof, RemoteTeacher
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.wire.score import Reply, WireError

HEAD_TOLERANCE = 5e-3  # nats between a server's log-prob and that of its hidden state under the head here

REMEDIES = """Remedies, any of them:
  serve the model with `limbeck serve`
  `limbeck bake MODEL --temperature T OUT`, serve OUT and set teacher.baked
  raise teacher.top_logprobs
  set rollout.temperature = 1"""


class _Refused(LimbeckError):  # noqa: N818 (a result, caught here)
    """Why one method cannot be taken."""


@dataclass(eq=False)
class ProofState:
    """One proof under way: what a probe finds out, the next ones use."""

    client: RemoteClient
    texts: list[tuple[int, ...]]
    ids: list[int]
    t: float
    support: Support
    heads: Heads
    tokens: int | None  # every id below it may be asked about
    longest: int | None  # tokens of the longest text that training will ask about

    def __post_init__(self) -> None:
        self.prefix = max(self.texts, key=len)
        self.names: dict[str, str] = {}  # of the served models, by URL
        self.acknowledges = self.client.dialect.acknowledges
        self.noise_floor = 0.0
        self.length = 0  # tokens of the longest text that the server took
        self.probe = ProbeTexts(self.texts, self.ids, self.tokens, LENGTH)
        self.plain: Answer | None = None  # to the probe's text at temperature 1, of its own tokens alone
        self.at_one: list[Answer] = []  # to the probe's text, then to its changed forms
        self.places: list[int] = []  # where each of those is changed
        self.uniform: list[Mask] = []  # [S] of each answer: which tokens were drawn alike from the vocabulary
        self.long: Long | None = None  # at temperature 1
        self.long_at_t: Long | None = None
        self.part: Answer | None = None  # as training asks, at temperature 1
        self.found: Proof | None = None

    @property
    def name(self) -> str:
        return self.client.name

    @property
    def real(self) -> list[Ints]:
        """Texts as training has them that say something: of two tokens or more, and as long as the server takes."""
        cut = [np.asarray(text[: self.length], dtype=np.int64) for text in self.texts]
        return [text for text in cut if len(text) > 1] or [self.probe.base]

    @property
    def k(self) -> int:
        """Tokens of a position that probes have listed."""
        return min(TOP, self.client.largest_k)

    @property
    def tolerance(self) -> float:
        """Nats by which a score may move that has no reason to."""
        return TOLERANCE + 4 * self.noise_floor

    def changed(self, answers: Sequence[Answer]) -> list[tuple[int, Answer]]:
        """With the place of each change; `answers` as `at_one`."""
        return list(zip(self.places, answers[1:], strict=True))

    def asker(self, method: Method = "plain") -> Asker:
        return Asker(self.teacher(method), self.heads)

    def probe_file(self) -> ProbeFile | None:
        """Of `teacher.baked`, else of the folder that a server on this machine names as its model."""
        if self.client.section.baked is not None:
            return read_probe_file(Path(self.client.section.baked))
        for name in self.names.values():
            for part in name.split():
                if os.path.isfile(Path(part) / FILE):
                    return read_probe_file(Path(part))
        return None

    def baked_for(self) -> float:
        """T of a checkpoint that `limbeck bake` wrote, where it is known that the server holds one; else 1."""
        if (probe := self.probe_file()) is not None:
            return probe.temperature
        folders = [part for name in self.names.values() for part in name.split()]
        return next((found for found in map(natural_temperature_of, folders) if found != 1), 1.0)

    def teacher(self, method: Method, natural_temperature: float = 1.0) -> RemoteTeacher:
        """The teacher that training would have if this method were taken."""
        client = self.client
        info = ModelInfo(
            next(iter(self.names.values()), client.name),
            min(client.vocabulary, client.largest_k),
            dtype="unknown",
            natural_temperature=natural_temperature,
        )
        return RemoteTeacher(client, Proof(method, info, self.acknowledges, heads=self.heads))

    def request(self, text: Text) -> ScoreRequest:
        """As training would ask."""
        return request_of(text, 1, self.t, self.support, "probe")

    def at(
        self, texts: Sequence[Text | Ints], temperature: float = 1.0, support: Support | None = None
    ) -> list[ScoreRequest]:
        """All of each text, with its most likely tokens."""
        return [request_of(t, 1, temperature, self.k if support is None else support, "probe") for t in texts]

    def as_training(self, temperature: float, support: Support | None = None) -> ScoreRequest:
        """The end of the probe's text alone, with as many tokens of a position as training asks for."""
        wanted = self.support if support is None else support
        listed: Support = wanted if isinstance(wanted, int) else "sampled"
        return request_of(self.probe.base, self.probe.start, temperature, listed, "probe")

    async def ask(self, request: ScoreRequest) -> Reply:
        return await self.client.ask(request, acknowledges=self.acknowledges)

    async def ask_texts(self, support: Support) -> list[tuple[ScoreRequest, Reply]]:
        requests = self.at(self.real, support=support)
        return list(zip(requests, await asyncio.gather(*map(self.ask, requests)), strict=True))


async def choose_method(state: ProofState) -> list[ProbeResult]:
    """The first method that proves itself. Raises `ContractError` naming each and why not."""
    results: list[ProbeResult] = []
    for method in _candidates(state):
        try:
            result, state.found = await _try(state, method)
        except (_Refused, ContractError, WireError, NotADistributionError) as error:
            results.append(ProbeResult(f"method {method}", str(error).rstrip("."), "", ok=False, remedy=REMEDIES))
            continue
        # What was tried on the way is reported, but is no failure of the teacher.
        return [*map(_passed_over, results), result]
    reasons = "\n".join(f"  {result.probe}: {result.measured}" for result in results)
    where = f"teacher {state.client.name} ({', '.join(state.client.pool.urls)})"
    raise ContractError(f"{where} cannot be scored at temperature {state.t}:\n{reasons}\n{REMEDIES}", results)


def _candidates(state: ProofState) -> tuple[Method, ...]:
    wanted = state.client.section.temperature_method
    if state.heads and wanted in ("auto", "hidden"):
        return ("hidden",)
    if wanted != "auto":
        return (wanted,)
    if state.t == 1 and not state.acknowledges:
        return ("baked", "plain") if state.probe_file() else ("plain",)
    return ("native", "baked", "rescale")


async def _try(state: ProofState, method: Method) -> tuple[ProbeResult, Proof]:
    """Raises `_Refused`, `ContractError`, `WireError` or `NotADistributionError` where it does not prove itself."""
    if method == "baked":
        return await _baked(state)
    if (baked_for := state.baked_for()) != 1:
        raise _Refused(f"the server holds a checkpoint baked for temperature {baked_for}, not one at 1")
    if method == "rescale":
        return await _rescale(state)
    if method == "hidden":
        return await _hidden(state)
    if method == "native":
        return await _native(state)
    return ProbeResult(f"method {method}", "asked as it is", "temperature 1"), state.teacher(method).proof


async def _native(state: ProofState) -> tuple[ProbeResult, Proof]:
    """All that was asked at temperature 1 again at T: causal, in the ratios of T, and normalised anew."""
    ask, name = state.asker("native"), state.name
    texts = [answer.request.token_ids for answer in state.at_one]
    (part,) = await ask([state.as_training(state.t)])  # alone: a server that knows no T refuses it
    at_t = await ask(state.at(texts, state.t))
    check_causality(name, at_t[0], state.changed(at_t), state.tolerance)
    check_listed(name, at_t[0], state.changed(at_t), state.tolerance)
    check_alike(name, at_t[0], part, state.tolerance)
    assert state.part is not None
    assert state.long is not None
    long = state.long_at_t = await ask_long_again(ask, state.long, state.t)
    check_places(name, long, state.tolerance)
    pairs = [*zip(state.at_one, at_t, strict=True), (state.long.base, long.base)]
    if part.top_SK is not None:
        pairs.append((state.part, part))
    result = check_ratios(name, gaps_of(pairs), state.t, state.noise_floor)
    certified = ""
    if state.t != 1:
        tolerance = AT_T_TOLERANCE + 4 * state.noise_floor
        certified = f"; {check_at_temperature(name, pairs, state.t, state.client.vocabulary, tolerance).measured}"
    return ProbeResult("method native", f"{result.measured}{certified}", result.expected), state.teacher("native").proof


async def _baked(state: ProofState) -> tuple[ProbeResult, Proof]:
    probe = state.probe_file()
    if probe is None:
        raise _Refused("teacher.baked names no probe file, and the server's model folder has none")
    if probe.temperature != state.t:
        raise _Refused(f"the checkpoint was baked for temperature {probe.temperature}, not {state.t}")
    worst, total, count = 0.0, 0.0, 0
    for row in probe.sequences:
        reply = await state.ask(request_of(row.ids, row.start, 1.0))
        difference = np.abs(reply.logprobs.astype(np.float64) - np.array(row.logprobs))
        worst, total = max(worst, float(difference.max())), total + float(difference.sum())
        count += len(difference)
    limit = state.client.section.max_rescale_error
    if not total / count <= limit:
        raise _Refused(
            f"the server is {total / count:.3g} nats a token away from the probe file (max {worst:.3g}; expected "
            f"at most {limit}): it holds another checkpoint, or rounds the baked tensor (serve it in float32)"
        )
    measured = f"mean {total / count:.1e}, max {worst:.1e} nats off"
    proof = state.teacher("baked", probe.temperature).proof
    return ProbeResult("method baked", measured, f"mean at most {limit}"), replace(proof, error_bound=worst)


async def _rescale(state: ProofState) -> tuple[ProbeResult, Proof]:
    section, teacher = state.client.section, state.teacher("rescale")
    support = teacher.sent(state.request(state.prefix)).support
    (part,) = await state.asker()([state.as_training(1.0, support)])
    check_alike(state.name, state.at_one[0], part, state.tolerance)
    widths = []
    for request, reply in await state.ask_texts(support):
        assert reply.top_logprobs is not None
        inside = inside_top(request, reply)
        rescaled = rescale(reply.top_logprobs, reply.logprobs, inside, state.t, state.client.vocabulary)
        widths.append(rescaled.prefix_width_S)
    width = np.concatenate(widths)
    lost = float((width > section.max_rescale_error).mean())
    measured = f"top {support}: median {np.median(width):.1e}, max {width.max():.1e} nats; {lost:.0%} masked"
    if lost > section.max_rescale_dropped:
        raise _Refused(f"{measured} of probe positions, at most {section.max_rescale_dropped:.0%} may be")
    result = ProbeResult("method rescale", measured, f"within {section.max_rescale_error} nats")
    return result, teacher.proof


async def _hidden(state: ProofState) -> tuple[ProbeResult, Proof]:
    """States times the head that is here must give the log-probs the server gives itself."""
    folder = getattr(state.client.section, "head", None)
    if not state.heads or folder is None:
        raise _Refused("teacher.head names no model folder, so hidden states cannot be turned into log-probs")
    from limbeck.models.loading import resolve  # imports torch, as the head did

    refuse_baked("teacher.head", folder, natural_temperature_of(resolve(folder)))
    teacher, worst = state.teacher("hidden"), 0.0
    for text in [*state.real[:3], state.probe.base]:
        request = request_of(text, 1, 1.0, "full")
        (scores,) = await teacher.score([request])
        if isinstance(scores, Failure):
            raise _Refused(scores.message)
        theirs = (await state.ask(request_of(text, 1, 1.0))).logprobs
        difference = np.abs(logprobs_of_sampled(scores, request, state.heads) - theirs)
        if isinstance(scores, HiddenScores) and scores.errors is not None:  # rounded: as far as the server says
            difference = np.maximum(difference - scores.errors, 0.0)[scores.valid_mask]
        worst = max(worst, float(difference.max(initial=0.0)))
    if not worst <= HEAD_TOLERANCE:
        raise _Refused(
            f"the server's hidden states under the head of {folder!r} are {worst:.3g} nats away from its own "
            f"log-probs (at most {HEAD_TOLERANCE} expected): the folder holds another model, or the server rounds "
            "(serve it in float32)"
        )
    return ProbeResult("method hidden", f"{worst:.1e} nats from the server's own", f"at most {HEAD_TOLERANCE}"), (
        teacher.proof
    )


def inside_top(request: ScoreRequest, reply: Reply) -> np.ndarray:
    """[S] whether the sampled token is among the top tokens."""
    assert reply.top_ids is not None
    inside: np.ndarray = (reply.top_ids == request.scored_ids[:, None]).any(axis=1)
    return inside


def _passed_over(result: ProbeResult) -> ProbeResult:
    return ProbeResult(result.probe, f"not taken: {result.measured}", result.expected)
