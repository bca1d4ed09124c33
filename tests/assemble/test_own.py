"""A part of the user's own that does wrong: one sentence names the part, the request and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.assemble.own import OwnEngine, OwnLearner, OwnTeacher, checked_part
from limbeck.contract.order import prove_order
from limbeck.errors import ContractError, EngineError, ModelError, RecipeError, TeacherError
from limbeck.models.states import LocalStates
from limbeck.protocols import BatchesTurns, Observer
from limbeck.records import Failure, HiddenScores, Key, SampleRequest, Sampling, request_of
from limbeck.testing import BigramEngine, BigramTeacher, CountingLearner, FixedPolicy, Recorder, random_bigrams

V = 12
TABLE = random_bigrams(V)
REQUESTS = [request_of([1, 2, 3, 4], 2, 0.7, id="one"), request_of([5, 6, 7, 8, 9], 2, 0.7, id="two")]
SAMPLING = Sampling(0.7, 4, stop_ids=(0,))
UNIT = [SampleRequest(Key(f"p{i}"), np.array([1, 2, 3]), SAMPLING) for i in range(3)]
NAN = np.float32(np.nan)


def teacher(change: Callable[[list[Any]], Any], stuck_at: float | None = None) -> OwnTeacher:
    class Wrong(BigramTeacher):
        async def score(self, unit: Sequence[Any]) -> Any:
            return change(await super().score(unit))

    return OwnTeacher(Wrong(TABLE, "wrong", stuck_at))


def first(**fields: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda answers: [replace(answers[0], **{n: f(answers[0]) for n, f in fields.items()}), *answers[1:]]


def fail() -> Any:
    raise KeyError("weights")


WRONG_SCORES = {
    "out of order": (lambda a: a[::-1], "request 'one': logprobs is ndarray of float32 with shape .3."),
    "too many": (lambda a: [*a, a[0]], "gave 3 answers to 2 requests"),
    "none at all": (lambda a: None, "returned None, expected a list with one answer for each request"),
    "a bare array": (lambda a: [x.logprobs for x in a], "answered ndarray, expected TokenScores, TopKScores"),
    "a row too many": (first(logprobs=lambda s: s.logprobs[None]), r"shape \[1, 2\], expected .* shape \[2\]"),
    "half precision": (first(logprobs=lambda s: s.logprobs.astype(np.float16)), "float16 .* Compute in float32"),
    "a list": (first(logprobs=lambda s: s.logprobs.tolist()), "logprobs is list, expected a numpy array"),
    "probabilities": (first(logprobs=lambda s: -s.logprobs), "a log-prob is at most 0"),
    "NaN": (first(logprobs=lambda s: s.logprobs * NAN), "logprobs has nan"),
    "another temperature": (first(temperature=lambda s: 1.0), "stamped temperature 1.0, .* sampled at 0.7"),
    "a short mask": (first(valid_mask=lambda s: np.ones(1, np.bool_)), "valid_mask is ndarray of bool"),
    "a tensor as states": (
        lambda a: [HiddenScores("wrong", np.zeros((2, 3)), "head"), a[1]], "expected limbeck.protocols.States of shape",
    ),
    "a short mask of states": (
        lambda a: [HiddenScores("wrong", LocalStates(torch.zeros(2, 3)), "h", valid_mask=np.ones(1, np.bool_)), a[1]],
        "valid_mask is ndarray of bool",
    ),
    "it raises": (lambda a: fail(), r": score raised KeyError: 'weights' \(.*test_own.py, line \d+, in fail"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_SCORES)
async def test_a_teachers_wrong_answer_is_named(name: str) -> None:
    change, message = WRONG_SCORES[name]
    with pytest.raises((ContractError, TeacherError), match=f"teacher wrong.*{message}"):
        await teacher(change).score(REQUESTS)


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ("full", "the whole distribution .* answered TokenScores, .*Set objective.support = 'sampled'"),
        (3, "3 tokens a position and answered TokenScores, expected TopKScores"),
    ],
)
async def test_scores_that_do_not_serve_the_support_are_refused(support: Any, message: str) -> None:
    only_sampled = [replace(request, support="sampled") for request in REQUESTS]
    answers = await BigramTeacher(TABLE).score(only_sampled)
    with pytest.raises(ContractError, match=message):
        await teacher(lambda _: answers).score([replace(request, support=support) for request in REQUESTS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids[:, :2], r"ids is ndarray of int64 with shape \[2, 2\], expected .* \[2, 3\]"),
        (lambda ids: ids[:, [0, 0, 1]], "one token twice"),
        (lambda ids: ids.astype(np.int32), "int32"),
    ],
)
async def test_wrong_top_tokens_are_named(change: Callable[[Any], Any], message: str) -> None:
    top = [replace(request, support=3) for request in REQUESTS]
    with pytest.raises(ContractError, match=message):
        await teacher(first(ids=lambda s: change(s.ids))).score(top)


async def test_right_answers_and_failures_pass() -> None:
    failure = Failure("one", "score", "timeout", "no answer")
    states = HiddenScores("wrong", LocalStates(SimpleNamespace(shape=(3, 4))), "head")  # type: ignore[arg-type]
    assert await teacher(lambda a: [failure, states]).score(REQUESTS) == [failure, states]
    for support in ("sampled", 3):
        assert len(await teacher(lambda a: a).score([replace(request, support=support) for request in REQUESTS])) == 2


def engine(change: Callable[[list[Any]], Any]) -> OwnEngine:
    class Wrong(BigramEngine):
        async def sample(self, unit: Sequence[SampleRequest]) -> Any:
            return change(await super().sample(unit))

    return OwnEngine(Wrong(TABLE), V)


def response(*ids: int, finish: str = "length") -> Callable[[list[Any]], list[Any]]:
    return first(
        token_ids=lambda s: np.array(ids, np.int64),
        logprobs=lambda s: np.full(len(ids), -1, np.float32),
        finish=lambda s: finish,
    )


WRONG_RESPONSES = {
    "too few": (lambda a: a[1:], "gave 2 answers to 3 requests"),
    "None": (lambda a: [None, *a[1:]], "answered None, expected Sampled or a Failure"),
    "outside the vocabulary": (response(1, 2, 3, V), f"sampled token {V}, .* share ids 0 to {V - 1} only"),
    "too long": (response(1, 2, 3, 4, 5), "has 5 tokens, expected 1 to rollout.max_tokens = 4"),
    "empty": (response(finish="stop"), "has 0 tokens, expected 1"),
    "a stop token in the middle": (response(1, 0, 3, 4), "went on after the stop token 0"),
    "no stop token": (response(1, 2, finish="stop"), "ends after 2 of 4 tokens without a stop token"),
    "a wrong finish": (response(1, 2, 3, 4, finish="stop"), "finish = 'stop', but the last token makes it 'length'"),
    "NaN": (first(logprobs=lambda s: s.logprobs * NAN), "log-prob nan"),
    "probabilities": (first(logprobs=lambda s: -s.logprobs), "expected a finite number of at most 0"),
    "too few log-probs": (first(logprobs=lambda s: s.logprobs[1:]), "logprobs is ndarray"),
    "it raises": (lambda a: fail(), "sample raised KeyError"),
}


@pytest.mark.parametrize("name", WRONG_RESPONSES)
async def test_an_engines_wrong_response_is_named(name: str) -> None:
    change, message = WRONG_RESPONSES[name]
    with pytest.raises(EngineError, match=f"engine Wrong.*{message}"):
        await engine(change).sample(UNIT)


async def test_an_engine_that_cannot_load_is_named() -> None:
    class Wrong(BigramEngine):
        async def load(self, policy: Any) -> None:
            fail()

    with pytest.raises(EngineError, match="engine Wrong: load raised KeyError"):
        await OwnEngine(Wrong(TABLE), V).load(FixedPolicy(TABLE, 0))


async def test_a_method_that_is_not_async_is_named() -> None:
    class Sync(BigramTeacher):
        def score(self, unit: Sequence[Any]) -> Any:
            return []

    with pytest.raises(TeacherError, match="teacher bigrams: score returned list, expected an awaitable"):
        await OwnTeacher(Sync(TABLE)).score(REQUESTS)


def test_what_is_no_part_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r"teacher: BigramTeacher is a class, expected an object: give BigramTeacher\("
    ):
        OwnTeacher(BigramTeacher)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="teacher: None has no name, info, score; expected everything of"):
        OwnTeacher(None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="engine: BigramTeacher has no max_rows, load, sample"):
        OwnEngine(BigramTeacher(TABLE), V)  # type: ignore[arg-type]
    seen = Recorder()
    assert checked_part(seen, Observer, "observers") is seen


class ByLength(BigramTeacher):
    """Sorts a unit by length, as one does to save padding, and forgets to sort the answers back."""

    async def score(self, unit: Sequence[Any]) -> Any:
        return await super().score(sorted(unit, key=lambda request: len(request.token_ids)))


@pytest.mark.parametrize("support", ["sampled", 3])
async def test_a_teacher_that_sorts_its_answers_is_refused(support: Any) -> None:
    texts = [[1, 5, 2], [4, 7, 2, 9, 3, 8]]
    with pytest.raises(
        ContractError, match=r"of 4 requests at once, \d got an answer nearer to what another"
    ) as caught:
        await prove_order(ByLength(TABLE), texts, 0.7, {}, support)
    assert caught.value.results[0].probe == "order"
    assert (await prove_order(BigramTeacher(TABLE), texts, 0.7, {}, support)).ok
    assert (await prove_order(BigramTeacher(TABLE), [[1]], 0.7, {}, support)).ok, "nothing to compare"


def test_the_info_of_a_teacher_is_a_record() -> None:
    wrong = BigramTeacher(TABLE)
    wrong.info = None  # type: ignore[assignment]
    with pytest.raises(RecipeError, match="teacher bigrams: info is None, expected a ModelInfo"):
        OwnTeacher(wrong)


async def test_a_learners_wrong_answer_is_named() -> None:
    class Wrong(CountingLearner):
        async def measure(self, samples: Any) -> Any:
            return None

        async def update(self, samples: Any) -> Any:
            return fail()

        async def publish(self) -> Any:
            return None

        async def trace(self, samples: Any, top: int) -> Any:
            return [None]

    learner = OwnLearner(Wrong(TABLE))
    with pytest.raises(ModelError, match="learner Wrong: measure returned None, expected a StepReport"):
        await learner.measure([])
    with pytest.raises(ModelError, match="learner Wrong: publish: None has no version, info, adapter, tensors"):
        await learner.publish()
    with pytest.raises(ModelError, match="learner Wrong: trace gave 1 answers to 0 requests"):
        await learner.trace([], 3)
    with pytest.raises(KeyError) as caught:
        await learner.update([])
    assert caught.value.__notes__ == [
        "learner Wrong raised this in `update`. The same command goes on from the last checkpoint."
    ]


def test_an_engine_of_ones_own_may_batch_by_itself() -> None:
    class Server(BigramEngine):
        batches_turns = True

    table = random_bigrams(5)
    assert isinstance(OwnEngine(Server(table), 5), BatchesTurns)
    assert not isinstance(OwnEngine(BigramEngine(table), 5), BatchesTurns)
