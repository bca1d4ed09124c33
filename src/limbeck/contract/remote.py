"""The contract with a teacher behind a URL: probes, then the first method that proves itself.

    identity       which model each replica serves by its own account; replicas score one text alike
    tokenizer      probe strings split the same way by the server and by the student's tokenizer
    noise          each of some texts alone and among the others
    alignment      at temperature 1: a score follows from what precedes the token, and from nothing after it
    normalisation  natural log-probs of a whole distribution, without floors
    start          nothing stands before a text that was not sent
    special tokens the model sees each of them
    spelling       the ids are scored, not their text
    length         every part of a long text is read
    temperature    each method in turn, with why it was not taken; see DESIGN section 3
    given ids      where training asks about ids of its own: each is answered, in its own place
    baseline       a fixed text, asked again with every step
    binding        what ties each answer to its request and to the weights

Nothing is assumed of the server but what it answers, and neither client nor server is changed by being asked: what was
found out is the `Proof`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from limbeck.contract.answers import PROBES, refusal, top_difference
from limbeck.contract.causality import check_alike, check_causality, check_listed
from limbeck.contract.context import check_first_token, check_special, check_spelling, check_start
from limbeck.contract.distribution import check_distribution, check_values
from limbeck.contract.fixed import check_held, first_request, fixed_request, fresh_of
from limbeck.contract.given_ids import given_ids
from limbeck.contract.length import ask_long, check_beginning, check_long
from limbeck.contract.methods import ProofState, choose_method
from limbeck.contract.probes import Text
from limbeck.contract.texts import LENGTH, SHORTEST, ProbeTexts
from limbeck.contract.tokenizers import PROBE_TEXTS, spellings
from limbeck.errors import ContractError, LimbeckError, TeacherError
from limbeck.models.text import highest_id
from limbeck.records import ProbeResult, Support, request_of
from limbeck.teachers.baseline import record_baseline
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.remote import Proof, RemoteTeacher
from limbeck.wire.score import AWAY, WireError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from limbeck.models.head import Head

PROBE_LENGTH = 64  # tokens of a prompt used as probe
LONGEST = 1024  # tokens of a text, where nobody says how long they become
DRAWN = 256  # random tokens, for what all tokens of a position sum to
SPECIAL = 6  # special tokens that are tried
OTHERS = 4  # real texts that the text is asked among
MAX_NOISE = 0.05  # nats: noise beyond this makes every probe meaningless


async def prove_remote(
    client: RemoteClient,
    texts: Sequence[Text],
    ids: Sequence[int],
    temperature: float,
    tokenizer: PreTrainedTokenizerBase | None = None,
    head: Head | None = None,
    support: Support = "sampled",
    longest: int | None = None,
) -> Proof:
    """Run every probe and choose the method that scores at `temperature`.

    `texts` are prompts as tokens, `ids` some different tokens, `support` what training will ask for, `head` the
    teacher's own, where its whole distribution is wanted, `longest` the tokens of the longest text that training may
    ask about. `tokenizer` is the student's.

    Raises `ContractError`, with the results so far, for the first probe that fails, and `TeacherError` for a server
    that cannot be asked.
    """
    heads = {} if head is None else {head.fingerprint(): head}
    tokens = client.largest_k if client.counted else None if tokenizer is None else highest_id(tokenizer) + 1
    real = [tuple(text[:PROBE_LENGTH]) for text in texts]
    state = ProofState(client, real, list(ids), temperature, support, heads, tokens, longest)
    steps: dict[str, Callable[[], Awaitable[list[ProbeResult]]]] = {
        "identity": partial(_identity, state),
        "tokenizer": partial(_tokenizer, state, tokenizer),
        "noise": partial(_noise, state),
        "alignment": partial(_alignment, state),
        "normalisation": partial(_normalisation, state),
        "start": partial(_start, state, tokenizer),
        "special tokens": partial(_special, state, tokenizer),
        "spelling": partial(_spelling, state, tokenizer),
        "length": partial(_length, state),
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
    if isinstance(error, WireError):
        probe = PROBES.get(error.kind, probe)
    message = str(error) if isinstance(error, LimbeckError) else f"teacher {client.name}: {error}"
    return ContractError(message, [*before, *(tried or [ProbeResult(probe, message, "", ok=False)])])


async def _identity(state: ProofState) -> list[ProbeResult]:
    names = state.names = {url: await state.client.identity(url) for url in state.client.pool.urls}
    shown = "; ".join(f"{url}: {name}" for url, name in names.items())
    if not state.acknowledges:
        state.acknowledges = await _acknowledges(state)
    state.length = await _longest_taken(state)
    state.probe = ProbeTexts(state.texts, state.ids, state.tokens, state.length)
    if len(names) > 1:  # first of all: replicas that differ would look like any other fault
        await record_baseline(state.client, first_request(state), state.acknowledges, state.probe.pool, fresh_of(state))
    return [ProbeResult("identity", shown, "one model behind every URL")]


async def _acknowledges(state: ProofState) -> bool:
    """Whether the server takes a scoring temperature: then temperature 1 is asked for by name from now on.

    One that was started at another temperature would otherwise answer at its own.
    """
    try:
        await state.client.ask(request_of(state.probe.base[:2], 1, 1.0), acknowledges=True)
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
                return [
                    ProbeResult("tokenizer", "not shown: the server splits no text", "echoed ids are compared alone")
                ]
            raise
        ours = list(tokenizer(text).input_ids)
        if theirs != ours:
            raise refusal(
                "tokenizer",
                f"teacher {state.client.name} splits {text!r} into {theirs[:12]}, the student's tokenizer into "
                f"{ours[:12]}.",
                "On-policy distillation compares them token by token: choose models of one tokenizer family.",
                f"{text!r} is split differently",
                "one splitting",
            )
    return [ProbeResult("tokenizer", f"{len(PROBE_TEXTS)} strings split alike", "the student's token ids")]


async def _noise(state: ProofState) -> list[ProbeResult]:
    """Texts alone, and among each other; one of them several times."""
    others = state.at(state.real[:OTHERS], support="sampled")
    ask, text = state.asker(), state.at([state.probe.base], support="sampled")
    alone = [(await ask([one]))[0] for one in (*text, *text, *others)]
    together = await ask([*text, *others, *text])
    runs = [alone[1], *together]
    compared = zip([alone[0], alone[0], *alone[2:], alone[0]], runs, strict=True)
    difference = np.concatenate([np.abs(one.sampled_S - other.sampled_S) for one, other in compared])
    state.noise_floor = float(difference.max())
    if state.noise_floor > MAX_NOISE:
        raise ContractError(
            f"teacher {state.name}: a text scored alone, again and among others differs by up to "
            f"{state.noise_floor:.3g} nats (mean {difference.mean():.3g}; expected at most {MAX_NOISE}). "
            "Use a deterministic mode of the server, a wider dtype, or replicas of one model."
        )
    state.plain = alone[0]
    measured = f"max {state.noise_floor:.1e}, mean {difference.mean():.1e} nats"
    return [ProbeResult("noise", measured, f"at most {MAX_NOISE}")]


async def _longest_taken(state: ProofState) -> int:
    """Tokens of a text that the server does not refuse: as many as training will ask about, or fewer."""
    length = max(state.longest or LONGEST, LENGTH)
    while (refused := await _refuses(state, length)) is not None:
        if length <= SHORTEST:
            if await _refuses(state, 2) is not None:
                raise refused  # whatever it refuses, it is not the length
            raise refusal(
                "length",
                f"teacher {state.name} refuses texts of {SHORTEST} tokens, the shortest that can be proven: {refused}.",
                "Raise the server's context length.",
                f"{SHORTEST} tokens are refused",
                f"at least {SHORTEST}",
            )
        shorter = max(SHORTEST, length // 2)
        length = max(shorter, state.longest) if state.longest and state.longest < length else shorter
    return length


async def _refuses(state: ProofState, length: int) -> WireError | None:
    try:
        await state.ask(request_of(state.probe.draw(length), length - 1, 1.0, "sampled", "probe-length"))
    except WireError as error:
        if error.kind != "refused":
            raise
        return error
    return None


async def _alignment(state: ProofState) -> list[ProbeResult]:
    """At temperature 1, of the text changed at several places.

    First of the text's own tokens alone: most likely tokens that contradict them would hide by how much they are
    shifted. Then with the most likely tokens, and as training asks.
    """
    assert state.plain is not None
    check_values(state.name, state.plain.sampled_S)
    ask, probe, name = state.asker(), state.probe, state.name
    alone = probe.changed(state.plain)[::2]
    answers = await ask(state.at([one.ids for one in alone], support="sampled"))
    check_causality(name, state.plain, [(one.place, a) for one, a in zip(alone, answers, strict=True)], state.tolerance)
    base, again = await ask(state.at([probe.base, probe.base]))
    state.noise_floor = max(state.noise_floor, top_difference(base, again, slice(None), slice(None)))
    changed = probe.changed(base)
    *others, part = await ask([*state.at([one.ids for one in changed]), state.as_training(1.0)])
    state.part = part
    state.places, state.at_one = [one.place for one in changed], [base, *others]
    state.uniform = [probe.uniform[1:], *(one.uniform[one.place :] for one in changed)]
    check_alike(name, base, state.plain, state.tolerance)
    check_alike(name, base, part, state.tolerance)
    return [check_causality(name, base, state.changed(state.at_one), state.tolerance)]


async def _normalisation(state: ProofState) -> list[ProbeResult]:
    """Of real texts too: a model is surer of them, and what a server cuts off is more."""
    real = state.at(state.real)
    drawn = state.at([state.probe.draw(min(DRAWN, state.length))])
    more = await state.asker()([*real, *drawn])
    base, *others = state.at_one
    fresh = [base, *(other.since(place) for place, other in zip(state.places, others, strict=True))]
    check_values(state.name, np.concatenate([answer.sampled_S for answer in fresh]))
    uniform = [*state.uniform, *(np.zeros(len(answer.sampled_S), bool) for answer in more)]
    uniform[-1][:] = state.tokens is not None
    answers = [*fresh, *more]
    result = check_distribution(state.name, answers, uniform, state.client.vocabulary, state.tokens)
    check_listed(state.name, base, state.changed(state.at_one), state.tolerance)
    return [result]


async def _start(state: ProofState, tokenizer: PreTrainedTokenizerBase | None) -> list[ProbeResult]:
    base, bos = state.probe.base, getattr(tokenizer, "bos_token_id", None)
    first = next((int(token) for token in state.probe.pool if token != base[0]), int(base[0]))
    more = int(base[0]) if bos is None else bos
    texts = [*state.probe.repeated(), np.concatenate([[first], base[1:]]), np.concatenate([[more], base[:-1]])]
    *repeated, other, longer = await state.asker()(state.at(texts))
    check_first_token(state.name, state.at_one[0], other, longer, state.tolerance)
    return [check_start(state.name, repeated, state.noise_floor, state.client.section.trust_start)]


async def _special(state: ProofState, tokenizer: PreTrainedTokenizerBase | None) -> list[ProbeResult]:
    known = state.client.vocabulary if state.tokens is None else state.tokens
    ids = [token for token in dict.fromkeys(getattr(tokenizer, "all_special_ids", ())) if 0 <= token < known]
    if not ids:
        return []
    before, after = np.split(state.probe.base[: max(3, min(state.length - 1, 4 * SPECIAL))], [2])
    texts = [[*before, *after], *([*before, token, *after] for token in ids[:SPECIAL])]
    unit = [request_of(t, len(t) - len(after), 1.0, "sampled", "probe-special") for t in texts]
    without, *answers = await state.asker()(unit)
    return [check_special(state.name, ids, without, answers, state.tolerance)]


async def _spelling(state: ProofState, tokenizer: PreTrainedTokenizerBase | None) -> list[ProbeResult]:
    if tokenizer is None:
        return []
    pairs = spellings(tokenizer, [int(token) for token in state.probe.pool])
    if not pairs:
        return [ProbeResult("spelling", "every text has one token sequence", "nothing to compare")]
    end = state.probe.base[: state.probe.start]
    pairs = [pair for pair in pairs if max(map(len, pair)) + len(end) <= state.length] or pairs[:1]
    unit = [request_of([*ids, *end], len(ids), 1.0, "sampled", "probe-spelling") for pair in pairs for ids in pair]
    answers = await state.asker()(unit)
    return [check_spelling(state.name, list(zip(answers[::2], answers[1::2], strict=True)), state.tolerance)]


async def _length(state: ProofState) -> list[ProbeResult]:
    long = state.long = await ask_long(state.asker(), state.probe, state.length, 1.0, state.k)
    result = check_long(state.name, long, state.noise_floor)
    state.noise_floor = max(state.noise_floor, long.noise)
    check_beginning(state.name, long.base, state.at_one[0], state.tolerance)
    if state.longest is not None and state.length < state.longest:
        more = f"; {state.longest}, which training may ask about, were refused"
        result = replace(result, measured=f"{result.measured}{more}")
    return [result]


async def _given_ids(state: ProofState) -> list[ProbeResult]:
    if not isinstance(state.support, np.ndarray):
        return []
    assert state.found is not None
    teacher = RemoteTeacher(state.client, state.found)
    noise = state.noise_floor
    prefix = [int(token) for token in state.prefix[: max(2, state.length // 2)]]
    return [await given_ids(teacher, prefix, state.ids, state.t, state.heads, state.support, noise)]


async def _baseline(state: ProofState) -> list[ProbeResult]:
    assert state.found is not None
    teacher = RemoteTeacher(state.client, state.found)
    acknowledges = state.found.method == "native" or state.acknowledges
    request = fixed_request(teacher.sent(state.request(state.prefix)), state)
    baseline = await record_baseline(state.client, request, acknowledges, state.probe.pool, fresh_of(state))
    check_held(state, baseline)
    state.found = replace(state.found, baseline=baseline)
    measured = f"{len(request.scored_ids)} of {len(request.token_ids)} tokens on {len(baseline.replies)} replicas"
    return [ProbeResult("baseline", measured, "the same with every step")]


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
