"""What waits is scored in turn, up to so many tokens at a time; 400 requests at once are queued, not refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from limbeck.models.causal_lm import CausalLM
from limbeck.records import request_of
from limbeck.serve.face import Room
from limbeck.serve.limits import Asked
from limbeck.serve.queue import QueueFullError, ScoringQueue
from limbeck.serve.scorer import Scorer
from limbeck.wire import binary
from limbeck.wire.binary import Result
from tests import tiny
from tests.serve.test_app import Slow, client, of_tokens, truth, waiting_sequences

NOTHING = Result(np.zeros(0, np.float32))


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


class Counted:
    """Scores nothing, and remembers the lengths of each batch. The first batch waits for `go`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, asked: Sequence[Asked]) -> list[Result]:
        self.batches.append([len(one.request.token_ids) for one in asked])
        self.go.wait(30)
        return [NOTHING] * len(asked)


async def in_turn(requests: Sequence[Sequence[int]], tokens: int = 100) -> tuple[list[list[int]], list[int]]:
    """Lengths of the batches after the first, and in which order the requests of these lengths were answered."""
    counted = Counted()
    queue = ScoringQueue(counted, 10_000, tokens)
    done: list[int] = []

    async def one(number: int, lengths: Sequence[int]) -> None:
        assert len(await queue.score([Asked(request_of(np.arange(n), 1, 1.0)) for n in lengths])) == len(lengths)
        done.append(number)

    first = asyncio.create_task(one(-1, [1]))
    while not counted.batches:
        await asyncio.sleep(0.001)
    waiting = [asyncio.create_task(one(number, lengths)) for number, lengths in enumerate(requests)]
    await asyncio.sleep(0)
    counted.go.set()
    await asyncio.gather(first, *waiting)
    await queue.close()
    assert queue.depth == queue.waiting_tokens == 0
    return counted.batches[1:], done[1:]


async def test_a_batch_is_filled_up_to_so_many_tokens_with_mixed_lengths() -> None:
    batches, _ = await in_turn([[60], [30], [10], [1], [99], [50], [50], [100], [101], [1]])
    assert batches == [[60, 30, 10], [1, 99], [50, 50], [100], [101], [1]]


async def test_a_request_of_many_sequences_keeps_no_other_waiting() -> None:
    """One client brings fifty sequences before ten others bring one each."""
    batches, done = await in_turn([[20] * 50, *[[20]] * 10])
    assert sorted(done[:10]) == list(range(1, 11))
    assert done[-1] == 0
    assert len(batches) == 12  # and no batch has room left while anything waits


async def test_a_long_sequence_waits_for_its_turn_and_no_longer() -> None:
    """Short ones that come after it do not overtake it for ever."""
    batches, _ = await in_turn([[10], [1000], *[[10]] * 40])
    assert batches[1] == [1000]


async def test_what_has_failed_is_not_scored_further(lm: CausalLM) -> None:
    """A request of which one sequence failed is answered with that, and its others leave the queue."""
    scored: list[int] = []

    def score(asked: Sequence[Asked]) -> list[Result]:
        if any(len(one.request.token_ids) == 7 for one in asked):
            raise MemoryError("too much")
        scored.extend(len(one.request.token_ids) for one in asked)
        return [NOTHING] * len(asked)

    queue = ScoringQueue(score, 100, 10)
    bad = [Asked(request_of(np.arange(n), 1, 1.0)) for n in (7, *[5] * 20)]
    good = [Asked(request_of(np.arange(3), 1, 1.0))]
    outcomes = await asyncio.gather(queue.score(bad), queue.score(good), return_exceptions=True)
    assert isinstance(outcomes[0], MemoryError)
    assert outcomes[1] == [NOTHING]
    await queue.close()
    assert len(scored) < 10
    assert queue.depth == 0


