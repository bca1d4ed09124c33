"""Teachers that are asked about given ids: an honest one passes, and each lie is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from limbeck.contract.given_ids import probe_ids
from limbeck.contract.probes import prove
from limbeck.errors import ContractError
from limbeck.records import Failure, ScoreRequest, Scores, TokenScores, TopKScores
from limbeck.teachers.local import LocalTeacher
from limbeck.testing import BigramTeacher, random_bigrams
from tests import tiny

V, T = 99, 0.7
TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(0, V, 9 + n)) for n in range(3)]
Lie = Callable[[TopKScores, ScoreRequest, BigramTeacher], Scores]


class Twisted(BigramTeacher):
    """What an honest teacher answers, after `lie`."""

    def __init__(self, lie: Lie) -> None:
        super().__init__(random_bigrams(V, 3), "twisted")
        self.lie = lie

    async def score(self, unit: Sequence[ScoreRequest]) -> list[Scores | Failure]:
        answers = await super().score(unit)
        return [
            self.lie(answer, request, self) if isinstance(answer, TopKScores) else answer
            for answer, request in zip(answers, unit, strict=True)
        ]


def ask(teacher: BigramTeacher, request: ScoreRequest, support: np.ndarray) -> TopKScores:
    scores = teacher._one(replace(request, support=support))
    assert isinstance(scores, TopKScores)
    return scores


def its_own_top(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return teacher._one(replace(request, support=honest.ids.shape[1]))


def its_own_top_under_our_ids(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    top = teacher._one(replace(request, support=honest.ids.shape[1]))
    assert isinstance(top, TopKScores)
    return replace(honest, logprobs=top.logprobs)


def sorted_by_score(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return replace(honest, logprobs=-np.sort(-honest.logprobs, axis=1))


def sorted_with_ids(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    order = np.argsort(-honest.logprobs, axis=1)
    return replace(
        honest, ids=np.take_along_axis(honest.ids, order, 1), logprobs=np.take_along_axis(honest.logprobs, order, 1)
    )


def first_list_for_all(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    first = np.repeat(honest.ids[:1], len(honest.ids), axis=0)
    return replace(honest, logprobs=ask(teacher, request, first).logprobs)


def list_of_the_position_before(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return replace(honest, logprobs=ask(teacher, request, np.roll(honest.ids, 1, axis=0)).logprobs)


def list_at_temperature_1(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return replace(honest, logprobs=ask(teacher, replace(request, temperature=1.0), honest.ids).logprobs)


def floors_the_tail(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return replace(honest, logprobs=np.maximum(honest.logprobs, -4.0))


def normalised_within_the_list(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    total = np.log(np.exp(honest.logprobs).sum(axis=1, keepdims=True))
    return replace(honest, logprobs=honest.logprobs - total)


def sampled_token_alone(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    return TokenScores(honest.scorer, honest.temperature, honest.logprobs_of_sampled)


def one_too_late(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    """The list under the distribution after the sampled token."""
    moved = replace(request, token_ids=np.roll(request.token_ids, -1))
    return replace(honest, logprobs=ask(teacher, moved, honest.ids).logprobs)


def all_at_temperature_1(honest: TopKScores, request: ScoreRequest, teacher: BigramTeacher) -> Scores:
    """The sampled token too, wherever ids are given: only a token that is scored alone is at T."""
    return replace(ask(teacher, replace(request, temperature=1.0), honest.ids), temperature=request.temperature)


LIES: list[tuple[Lie, str]] = [
    (its_own_top, "about other ids than"), (its_own_top_under_our_ids, "nats apart"), (sorted_by_score, "nats apart"),
    (sorted_with_ids, "in another order"), (first_list_for_all, "nats apart"),
    (list_of_the_position_before, "nats apart"), (list_at_temperature_1, "nats apart"),
    (floors_the_tail, "nats apart"), (normalised_within_the_list, "nats apart"),
    (sampled_token_alone, "answers with TokenScores"), (one_too_late, "nats apart"),
    (all_at_temperature_1, "nats apart"),
]  # fmt: skip
every_k = pytest.mark.parametrize("k", [1, 2, 20, V])


@every_k
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
async def test_an_honest_teacher_passes(k: int, temperature: float) -> None:
    teacher = BigramTeacher(random_bigrams(V, 3))
    results = await prove(teacher, TEXTS, temperature, V, support=probe_ids(k, V))
    assert [result.probe for result in results] == ["alignment", "temperature", "given ids"]
    assert {request.temperature for request in teacher.calls if isinstance(request.support, np.ndarray)} == {
        temperature
    }


NO_LIES = [(1, sorted_by_score), (1, sorted_with_ids), (V, normalised_within_the_list)]


@pytest.mark.parametrize(
    ("k", "lie", "says"), [(k, lie, says) for k in (1, 2, 20, V) for lie, says in LIES if (k, lie) not in NO_LIES]
)
async def test_a_teacher_that_answers_something_else_is_refused(k: int, lie: Lie, says: str) -> None:
    with pytest.raises(ContractError, match=r"'student_top'.*limbeck serve") as caught:
        await prove(Twisted(lie), TEXTS, T, V, support=probe_ids(k, V))
    (failed,) = [result for result in caught.value.results if not result.ok]
    assert failed.probe == "given ids"
    assert says in str(caught.value) or "sum to" in str(caught.value)


async def test_hidden_states_are_more_than_any_ids() -> None:
    teacher = LocalTeacher("local", tiny.fresh())
    texts = [prompt.token_ids for prompt in tiny.prompts(4, 9, 6)]
    results = await prove(teacher, texts, T, tiny.VOCABULARY, teacher.heads, probe_ids(5, tiny.VOCABULARY))
    assert results[-1].measured == "hidden states: those of any ids"


@pytest.mark.parametrize("prefix", [(5,), (5, 6)])
async def test_prompts_of_a_token_or_two_are_enough(prefix: tuple[int, ...]) -> None:
    results = await prove(BigramTeacher(random_bigrams(V, 3)), [prefix], T, V, support=probe_ids(4, V))
    assert results[-1].ok


@pytest.mark.parametrize("k", [1, 3, 50, 99])
def test_probe_ids_are_different_and_spread(k: int) -> None:
    ids = probe_ids(k, V)
    assert len(set(ids.tolist())) == k
    assert ids.min() >= 0
    assert ids.max() < V
