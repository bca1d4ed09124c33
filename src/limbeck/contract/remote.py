"""The contract with a teacher behind a URL: probes, then the first method that proves itself.

    identity       which model each replica serves by its own account; replicas score one text alike
    tokenizer      probe strings split the same way by the server and by the student's tokenizer
    alignment      at temperature 1: the score of a token depends on the token, and not on what follows it
    normalisation  the top log-probs sum to at most 1, and leave a tail that fits below them
    noise          the same text alone and among others, again and again
    temperature    each method in turn, with why it was not taken; see DESIGN section 3
    given ids      where training asks about ids of its own: each is answered, in its own place
    baseline       a fixed text, asked again during the run
    binding        what ties each answer to its request and to the weights

Nothing is assumed of the server but what it answers, and neither client nor server is changed by being asked: what was
found out is the `Proof`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from limbeck.contract.given_ids import given_ids
from limbeck.contract.methods import ProofState, choose_method, inside_top
from limbeck.contract.probes import Text, alignment
from limbeck.contract.tokenizers import PROBE_TEXTS
from limbeck.errors import ContractError, LimbeckError, TeacherError
from limbeck.records import ProbeResult, Support
from limbeck.teachers.baseline import record_baseline
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.remote import Proof, RemoteTeacher
from limbeck.teachers.rescale import NotADistributionError, rescale
from limbeck.wire.score import AWAY, WireError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.head import Head

PROBE_LENGTH = 64  # tokens of a prompt used as probe
TOP = 20
MAX_NOISE = 0.05  # nats: noise beyond this makes every probe meaningless


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
    state = ProofState(client, [tuple(text[:PROBE_LENGTH]) for text in texts], list(ids), temperature, support, heads)
    steps: dict[str, Callable[[], Awaitable[list[ProbeResult]]]] = {
        "identity": partial(_identity, state),
        "tokenizer": partial(_tokenizer, state, tokenizer),
        "alignment": partial(_alignment, state),
        "normalisation": partial(_normalisation, state),
        "noise": partial(_noise, state),
        "temperature": partial(choose_method, state),
        "given ids": partial(_given_ids, state),
        "baseline": partial(_baseline, state),
        "binding": partial(_binding, state),
    }
    results: list[ProbeResult] = []
    for name, step in steps.items():
        try:
            results += await step()
        except (LimbeckError, WireError) as error:
            raise _with_results(client, name, error, results) from error
    assert state.found is not None
    return replace(state.found, noise=state.noise_floor, results=tuple(results))


def _with_results(
    client: RemoteClient, probe: str, error: LimbeckError | WireError, before: Sequence[ProbeResult]
) -> LimbeckError:
    """The error with the results up to and including the one that failed."""
    if isinstance(error, TeacherError):
        return error
    tried = error.results if isinstance(error, ContractError) else ()
    message = str(error) if isinstance(error, LimbeckError) else f"teacher {client.name}: {error}"
    return ContractError(message, [*before, *(tried or [ProbeResult(probe, message, "", ok=False)])])


async def _identity(state: ProofState) -> list[ProbeResult]:
    names = state.names = {url: await state.client.identity(url) for url in state.client.pool.urls}
    shown = "; ".join(f"{url}: {name}" for url, name in names.items())
    if not state.acknowledges:
        state.acknowledges = await _acknowledges(state)
    if len(names) > 1:  # first of all: replicas that differ would look like any other fault
        await record_baseline(state.client, state.at_one(state.prefix), state.acknowledges)
    return [ProbeResult("identity", shown, "one model behind every URL")]


async def _acknowledges(state: ProofState) -> bool:
    """Whether the server takes a scoring temperature: then temperature 1 is asked for by name from now on.

    One that was started at another temperature would otherwise answer at its own.
    """
    try:
        await state.client.ask(state.at_one(state.prefix), acknowledges=True)
    except WireError as error:
        if error.kind in AWAY:
            raise
        return False  # it does not know the field; whatever else is wrong shows in the next probe
    return True


async def _tokenizer(state: ProofState, tokenizer: PreTrainedTokenizerBase | None) -> list[ProbeResult]:
    if tokenizer is None:
        return []
    for text in PROBE_TEXTS:
        try:
            theirs = await state.client.tokenize(text)
        except WireError as error:
            if error.kind == "refused":
                return [ProbeResult("tokenizer", "the server has no route for it", "echoed ids are compared instead")]
            raise
        ours = list(tokenizer(text).input_ids)
        if theirs != ours:
            raise ContractError(
                f"teacher {state.client.name} splits {text!r} into {theirs[:12]}, the student's tokenizer into "
                f"{ours[:12]}. On-policy distillation compares them token by token: choose models of one tokenizer "
                "family."
            )
    return [ProbeResult("tokenizer", f"{len(PROBE_TEXTS)} strings split alike", "the student's token ids")]


async def _alignment(state: ProofState) -> list[ProbeResult]:
    """Of the sampled tokens alone: top tokens that contradict them would hide by how much they are shifted."""
    return [await alignment(state.teacher("plain"), state.prefix, state.ids, 1.0)]


async def _normalisation(state: ProofState) -> list[ProbeResult]:
    k = min(TOP, state.client.largest_k)
    lows = []
    for request, reply in await state.ask_texts(k):
        assert reply.top_logprobs is not None
        try:
            inside = inside_top(request, reply)
            rescale(reply.top_logprobs, reply.logprobs, inside, 1.0, state.client.vocabulary, rounding=1e-3)
        except NotADistributionError as error:
            raise ContractError(
                f"teacher {state.client.name}: {error}. It sends log-probs that were cut or changed: switch off "
                "logprob processing on the server."
            ) from None
        lows.append(np.exp(reply.top_logprobs.astype(np.float64)).sum(axis=1).min(initial=1.0))
    return [ProbeResult("normalisation", f"the top {k} hold {min(lows):.3f} or more", "at most 1, a tail that fits")]


async def _noise(state: ProofState) -> list[ProbeResult]:
    request = state.at_one(state.prefix)
    alone = [await state.ask(request) for _ in range(3)]
    others = [state.at_one(text) for text in state.texts[:7]]
    together = await asyncio.gather(*(state.ask(r) for r in [request, *others, request]))
    runs = np.stack([r.logprobs for r in [*alone, together[0], together[-1]]]).astype(np.float64)
    difference = np.abs(runs - runs[0])
    state.noise_floor = float(difference.max())
    if state.noise_floor > MAX_NOISE:
        raise ContractError(
            f"teacher {state.client.name}: one text scored five times differs by up to {difference.max():.3g} nats "
            f"(mean {difference.mean():.3g}; expected at most {MAX_NOISE}). Use a deterministic mode of the "
            "server, a wider dtype, or replicas of one model."
        )
    measured = f"max {difference.max():.1e}, mean {difference.mean():.1e} nats"
    return [ProbeResult("noise", measured, f"at most {MAX_NOISE}")]


async def _given_ids(state: ProofState) -> list[ProbeResult]:
    if not isinstance(state.support, np.ndarray):
        return []
    assert state.found is not None
    teacher = RemoteTeacher(state.client, state.found)
    noise = state.noise_floor
    return [await given_ids(teacher, state.prefix, state.ids, state.t, state.heads, state.support, noise)]


async def _baseline(state: ProofState) -> list[ProbeResult]:
    assert state.found is not None
    teacher = RemoteTeacher(state.client, state.found)
    acknowledges = state.found.method == "native" or state.acknowledges
    baseline = await record_baseline(state.client, teacher.sent(state.request(state.prefix)), acknowledges)
    state.found = replace(state.found, baseline=baseline)
    count, every = len(baseline.request.scored_ids), state.client.section.probe_every
    measured = f"{count} tokens on {len(baseline.replies)} replicas"
    return [ProbeResult("baseline", measured, f"the same every {every} steps")]


async def _binding(state: ProofState) -> list[ProbeResult]:
    """What the server has shown by now, and must go on showing. Nothing is refused here."""
    known = list(state.client.pool.known.values())
    if all(one.binds for one in known):
        return [
            ProbeResult("binding", f"digests; weights {known[0].weights}", "each answer to its request and weights")
        ]
    echoes = set.intersection(*(one.echoes for one in known))
    measured = " and ".join(sorted(echoes)) or "the response's token ids"
    safe = all(url.startswith("https:") for url in state.client.pool.urls)
    return [ProbeResult("binding", f"{measured} repeated", "over https" if safe else "no digests: use https")]
