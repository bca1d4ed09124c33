"""What a session makes of turns: exact ids, one training of each token, segments where a history branches."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.environments.session import Session
from limbeck.records import Context, Failure, Key, Prompt, Sampled, SampleRequest, Sampling

SAMPLING = Sampling(0.7, 4)
PROMPT = Prompt("p", (1, 2, 3))
KEY = Key("p", 0, 2)


def session(requests: list[SampleRequest] | None = None) -> Session:
    """Turn t says the tokens 100 t + 10, 100 t + 11, ... as many as t + 1."""

    async def submit(request: SampleRequest) -> Sampled | Failure:
        if requests is not None:
            requests.append(request)
        turn = request.key.turn
        ids = 100 * turn + 10 + np.arange(turn + 1)
        return Sampled(ids, -0.1 * ids.astype(np.float32), "stop", version=turn)

    return Session(PROMPT, KEY, SAMPLING, submit)


def context(*ids: int, parent: int | None = None) -> Context:
    return Context(np.array(ids, dtype=np.int64), parent)


async def test_a_single_turn_is_the_prompt_and_the_answer() -> None:
    generate = session()
    await generate(context(1, 2, 3))
    (rollout,) = generate.episode(reward=0.5).rollouts
    assert rollout.token_ids.tolist() == [1, 2, 3, 10]
    assert rollout.trained.tolist() == [False, False, False, True]
    assert rollout.key == KEY
    assert [(t.start, t.end, t.role) for t in rollout.turns] == [(0, 3, "context"), (3, 4, "student")]


async def test_a_turn_that_goes_on_keeps_the_exact_ids_and_trains_both() -> None:
    requests: list[SampleRequest] = []
    generate = session(requests)
    await generate(context(1, 2, 3))
    await generate(context(7, 8, parent=0))
    assert requests[1].token_ids.tolist() == [1, 2, 3, 10, 7, 8]
    assert [request.key.turn for request in requests] == [0, 1]
    (rollout,) = generate.episode().rollouts
    assert rollout.token_ids.tolist() == [1, 2, 3, 10, 7, 8, 110, 111]
    assert rollout.response_ids.tolist() == [10, 110, 111]
    assert rollout.versions.tolist() == [0, 1, 1]
    np.testing.assert_allclose(rollout.logprobs, [-1.0, -11.0, -11.1], rtol=1e-6)
    assert [(t.start, t.end, t.role) for t in rollout.turns] == [
        (0, 3, "context"), (3, 4, "student"), (4, 6, "context"), (6, 8, "student"),
    ]  # fmt: skip


async def test_a_sibling_begins_a_segment_in_which_the_shared_turn_is_context() -> None:
    generate = session()
    await generate(context(1, 2, 3))
    await generate(context(7, parent=0))
    await generate(context(9, parent=0))
    first, second = generate.episode().rollouts
    assert first.response_ids.tolist() == [10, 110, 111]
    assert second.token_ids.tolist() == [1, 2, 3, 10, 9, 210, 211, 212]
    assert second.response_ids.tolist() == [210, 211, 212]
    assert (first.segment, second.segment) == (0, 1)


async def test_a_turn_after_one_that_was_never_sampled_is_refused() -> None:
    with pytest.raises(ValueError, match="turn 3 has not been sampled"):
        await session()(context(1, parent=3))


@settings(max_examples=60, deadline=None)
@given(parents=st.lists(st.integers(-1, 5), min_size=1, max_size=7))
def test_every_sampled_token_is_trained_in_exactly_one_segment(parents: list[int]) -> None:
    async def talk() -> tuple[Counter[int], Counter[int]]:
        generate = session()
        said: Counter[int] = Counter()
        for turn, parent in enumerate(parents):
            answer = await generate(context(5, parent=parent if 0 <= parent < turn else None))
            assert isinstance(answer, Sampled)
            said.update(answer.token_ids.tolist())
        trained: Counter[int] = Counter()
        for rollout in generate.episode().rollouts:
            trained.update(rollout.response_ids.tolist())
        return said, trained

    said, trained = asyncio.run(talk())
    assert said == trained


def limited(requests: list[SampleRequest]) -> Session:
    """As `session`, of a student with 1000 token ids, whose engine has one buffer for all answers."""
    buffer, logprobs = np.zeros(2, np.int64), np.zeros(2, np.float32)

    async def submit(request: SampleRequest) -> Sampled | Failure:
        requests.append(request)
        buffer[:] = 10 * request.key.turn + np.arange(2)
        logprobs[:] = -buffer
        await asyncio.sleep(0)
        return Sampled(buffer, logprobs, "stop", version=0, top_ids=buffer[:, None])

    return Session(PROMPT, KEY, SAMPLING, submit, top=1, room=64, vocabulary=1000)


async def test_what_is_trained_is_what_was_sampled_whatever_happens_to_the_arrays_of_others() -> None:
    requests: list[SampleRequest] = []
    generate, buffer = limited(requests), np.array([1, 2, 3])
    first = asyncio.create_task(generate(Context(buffer)))
    await asyncio.sleep(0)
    buffer[:] = 9  # while the first turn is sampled
    answer = await first
    second = await generate(Context(buffer, parent=0))
    buffer[:] = 7
    assert isinstance(answer, Sampled)
    assert isinstance(second, Sampled)
    (rollout,) = generate.episode().rollouts
    assert [request.token_ids.tolist() for request in requests] == [[1, 2, 3], [1, 2, 3, 0, 1, 9, 9, 9]]
    assert rollout.token_ids.tolist() == [1, 2, 3, 0, 1, 9, 9, 9, 10, 11]
    assert rollout.logprobs.tolist() == [0, -1, -10, -11]
    shared = [getattr(part, name) for part in (answer, second) for name in ("token_ids", "logprobs", "top_ids")]
    shared += [getattr(rollout, name) for name in ("token_ids", "trained", "logprobs", "versions", "top_ids")]
    for array in [*shared, *(request.token_ids for request in requests)]:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"token_ids": np.array([1.5])}, r"turn 1: token_ids is array\(\[1.5\]\).*whole numbers"),
    ({"token_ids": [True]}, "whole numbers"),
    ({"token_ids": "ab"}, "token_ids is 'ab'"),
    ({"token_ids": None}, "token_ids is None"),
    ({"token_ids": [[3, 4]]}, "in one dimension"),
    ({"token_ids": []}, "token_ids is empty"),
    ({"token_ids": [3, -1]}, "token_ids has -1, expected ids from 0 to 999"),
    ({"token_ids": [1000]}, "token_ids has 1000, expected ids from 0 to 999"),
    ({"token_ids": [2**70]}, "whole numbers"),
    ({"token_ids": np.array([2**63 + 1], dtype=np.uint64)}, "expected ids from 0 to 999"),
    ({"token_ids": [3], "max_tokens": 0}, "max_tokens is 0, expected a whole number of at least 1"),
    ({"token_ids": [3], "max_tokens": 2.5}, "max_tokens is 2.5, expected a whole number"),
    ({"token_ids": [3], "max_tokens": True}, "max_tokens is True, expected a whole number"),
    ({"token_ids": [3], "parent": True}, "turn True has not been sampled"),
    ({"token_ids": [3], "parent": [0]}, r"turn \[0\] has not been sampled"),
    ({"token_ids": [[1], [2, 3]]}, "in one dimension"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG)
async def test_a_context_that_is_none_is_refused_and_the_session_goes_on(wrong: dict[str, Any], words: str) -> None:
    requests: list[SampleRequest] = []
    generate = limited(requests)
    await generate(Context(np.array([3, 999])))
    with pytest.raises(ValueError, match="prompt 'p', turn 1: .*" + words.removeprefix("turn 1: ")):
        await generate(Context(**wrong))
    assert len(requests) == 1
    assert isinstance(await generate(Context(np.array([]), parent=0, max_tokens=1)), Sampled)