async def test_400_requests_at_once_are_all_answered_and_right(lm: CausalLM) -> None:
    rng = np.random.default_rng(0)
    texts = [tuple(int(i) for i in rng.integers(5, 100, int(n))) for n in rng.integers(3, tiny.CONTEXT, 400)]
    async with client(lm) as http:
        bodies = [binary.write([request_of(ids, 1, 0.7)]) for ids in texts]
        answers = await asyncio.gather(*(http.post(binary.PATH, content=body) for body in bodies))
    assert {answer.status_code for answer in answers} == {200}
    for ids, answer in list(zip(texts, answers, strict=True))[::40]:
        (reply,) = binary.read(answer.content, [request_of(ids, 1, 0.7)])
        np.testing.assert_allclose(reply.logprobs, of_tokens(truth(lm, ids, 0.7), ids), atol=5e-5)


async def test_beyond_the_queue_the_refusal_names_the_key_and_when_to_come_back(lm: CausalLM) -> None:
    slow = Slow(lm)
    body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
    async with client(lm, slow, max_queue=5) as http:
        waiting = [asyncio.create_task(http.post("/generate", json=body)) for _ in range(5)]
        await waiting_sequences(http, 5)
        refused = await http.post("/generate", json=body)
        assert (await http.get("/health")).status_code == 200
        slow.go.set()
        assert {(await task).status_code for task in waiting} == {200}
        assert (await http.post("/generate", json=body)).status_code == 200
    assert refused.status_code == 429
    assert 1 <= float(refused.headers["retry-after"]) <= 60
    assert "5 sequences of 5 at most wait (--max-queue)" in refused.text


async def test_retry_after_follows_the_tokens_that_wait() -> None:
    counted = Counted()
    queue = ScoringQueue(counted, 2, 100)
    queue.seconds_a_token = 0.01
    waiting = [asyncio.create_task(queue.score([Asked(request_of(np.arange(900), 1, 1.0))])) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as full:
        await queue.score([Asked(request_of(np.arange(2), 1, 1.0))])
    assert full.value.retry_after == 18
    counted.go.set()
    await asyncio.gather(*waiting)
    await queue.close()


async def test_answers_that_do_not_fit_into_memory_together_wait_for_each_other(lm: CausalLM) -> None:
    """Twelve requests of 0.9 MB of JSON each, where eight megabytes are held at most: they used to be refused."""
    body = {"input_ids": [[5] * 60] * 17, "sampling_params": {"max_new_tokens": 0}, "return_hidden_states": True}
    async with client(lm, answer_mb=1) as http:
        answers = await asyncio.gather(*(http.post("/generate", json=body) for _ in range(12)))
    assert {answer.status_code for answer in answers} == {200}


async def test_small_answers_do_not_wait_for_large_ones(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that do not read their large answers hold the room of those alone."""
    rooms: list[Room] = []
    real = Room.__init__

    def kept(self: Room, most: int, option: str) -> None:
        real(self, most, option)
        rooms.append(self)

    monkeypatch.setattr(Room, "__init__", kept)
    async with client(lm) as http:
        large = max((room for room in rooms if room.option == "--answer-mb"), key=lambda room: room.most)
        with large.share() as share:
            await share.wait(large.most)
            small = await http.post(binary.PATH, content=binary.write([request_of([5, 6, 7], 1, 0.7)]))
            assert small.status_code == 200
            assert large.held == large.most


@pytest.mark.parametrize("length", [5, 40])
def test_a_score_does_not_depend_on_what_it_is_batched_with(lm: CausalLM, length: int) -> None:
    rng = np.random.default_rng(length)
    one = Asked(request_of(rng.integers(5, 100, length), 2, 0.7, 5))
    others = [Asked(request_of(rng.integers(5, 100, int(n)), 1, 1.3)) for n in rng.integers(2, tiny.CONTEXT, 20)]
    scorer = Scorer(lm)
    (alone,) = scorer.score([one])
    among = scorer.score([*others[:7], one, *others[7:]])[7]
    np.testing.assert_array_equal(alone.top_ids, among.top_ids)
    np.testing.assert_allclose(alone.logprobs, among.logprobs, atol=1e-5)
    np.testing.assert_allclose(alone.top_logprobs, among.top_logprobs, atol=1e-5)
