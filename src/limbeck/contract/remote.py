"""The contract with a teacher behind a URL: probes, then the first method that proves itself.

    identity       which model each replica says it serves; replicas score one text alike
    tokenizer      probe strings split the same way by the server and by the student's tokenizer
    alignment      at temperature 1: the score of a token sees the token, and not what follows it
    normalisation  the top log-probs sum to at most 1, and leave a tail that fits below them
    noise          the same text alone and among others, again and again
    temperature    each method in turn, with why it was not taken; see DESIGN section 3
    anchor         a fixed text, asked again during the run

Nothing is assumed of the server but what it answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from limbeck.contract.bake_probe import FILE, ProbeFile, read_probe_file
from limbeck.contract.probes import PROBE_TEXTS, alignment, logprobs_of_sampled, probe_rollout, ratio
from limbeck.errors import ContractError, LimbeckError, TeacherError
from limbeck.records import Failure, ProbeResult
from limbeck.teachers.remote import MAX_NOISE, Method, RemoteTeacher
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.wire.score import AWAY, Question, Reply, WireError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE_LENGTH = 64  # tokens of a prompt used as probe
TOP = 20
MIN_NOISE = 5e-5  # nats: what a float32 server may be off from itself
NOISE_MARGIN = 4.0  # times the noise that was measured
HEAD_TOLERANCE = 5e-3  # nats between a server's log-prob and that of its hidden state under the head here

REMEDIES = """Remedies, any of them:
  serve the model with `limbeck serve`
  `limbeck bake MODEL --temperature T OUT`, serve OUT and set teacher.baked
  raise teacher.top_logprobs
  set rollout.temperature = 1"""


class _Refused(LimbeckError):  # noqa: N818 (a result, caught here)
    """Why one method cannot be taken."""


async def prove_remote(
    teacher: RemoteTeacher,
    texts: Sequence[tuple[int, ...]],
    ids: Sequence[int],
    temperature: float,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[ProbeResult]:
    """Run every probe and set `teacher.method`. `texts` are prompts as tokens, `ids` some different tokens.

    Raises `ContractError`, with the verdicts so far, for the first probe that fails.
    """
    trusted = not teacher.pool.doubtful
    try:
        verdicts = await _prove(teacher, texts, ids, temperature, tokenizer)
    except LimbeckError:
        if not (trusted and teacher.pool.doubtful):
            raise
        return await _prove(teacher, texts, ids, temperature, tokenizer)
    if trusted and teacher.pool.doubtful:  # the wire damaged one answer; others may have passed for whole
        verdicts = await _prove(teacher, texts, ids, temperature, tokenizer)
    return verdicts


async def _prove(
    teacher: RemoteTeacher,
    texts: Sequence[tuple[int, ...]],
    ids: Sequence[int],
    temperature: float,
    tokenizer: PreTrainedTokenizerBase | None,
) -> list[ProbeResult]:
    probes = _Probes(teacher, [text[:PROBE_LENGTH] for text in texts], list(ids), temperature)
    verdicts: list[ProbeResult] = []
    steps: dict[str, Callable[[], Awaitable[list[ProbeResult]]]] = {
        "identity": probes.identity,
        "tokenizer": partial(probes.tokenizer, tokenizer),
        "alignment": probes.alignment,
        "normalisation": probes.normalisation,
        "noise": probes.noise,
        "temperature": probes.temperature,
        "anchor": probes.anchor,
    }
    for name, step in steps.items():
        try:
            verdicts += await step()
        except (LimbeckError, WireError) as error:
            tried = error.verdicts if isinstance(error, ContractError) else ()
            failed = ProbeResult(name, str(error), "", ok=False)
            kind = TeacherError if isinstance(error, TeacherError) else ContractError
            message = str(error) if isinstance(error, LimbeckError) else f"teacher {teacher.name}: {error}"
            raise _with(kind(message), [*verdicts, *(tried or [failed])]) from error
    return verdicts


def _with(error: LimbeckError, verdicts: Sequence[ProbeResult]) -> LimbeckError:
    if isinstance(error, ContractError):
        error.verdicts = tuple(verdicts)
    return error


class _Probes:
    def __init__(
        self, teacher: RemoteTeacher, texts: list[tuple[int, ...]], ids: list[int], temperature: float
    ) -> None:
        self.teacher, self.texts, self.ids, self.t = teacher, texts, ids, temperature
        self.prefix = max(texts, key=len)
        self.names: dict[str, str] = {}  # of the served models, by URL

    async def identity(self) -> list[ProbeResult]:
        pool = self.teacher.pool
        names = self.names = {url: await self.teacher.identity(url) for url in pool.urls}
        shown = "; ".join(f"{url}: {name}" for url, name in names.items())
        if not self.teacher.acknowledges:
            self.teacher.acknowledges = await self._acknowledges()
        if len(names) > 1:  # first of all: replicas that differ would look like any other fault
            await self.teacher.record_baseline(self._question(self.prefix, 0))
            self.teacher.anchor = None
        return [ProbeResult("identity", shown, "one model behind every URL")]

    async def _acknowledges(self) -> bool:
        """Whether the server takes a scoring temperature: then temperature 1 is asked for by name from now on.

        One that was started at another temperature would otherwise answer at its own.
        """
        try:
            await self.teacher.ask(Question(np.array(self.prefix), 1, 1.0))
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
                theirs = await self.teacher.dialect.tokenize(self.teacher.pool, text)
            except WireError as error:
                if error.kind == "refused":
                    return [
                        ProbeResult("tokenizer", "the server has no route for it", "echoed ids are compared instead")
                    ]
                raise
            ours = list(tokenizer(text).input_ids)
            if theirs != ours:  # or the answer was damaged
                theirs = await self.teacher.dialect.tokenize(self.teacher.pool, text)
            if theirs != ours:
                raise ContractError(
                    f"teacher {self.teacher.name} splits {text!r} into {theirs[:12]}, the student's tokenizer into "
                    f"{ours[:12]}. On-policy distillation compares them token by token: choose models of one tokenizer "
                    "family."
                )
        return [ProbeResult("tokenizer", f"{len(PROBE_TEXTS)} strings split alike", "the student's token ids")]

    async def alignment(self) -> list[ProbeResult]:
        """Of the sampled tokens alone: top tokens that contradict them would hide by how much they are shifted."""
        teacher = self.teacher
        support, teacher.method, teacher.support = teacher.support, "plain", 0
        try:
            return [await alignment(teacher, self.prefix, self.ids, 1.0)]
        finally:
            teacher.support = support

    async def normalisation(self) -> list[ProbeResult]:
        k = min(TOP, self.teacher.largest_k)
        lows = []
        for question, reply in await self._ask_texts(k):
            assert reply.top_logprobs is not None
            assert reply.top_ids is not None
            inside = (reply.top_ids == question.scored_ids[:, None]).any(axis=1)
            try:
                rescale(reply.top_logprobs, reply.logprobs, inside, 1.0, self.teacher.vocabulary, rounding=1e-3)
            except NotADistributionError as error:
                raise ContractError(
                    f"teacher {self.teacher.name}: {error}. It sends log-probs that were cut or changed: switch off "
                    "logprob processing on the server."
                ) from None
            lows.append(np.exp(reply.top_logprobs.astype(np.float64)).sum(axis=1).min(initial=1.0))
        return [
            ProbeResult("normalisation", f"the top {k} hold {min(lows):.3f} or more", "at most 1, a tail that fits")
        ]

    async def noise(self) -> list[ProbeResult]:
        question = self._question(self.prefix, 0)
        alone = [await self.teacher.ask(question) for _ in range(3)]
        others = [self._question(text, 0) for text in self.texts[:7]]
        together = await asyncio.gather(*(self.teacher.ask(q) for q in [question, *others, question]))
        runs = np.stack([r.logprobs for r in [*alone, together[0], together[-1]]]).astype(np.float64)
        apart = np.abs(runs - runs[0])
        if apart.max() > MAX_NOISE:
            raise ContractError(
                f"teacher {self.teacher.name}: one text scored five times differs by up to {apart.max():.3g} nats "
                f"(mean {apart.mean():.3g}; expected at most {MAX_NOISE}). Use a deterministic mode of the server, "
                "a wider dtype, or replicas of one model."
            )
        self.teacher.agreement = max(MIN_NOISE, NOISE_MARGIN * float(apart.max()))
        measured = f"max {apart.max():.1e}, mean {apart.mean():.1e} nats"
        return [ProbeResult("noise", measured, f"at most {MAX_NOISE}")]

    async def temperature(self) -> list[ProbeResult]:
        """The first method that proves itself. Raises `ContractError` naming each and why not."""
        teacher, verdicts = self.teacher, []
        for method in self._candidates():
            try:
                verdicts.append(await self._try(method))
            except (_Refused, ContractError, WireError, NotADistributionError) as error:
                verdicts.append(ProbeResult(f"method {method}", str(error), "", ok=False))
                continue
            # What was tried on the way is told, but is no failure of the teacher.
            return [*map(_passed_over, verdicts[:-1]), verdicts[-1]]
        reasons = "\n".join(f"  {v.probe}: {v.measured}" for v in verdicts)
        where = f"teacher {teacher.name} ({', '.join(teacher.pool.urls)})"
        raise ContractError(f"{where} cannot be scored at temperature {self.t}:\n{reasons}\n{REMEDIES}", verdicts)

    def _candidates(self) -> tuple[Method, ...]:
        teacher = self.teacher
        wanted = teacher.section.temperature_method
        if teacher.head is not None and wanted in ("auto", "hidden"):
            return ("hidden",)
        if wanted != "auto":
            return (wanted,)
        if self.t == 1 and not teacher.acknowledges:
            return ("baked", "plain") if self._probe_file() else ("plain",)
        return ("native", "baked", "rescale")

    async def _try(self, method: Method) -> ProbeResult:
        """Raises `_Refused`, `ContractError`, `WireError` or `NotADistributionError` where it does not prove itself."""
        self.teacher.method = method
        if method == "baked":
            return await self._baked()
        if method == "rescale":
            return await self._rescale()
        if method == "hidden":
            return await self._hidden()
        verdict = await ratio(self.teacher, self.prefix, self.ids, self.t)
        return ProbeResult(f"method {method}", verdict.measured, verdict.expected)

    async def _baked(self) -> ProbeResult:
        probe = self._probe_file()
        if probe is None:
            raise _Refused("teacher.baked names no probe file, and the server's model folder has none")
        if probe.temperature != self.t:
            raise _Refused(f"the checkpoint was baked for temperature {probe.temperature}, not {self.t}")
        worst, total, count = 0.0, 0.0, 0
        for row in probe.sequences:
            reply = await self.teacher.ask(Question(np.array(row.ids), row.start, self.teacher.temperature_one))
            apart = np.abs(reply.logprobs.astype(np.float64) - np.array(row.logprobs))
            worst, total, count = max(worst, float(apart.max())), total + float(apart.sum()), count + len(apart)
        limit = self.teacher.section.max_rescale_error
        if not total / count <= limit:
            raise _Refused(
                f"the server is {total / count:.3g} nats a token away from the probe file (max {worst:.3g}; expected "
                f"at most {limit}): it holds another checkpoint, or rounds the baked tensor (serve it in float32)"
            )
        self.teacher.error_bound = worst
        return ProbeResult(
            "method baked", f"mean {total / count:.1e}, max {worst:.1e} nats off", f"mean at most {limit}"
        )

    async def _rescale(self) -> ProbeResult:
        probe = self._probe_file()
        if probe is not None and probe.temperature != 1:
            raise _Refused(f"the server holds a checkpoint baked for temperature {probe.temperature}, not one at 1")
        section, teacher = self.teacher.section, self.teacher
        k = max(min(section.top_logprobs, teacher.largest_k), teacher.support)
        widths = []
        for question, reply in await self._ask_texts(k):
            assert reply.top_ids is not None
            assert reply.top_logprobs is not None
            inside = (reply.top_ids == question.scored_ids[:, None]).any(axis=1)
            widths.append(rescale(reply.top_logprobs, reply.logprobs, inside, self.t, teacher.vocabulary).half_width_S)
        width = np.concatenate(widths)
        lost = float((width > section.max_rescale_error).mean())
        measured = f"top {k}: median {np.median(width):.1e}, max {width.max():.1e} nats; {lost:.0%} left out"
        if lost > section.max_rescale_dropped:
            raise _Refused(f"{measured} of probe positions, at most {section.max_rescale_dropped:.0%} may be")
        at_one = await ratio(teacher, self.prefix, self.ids, 1.0)
        return ProbeResult(
            "method rescale", f"{measured}; {at_one.measured}", f"within {section.max_rescale_error} nats"
        )

    async def _hidden(self) -> ProbeResult:
        """States times the head that is here must give the log-probs the server gives itself."""
        if self.teacher.head is None:
            raise _Refused("teacher.head names no model folder, so hidden states cannot be turned into log-probs")
        apart = 0.0
        for text in self.texts[:4]:
            rollout = probe_rollout(text[:1], text[1:], 1.0)
            scores = (await self.teacher.score([rollout]))[0]
            if isinstance(scores, Failure):
                raise _Refused(scores.message)
            reply = await self.teacher.ask(self._question(text, 0))
            ours = np.array(logprobs_of_sampled(scores, rollout))
            apart = max(apart, float(np.abs(ours - reply.logprobs).max()))
        if not apart <= HEAD_TOLERANCE:
            raise _Refused(
                f"the server's hidden states under the head of {getattr(self.teacher.section, 'head', None)!r} are "
                f"{apart:.3g} nats away from its own log-probs (at most {HEAD_TOLERANCE} expected): the folder holds "
                "another model, or the server rounds (serve it in float32)"
            )
        return ProbeResult("method hidden", f"{apart:.1e} nats from the server's own", f"at most {HEAD_TOLERANCE}")

    async def anchor(self) -> list[ProbeResult]:
        anchor = await self.teacher.record_baseline(
            self.teacher.question(probe_rollout(self.prefix[:1], self.prefix[1:], self.t))
        )
        count = len(anchor.question.scored_ids)
        every = self.teacher.section.probe_every
        return [
            ProbeResult("anchor", f"{count} tokens on {len(anchor.replies)} replicas", f"the same every {every} steps")
        ]

    def _probe_file(self) -> ProbeFile | None:
        """Of `teacher.baked`, else of the folder a server on this machine says it serves."""
        if self.teacher.section.baked is not None:
            return read_probe_file(Path(self.teacher.section.baked))
        for name in self.names.values():
            for part in name.split():
                if (Path(part) / FILE).is_file():
                    return read_probe_file(Path(part))
        return None

    def _question(self, text: tuple[int, ...], top_k: int) -> Question:
        return Question(np.array(text), 1, self.teacher.temperature_one, top_k)

    async def _ask_texts(self, top_k: int) -> list[tuple[Question, Reply]]:
        questions = [self._question(text, top_k) for text in self.texts]
        return list(zip(questions, await asyncio.gather(*(self.teacher.ask(q) for q in questions)), strict=True))


def _passed_over(verdict: ProbeResult) -> ProbeResult:
    return ProbeResult(verdict.probe, f"not taken: {verdict.measured}", verdict.expected)
