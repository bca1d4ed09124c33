"""The contract with a teacher behind a URL: probes, then the first method that proves itself.

    identity       which model each replica serves by its own account; replicas score one text alike
    tokenizer      probe strings split the same way by the server and by the student's tokenizer
    alignment      at temperature 1: the score of a token depends on the token, and not on what follows it
    normalisation  the top log-probs sum to at most 1, and leave a tail that fits below them
    noise          the same text alone and among others, again and again
    temperature    each method in turn, with why it was not taken; see DESIGN section 3
    baseline       a fixed text, asked again during the run

Nothing is assumed of the server but what it answers, and neither client nor server is changed by being asked: what was
found out is the `Proof`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.contract.answers import Heads, logprobs_of_sampled
from limbeck.contract.bake_probe import FILE, ProbeFile, read_probe_file
from limbeck.contract.natural import natural_temperature_of, refuse_baked
from limbeck.contract.probes import Text, alignment, ratio
from limbeck.contract.tokenizers import PROBE_TEXTS
from limbeck.errors import ContractError, LimbeckError, TeacherError
from limbeck.records import Failure, ModelInfo, ProbeResult, ScoreRequest, Support, request_of
from limbeck.teachers.baseline import record_baseline
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.remote import Method, Proof, RemoteTeacher
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.wire.score import AWAY, Reply, WireError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.head import Head

PROBE_LENGTH = 64  # tokens of a prompt used as probe
TOP = 20
MAX_NOISE = 0.05  # nats: noise beyond this makes every probe meaningless
HEAD_TOLERANCE = 5e-3  # nats between a server's log-prob and that of its hidden state under the head here

REMEDIES = """Remedies, any of them:
  serve the model with `limbeck serve`
  `limbeck bake MODEL --temperature T OUT`, serve OUT and set teacher.baked
  raise teacher.top_logprobs
  set rollout.temperature = 1"""


class _Refused(LimbeckError):  # noqa: N818 (a result, caught here)
    """Why one method cannot be taken."""


async def prove_remote(
    client: RemoteClient,
    texts: Sequence[Text],
    ids: Sequence[int],
    temperature: float,
    tokenizer: PreTrainedTokenizerBase | None = None,
    head: Head | None = None,
    support: Support = "sampled",
) -> Proof:
    """Run every probe and choose the method that scores at `temperature`.

    `texts` are prompts as tokens, `ids` some different tokens, `support` what training will ask for, `head` the
    teacher's own, where its whole distribution is wanted.

    Raises `ContractError`, with the results so far, for the first probe that fails, and `TeacherError` for a server
    that cannot be asked.
    """
    heads = {} if head is None else {head.fingerprint(): head}
    probes = _Probes(client, [tuple(text[:PROBE_LENGTH]) for text in texts], list(ids), temperature, support, heads)
    steps: dict[str, Callable[[], Awaitable[list[ProbeResult]]]] = {
        "identity": probes.identity,
        "tokenizer": partial(probes.tokenizer, tokenizer),
        "alignment": probes.alignment,
        "normalisation": probes.normalisation,
        "noise": probes.noise,
        "temperature": probes.temperature,
        "baseline": probes.baseline,
    }
    results: list[ProbeResult] = []
    for name, step in steps.items():
        try:
            results += await step()
        except (LimbeckError, WireError) as error:
            raise _with_results(client, name, error, results) from error
    assert probes.found is not None
    return replace(probes.found, noise=probes.noise_floor, results=tuple(results))


def _with_results(
    client: RemoteClient, probe: str, error: LimbeckError | WireError, before: Sequence[ProbeResult]
) -> LimbeckError:
    """The error with the results up to and including the one that failed."""
    if isinstance(error, TeacherError):
        return error
    tried = error.verdicts if isinstance(error, ContractError) else ()
    message = str(error) if isinstance(error, LimbeckError) else f"teacher {client.name}: {error}"
    return ContractError(message, [*before, *(tried or [ProbeResult(probe, message, "", ok=False)])])


@dataclass(eq=False)
class _Probes:
    """One proof under way: what a probe finds out, the next ones use."""

    client: RemoteClient
    texts: list[tuple[int, ...]]
    ids: list[int]
    t: float
    support: Support
    heads: Heads

    def __post_init__(self) -> None:
        self.prefix = max(self.texts, key=len)
        self.names: dict[str, str] = {}  # of the served models, by URL
        self.acknowledges = self.client.dialect.acknowledges
        self.noise_floor = 0.0
        self.found: Proof | None = None

    async def identity(self) -> list[ProbeResult]:
        names = self.names = {url: await self.client.identity(url) for url in self.client.pool.urls}
        shown = "; ".join(f"{url}: {name}" for url, name in names.items())
        if not self.acknowledges:
            self.acknowledges = await self._acknowledges()
        if len(names) > 1:  # first of all: replicas that differ would look like any other fault
            await record_baseline(self.client, self._at_one(self.prefix), self.acknowledges)
        return [ProbeResult("identity", shown, "one model behind every URL")]

    async def _acknowledges(self) -> bool:
        """Whether the server takes a scoring temperature: then temperature 1 is asked for by name from now on.

        One that was started at another temperature would otherwise answer at its own.
        """
        try:
            await self.client.ask(self._at_one(self.prefix), acknowledges=True)
        except WireError as error:
            if error.kind in AWAY:
                raise
            return False  # it does not know the field; whatever else is wrong shows in the next probe
        return True

    async def tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> list[ProbeResult]:
        if tokenizer is None:
            return []
        for text in PROBE_TEXTS:
            try:
                theirs = await self.client.tokenize(text)
            except WireError as error:
                if error.kind == "refused":
                    return [
                        ProbeResult("tokenizer", "the server has no route for it", "echoed ids are compared instead")
                    ]
                raise
            ours = list(tokenizer(text).input_ids)
            if theirs != ours:
                raise ContractError(
                    f"teacher {self.client.name} splits {text!r} into {theirs[:12]}, the student's tokenizer into "
                    f"{ours[:12]}. On-policy distillation compares them token by token: choose models of one tokenizer "
                    "family."
                )
        return [ProbeResult("tokenizer", f"{len(PROBE_TEXTS)} strings split alike", "the student's token ids")]

    async def alignment(self) -> list[ProbeResult]:
        """Of the sampled tokens alone: top tokens that contradict them would hide by how much they are shifted."""
        return [await alignment(self._teacher("plain"), self.prefix, self.ids, 1.0)]

    async def normalisation(self) -> list[ProbeResult]:
        k = min(TOP, self.client.largest_k)
        lows = []
        for request, reply in await self._ask_texts(k):
            assert reply.top_logprobs is not None
            try:
                inside = _inside(request, reply)
                rescale(reply.top_logprobs, reply.logprobs, inside, 1.0, self.client.vocabulary, rounding=1e-3)
            except NotADistributionError as error:
                raise ContractError(
                    f"teacher {self.client.name}: {error}. It sends log-probs that were cut or changed: switch off "
                    "logprob processing on the server."
                ) from None
            lows.append(np.exp(reply.top_logprobs.astype(np.float64)).sum(axis=1).min(initial=1.0))
        return [
            ProbeResult("normalisation", f"the top {k} hold {min(lows):.3f} or more", "at most 1, a tail that fits")
        ]

    async def noise(self) -> list[ProbeResult]:
        request = self._at_one(self.prefix)
        alone = [await self._ask(request) for _ in range(3)]
        others = [self._at_one(text) for text in self.texts[:7]]
        together = await asyncio.gather(*(self._ask(r) for r in [request, *others, request]))
        runs = np.stack([r.logprobs for r in [*alone, together[0], together[-1]]]).astype(np.float64)
        difference = np.abs(runs - runs[0])
        self.noise_floor = float(difference.max())
        if self.noise_floor > MAX_NOISE:
            raise ContractError(
                f"teacher {self.client.name}: one text scored five times differs by up to {difference.max():.3g} nats "
                f"(mean {difference.mean():.3g}; expected at most {MAX_NOISE}). Use a deterministic mode of the "
                "server, a wider dtype, or replicas of one model."
            )
        measured = f"max {difference.max():.1e}, mean {difference.mean():.1e} nats"
        return [ProbeResult("noise", measured, f"at most {MAX_NOISE}")]

    async def temperature(self) -> list[ProbeResult]:
        """The first method that proves itself. Raises `ContractError` naming each and why not."""
        results: list[ProbeResult] = []
        for method in self._candidates():
            try:
                result, self.found = await self._try(method)
            except (_Refused, ContractError, WireError, NotADistributionError) as error:
                results.append(ProbeResult(f"method {method}", str(error).rstrip("."), "", ok=False, remedy=REMEDIES))
                continue
            # What was tried on the way is reported, but is no failure of the teacher.
            return [*map(_passed_over, results), result]
        reasons = "\n".join(f"  {result.probe}: {result.measured}" for result in results)
        where = f"teacher {self.client.name} ({', '.join(self.client.pool.urls)})"
        raise ContractError(f"{where} cannot be scored at temperature {self.t}:\n{reasons}\n{REMEDIES}", results)

    def _candidates(self) -> tuple[Method, ...]:
        wanted = self.client.section.temperature_method
        if self.heads and wanted in ("auto", "hidden"):
            return ("hidden",)
        if wanted != "auto":
            return (wanted,)
        if self.t == 1 and not self.acknowledges:
            return ("baked", "plain") if self._probe_file() else ("plain",)
        return ("native", "baked", "rescale")

    async def _try(self, method: Method) -> tuple[ProbeResult, Proof]:
        """Raises `_Refused`, `ContractError`, `WireError` or `NotADistributionError` where it does not prove itself."""
        if method == "baked":
            return await self._baked()
        probe = self._probe_file()
        if probe is not None and probe.temperature != 1:
            raise _Refused(f"the server holds a checkpoint baked for temperature {probe.temperature}, not one at 1")
        if method == "rescale":
            return await self._rescale()
        if method == "hidden":
            return await self._hidden()
        teacher = self._teacher(method)
        result = await ratio(teacher, self.prefix, self.ids, self.t)
        return ProbeResult(f"method {method}", result.measured, result.expected), teacher.proof

    async def _baked(self) -> tuple[ProbeResult, Proof]:
        probe = self._probe_file()
        if probe is None:
            raise _Refused("teacher.baked names no probe file, and the server's model folder has none")
        if probe.temperature != self.t:
            raise _Refused(f"the checkpoint was baked for temperature {probe.temperature}, not {self.t}")
        worst, total, count = 0.0, 0.0, 0
        for row in probe.sequences:
            reply = await self._ask(request_of(row.ids, row.start, 1.0))
            difference = np.abs(reply.logprobs.astype(np.float64) - np.array(row.logprobs))
            worst, total = max(worst, float(difference.max())), total + float(difference.sum())
            count += len(difference)
        limit = self.client.section.max_rescale_error
        if not total / count <= limit:
            raise _Refused(
                f"the server is {total / count:.3g} nats a token away from the probe file (max {worst:.3g}; expected "
                f"at most {limit}): it holds another checkpoint, or rounds the baked tensor (serve it in float32)"
            )
        measured = f"mean {total / count:.1e}, max {worst:.1e} nats off"
        proof = self._teacher("baked", probe.temperature).proof
        return ProbeResult("method baked", measured, f"mean at most {limit}"), replace(proof, error_bound=worst)

    async def _rescale(self) -> tuple[ProbeResult, Proof]:
        section, teacher = self.client.section, self._teacher("rescale")
        support = teacher.sent(self._request(self.prefix)).support
        widths = []
        for request, reply in await self._ask_texts(support):
            assert reply.top_logprobs is not None
            inside = _inside(request, reply)
            rescaled = rescale(reply.top_logprobs, reply.logprobs, inside, self.t, self.client.vocabulary)
            widths.append(rescaled.prefix_width_S)
        width = np.concatenate(widths)
        lost = float((width > section.max_rescale_error).mean())
        measured = f"top {support}: median {np.median(width):.1e}, max {width.max():.1e} nats; {lost:.0%} masked"
        if lost > section.max_rescale_dropped:
            raise _Refused(f"{measured} of probe positions, at most {section.max_rescale_dropped:.0%} may be")
        at_one = await ratio(self._teacher("plain"), self.prefix, self.ids, 1.0)
        result = ProbeResult(
            "method rescale", f"{measured}; {at_one.measured}", f"within {section.max_rescale_error} nats"
        )
        return result, teacher.proof

    async def _hidden(self) -> tuple[ProbeResult, Proof]:
        """States times the head that is here must give the log-probs the server gives itself."""
        folder = getattr(self.client.section, "head", None)
        if not self.heads or folder is None:
            raise _Refused("teacher.head names no model folder, so hidden states cannot be turned into log-probs")
        from limbeck.models.loading import resolve  # imports torch, as the head did

        refuse_baked("teacher.head", folder, natural_temperature_of(resolve(folder)))
        teacher, worst = self._teacher("hidden"), 0.0
        for text in self.texts[:4]:
            request = request_of(text, 1, 1.0, "full")
            (scores,) = await teacher.score([request])
            if isinstance(scores, Failure):
                raise _Refused(scores.message)
            theirs = (await self._ask(self._at_one(text))).logprobs
            worst = max(worst, float(np.abs(logprobs_of_sampled(scores, request, self.heads) - theirs).max()))
        if not worst <= HEAD_TOLERANCE:
            raise _Refused(
                f"the server's hidden states under the head of {folder!r} are {worst:.3g} nats away from its own "
                f"log-probs (at most {HEAD_TOLERANCE} expected): the folder holds another model, or the server rounds "
                "(serve it in float32)"
            )
        return ProbeResult("method hidden", f"{worst:.1e} nats from the server's own", f"at most {HEAD_TOLERANCE}"), (
            teacher.proof
        )

    async def baseline(self) -> list[ProbeResult]:
        assert self.found is not None
        teacher = RemoteTeacher(self.client, self.found)
        acknowledges = self.found.method == "native" or self.acknowledges
        baseline = await record_baseline(self.client, teacher.sent(self._request(self.prefix)), acknowledges)
        self.found = replace(self.found, baseline=baseline)
        count, every = len(baseline.request.scored_ids), self.client.section.probe_every
        measured = f"{count} tokens on {len(baseline.replies)} replicas"
        return [ProbeResult("baseline", measured, f"the same every {every} steps")]

    def _probe_file(self) -> ProbeFile | None:
        """Of `teacher.baked`, else of the folder that a server on this machine says it serves."""
        if self.client.section.baked is not None:
            return read_probe_file(Path(self.client.section.baked))
        for name in self.names.values():
            for part in name.split():
                if (Path(part) / FILE).is_file():
                    return read_probe_file(Path(part))
        return None

    def _teacher(self, method: Method, natural_temperature: float = 1.0) -> RemoteTeacher:
        """The teacher that training would have if this method were taken."""
        client = self.client
        info = ModelInfo(
            next(iter(self.names.values()), client.name),
            min(client.vocabulary, client.largest_k),
            dtype="unknown",
            natural_temperature=natural_temperature,
        )
        return RemoteTeacher(client, Proof(method, info, self.acknowledges, heads=self.heads))

    def _request(self, text: Text) -> ScoreRequest:
        """As training would ask."""
        return request_of(text, 1, self.t, self.support, "probe")

    def _at_one(self, text: Text, support: Support = "sampled") -> ScoreRequest:
        return request_of(text, 1, 1.0, support, "probe")

    async def _ask(self, request: ScoreRequest) -> Reply:
        return await self.client.ask(request, acknowledges=self.acknowledges)

    async def _ask_texts(self, support: Support) -> list[tuple[ScoreRequest, Reply]]:
        requests = [self._at_one(text, support) for text in self.texts]
        return list(zip(requests, await asyncio.gather(*map(self._ask, requests)), strict=True))


def _inside(request: ScoreRequest, reply: Reply) -> np.ndarray:
    """[S] whether the sampled token is among the top tokens."""
    assert reply.top_ids is not None
    inside: np.ndarray = (reply.top_ids == request.scored_ids[:, None]).any(axis=1)
    return inside


def _passed_over(result: ProbeResult) -> ProbeResult:
    return ProbeResult(result.probe, f"not taken: {result.measured}", result.expected)
