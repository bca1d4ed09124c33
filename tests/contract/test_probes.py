"""The contract: honest teachers pass, and each lie is refused with the reason.

Shape legend: S sampled tokens, V vocabulary, d hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.contract.answers import logprobs_of_sampled
from limbeck.contract.probes import prove, same_weights
from limbeck.errors import ContractError
from limbeck.models.states import LocalStates
from limbeck.records import Failure, HiddenScores, ScoreRequest, Scores, Support, TokenScores, TopKScores
from limbeck.teachers.local import LocalTeacher
from limbeck.testing import BigramTeacher, random_bigrams
from tests import tiny

TEMPERATURES = (0.5, 0.7, 1.0, 1.5)
TEXTS = [prompt.token_ids for prompt in tiny.prompts(4, 9, 6)]
V = tiny.VOCABULARY

# Teachers that answer as asked, and teachers that do not


class Twisted:
    """A teacher whose answers are an honest one's after `twist(honest, request)`."""

    name = "twisted"

    def __init__(self, twist: Callable[[LocalTeacher, ScoreRequest], Any]) -> None:
        self.honest, self.twist = LocalTeacher(self.name, tiny.fresh()), twist
        self.info, self.heads = self.honest.info, self.honest.heads

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        return [self.twist(self.honest, request) for request in unit]


async def proven(twist: Callable[[LocalTeacher, ScoreRequest], Any], temperature: float, support: Support = "sampled"):
    teacher = Twisted(twist)
    return await prove(teacher, TEXTS, temperature, V, teacher.heads, support)


def hidden(honest: LocalTeacher, request: ScoreRequest) -> HiddenScores:
    """The honest answer."""
    return states_at(honest, request.token_ids, np.flatnonzero(request.scored) - 1)


def states_at(honest: LocalTeacher, ids: np.ndarray, places_S: np.ndarray) -> HiddenScores:
    states_Ld = honest.lm.hidden(torch.from_numpy(ids)[None])[0].detach()
    return HiddenScores(honest.name, LocalStates(states_Ld[places_S]), honest.fingerprint)


def tokens(
    honest: LocalTeacher, request: ScoreRequest, temperature: float | None = None, stamp: float | None = None
) -> TokenScores:
    """At the temperature that is asked for, unless another one is given."""
    at = request.temperature if temperature is None else temperature
    values = logprobs_of_sampled(hidden(honest, request), replace(request, temperature=at), honest.heads)
    return TokenScores(honest.name, request.temperature if stamp is None else stamp, values.astype(np.float32))


def top_k(honest: LocalTeacher, request: ScoreRequest, k: int = 3, scale: float = 0.0) -> TopKScores:
    states_Sd = hidden(honest, request).states.fetch()
    logp_SV = (honest.head.logits(states_Sd) / request.temperature).log_softmax(-1).detach()
    top = logp_SV.topk(k)
    of_sampled = tokens(honest, request).logprobs
    return TopKScores(honest.name, request.temperature, top.indices.numpy(), top.values.numpy() + scale, of_sampled)


def moved(honest: LocalTeacher, request: ScoreRequest, by: int) -> HiddenScores:
    """States read `by` positions too late (or too early, below 0)."""
    places_S = np.maximum(np.flatnonzero(request.scored) - 1 + by, 0)
    return states_at(honest, np.append(request.token_ids, [3] * 3), places_S)


def as_tokens(honest: LocalTeacher, scores: HiddenScores, request: ScoreRequest) -> TokenScores:
    """Log-probs of the request's tokens, from whatever states."""
    values = logprobs_of_sampled(scores, request, honest.heads)
    return TokenScores(honest.name, request.temperature, values.astype(np.float32))


def neighbours(honest: LocalTeacher, request: ScoreRequest, by: int) -> TokenScores:
    """Log-probs of the tokens `by` places further on in the text, as a slip in slicing gives them."""
    ids = np.append(request.token_ids, [3])
    places_S = np.maximum(np.flatnonzero(request.scored) + by, 1)
    scores = tokens(honest, replace(request, token_ids=ids, scored=np.arange(len(ids)) > 0))
    return replace(scores, logprobs=scores.logprobs[places_S - 1])


def another_text(honest: LocalTeacher, request: ScoreRequest) -> HiddenScores:
    """A text of as many tokens, always the same."""
    return hidden(honest, twenties(request))


def twenties(request: ScoreRequest) -> ScoreRequest:
    return replace(request, token_ids=np.full_like(request.token_ids, 20))


def filled(value: float, extra: int = 0) -> Callable[[LocalTeacher, ScoreRequest], TokenScores]:
    """One number for every token, and for so many more than were asked about."""
    return lambda honest, request: TokenScores(
        honest.name, request.temperature, np.full(int(request.scored.sum()) + extra, value, dtype=np.float32)
    )


def constant_states(value: float) -> Callable[[LocalTeacher, ScoreRequest], HiddenScores]:
    return lambda honest, request: HiddenScores(
        honest.name, LocalStates(torch.full((int(request.scored.sum()), 32), value)), honest.fingerprint
    )


HONEST: dict[str, tuple[Callable[[LocalTeacher, ScoreRequest], Scores], Support]] = {
    "hidden": (hidden, "full"),
    "hidden, more than was asked for": (hidden, 3),
    "tokens": (tokens, "sampled"),
    "top-k": (top_k, 3),
    "a little noise": (lambda honest, request: noisy(tokens(honest, request), request), "sampled"),
}


def noisy(scores: TokenScores, request: ScoreRequest) -> TokenScores:
    noise = np.random.default_rng(request.token_ids).uniform(-2e-4, 2e-4, len(scores.logprobs))
    return replace(scores, logprobs=(scores.logprobs + noise).astype(np.float32))


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", HONEST)
async def test_an_honest_teacher_passes(kind: str, temperature: float) -> None:
    twist, support = HONEST[kind]
    results = await proven(twist, temperature, support)
    names = ["alignment", "temperature"] if isinstance(support, str) else ["alignment", "normalisation", "temperature"]
    assert [result.probe for result in results] == names
    assert all(result.ok for result in results)
    assert f"T = {temperature}" in results[-1].measured


@pytest.mark.parametrize("temperature", [0.7, 1.5])
@pytest.mark.parametrize("family", tiny.FAMILIES)
async def test_local_teachers_pass(family: str, temperature: float) -> None:
    """With a prompt of one token too, and with a budget that splits the probes."""
    for texts, budget in ((TEXTS, 64), ([TEXTS[0][:1]], 8192)):
        teacher = LocalTeacher("t", tiny.fresh(family), budget)
        await prove(teacher, texts, temperature, V, teacher.heads)


async def test_a_teacher_of_ones_own_needs_no_more_than_scores() -> None:
    """No model, no tokenizer, no head."""
    assert len(await prove(BigramTeacher(random_bigrams(20)), [(1, 2, 3)], 0.7, 20, support=4)) == 3
    with pytest.raises(ContractError, match=r"scored at temperature 1\.3, expected 0\.7"):
        await prove(BigramTeacher(random_bigrams(20), stuck_at=1.3), [(1, 2, 3)], 0.7, 20)


LIES: dict[str, tuple[Callable[[LocalTeacher, ScoreRequest], Any], str]] = {
    "ignores T": (lambda honest, request: tokens(honest, request, 1.0), "does not score at temperature"),
    "scores at 1/T": (
        lambda honest, request: tokens(honest, request, 1 / request.temperature),
        "does not score at temperature",
    ),
    "stamps that it ignores T": (lambda honest, request: tokens(honest, request, 1.0, 1.0), "temperature 1.0"),
    "is baked": (
        lambda honest, request: replace(hidden(honest, request), natural_temperature=0.7),
        "baked for temperature 0.7",
    ),
    "states of another head": (
        lambda honest, request: replace(hidden(honest, request), head="abc"),
        "a head that is not here ('abc')",
    ),
    "reads the next token's score": (lambda honest, request: neighbours(honest, request, 1), "shifted by one"),
    "reads the last token's score": (lambda honest, request: neighbours(honest, request, -1), "something else"),
    "reads the next state": (lambda honest, request: moved(honest, request, 1), "shifted by one"),
    "reads the last state": (lambda honest, request: moved(honest, request, -1), "the token before it"),
    "reads the last state, one number a token": (
        lambda honest, request: as_tokens(honest, moved(honest, request, -1), request),
        "the token before it",
    ),
    "always the same number": (filled(-1.5), "something else"),
    "another text's scores": (
        lambda honest, request: as_tokens(honest, another_text(honest, request), twenties(request)),
        "something else",
    ),
    "another text's states": (another_text, "the token before it"),
    "the same states everywhere": (constant_states(1.0), "the token before it"),
    "a flat distribution": (constant_states(0.0), "twisted"),
    "NaN": (filled(np.nan), "nan"),
    "-inf": (filled(-np.inf), "-inf"),
    "a score too few": (filled(-1.5, -1), " scores for "),
    "scores of the prompt too": (filled(-1.5, 9), " scores for "),
    "a state too few": (
        lambda honest, request: replace(
            hidden(honest, request), states=LocalStates(hidden(honest, request).states.fetch()[1:])
        ),
        " scores for ",
    ),
    "a failure": (
        lambda honest, request: Failure(request.id, "score", "timeout", "no answer in 60 s"),
        "could not score a probe: no answer in 60 s",
    ),
}


OF_TEMPERATURE = ("ignores T", "scores at 1/T", "stamps that it ignores T")


@pytest.mark.parametrize("lie", OF_TEMPERATURE)
async def test_what_ignores_the_temperature_is_no_lie_at_one(lie: str) -> None:
    await proven(LIES[lie][0], 1.0)


@pytest.mark.parametrize(
    ("lie", "temperature"),
    [(lie, 0.7) for lie in LIES]
    + [(lie, 1.5) for lie in OF_TEMPERATURE]
    + [(lie, 1.0) for lie in LIES if lie not in OF_TEMPERATURE],
)
async def test_a_lying_teacher_is_refused(lie: str, temperature: float) -> None:
    twist, reason = LIES[lie]
    with pytest.raises(ContractError) as caught:
        await proven(twist, temperature)
    message = str(caught.value)
    assert reason in message
    assert "teacher twisted" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("twist", "reason"),
    [
        (
            lambda honest, request: top_k(honest, request, 2),
            "was asked for 3 tokens a position and gave TopKScores of 2",
        ),
        (tokens, "was asked for 3 tokens a position and gave TokenScores"),
        (lambda honest, request: top_k(honest, request, 3, scale=1.0), "sum to"),
    ],
)
async def test_top_tokens_that_are_not_k_of_a_distribution_are_refused(twist: Any, reason: str) -> None:
    with pytest.raises(ContractError, match=reason) as caught:
        await proven(twist, 0.7, 3)
    assert [result.ok for result in caught.value.results] == [True, False]


async def test_a_failed_probe_is_the_last_of_the_results_and_says_what_to_do() -> None:
    with pytest.raises(ContractError) as caught:
        await proven(LIES["ignores T"][0], 0.7)
    passed, failed = caught.value.results
    assert (passed.probe, passed.ok, failed.probe, failed.ok) == ("alignment", True, "temperature", False)
    assert "rollout.temperature = 1" in failed.remedy
    assert len(failed.measured) < 60


async def test_the_temperature_that_was_measured_and_the_one_expected_are_reported() -> None:
    with pytest.raises(
        ContractError, match=r"(\d+\.\d+) nats apart, expected \1 / 0.5 = (\d+\.\d+)\..*temperature = 1"
    ):
        await proven(LIES["ignores T"][0], 0.5)


async def test_fewer_answers_than_requests_are_refused() -> None:
    class Forgetful(Twisted):
        async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
            return (await super().score(unit))[:-1]

    with pytest.raises(ContractError, match=r"twisted.*answers"):
        await prove(Forgetful(tokens), TEXTS, 0.7, V)


async def test_every_probe_is_a_text_the_model_could_see() -> None:
    """Tokens of the vocabulary, right after a real prompt, where the response stands."""
    asked: list[ScoreRequest] = []

    def record(honest: LocalTeacher, request: ScoreRequest) -> TokenScores:
        asked.append(request)
        return tokens(honest, request)

    await proven(record, 0.7)
    prefix = TEXTS[1]  # the longest
    for request in asked:
        assert tuple(request.token_ids[: len(prefix)]) == prefix
        assert request.start in (1, len(prefix))
        assert request.scored[request.start :].all()
        assert 0 <= request.token_ids.min() <= request.token_ids.max() < V
    assert {request.temperature for request in asked} == {0.7, 1.0}


async def test_the_same_model_has_no_kl_and_another_one_has() -> None:
    teacher, student = LocalTeacher("t", tiny.fresh()), LocalTeacher("s", tiny.fresh())
    result = await same_weights(teacher, student, TEXTS, 0.7, teacher.heads)  # type: ignore[arg-type]  # it scores
    assert result.ok
    other = LocalTeacher("o", tiny.fresh("qwen2"))
    with pytest.raises(ContractError, match="teacher t is the student's own model, but the two are"):
        await same_weights(teacher, other, TEXTS, 0.7, teacher.heads | other.heads)  # type: ignore[arg-type]
