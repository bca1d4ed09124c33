"""What a request may ask is judged before any work is done, and what requests hold together is bounded."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from limbeck.models.causal_lm import CausalLM
from limbeck.records import request_of
from limbeck.serve import answers, questions
from limbeck.serve.codec import SMALL, Codec
from limbeck.serve.face import PACE, Incoming, RefusedError, Room
from limbeck.serve.limits import CHARACTERS, MB, Asked, Limits
from limbeck.serve.queue import QueueFullError, ScoringQueue
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire import binary
from limbeck.wire.score import WireError
from tests import tiny
from tests.serve.test_app import V, client
from tests.serve.test_faults import COMPLETION, IDS, SCORING, message_of

LIMITS = Limits(ServeSettings(), V, tiny.CONTEXT, 32, "tiny 123")


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


# Limits: each names the value, what it may be, and the option or the other way.


@pytest.mark.parametrize(
    ("path", "body", "parts"),
    [
        ("/generate", SCORING | {"input_ids": None, "text": "1" * 1025}, ("1025", "1024", "send token ids")),
        ("/v1/completions", COMPLETION | {"prompt": ["1", "1" * 2000]}, ("2000", "1024", "send token ids")),
        ("/tokenize", {"prompt": "1" * 900_000}, ("900000", "1024")),
        ("/generate", SCORING | {"token_ids_logprob": [5] * 4000}, ("2 MB", "1 MB", "--answer-mb", "listed")),
        ("/generate", SCORING | {"input_ids": [[5] * 60] * 9, "top_logprobs_num": 50}, ("1 MB", "--answer-mb")),
        ("/v1/completions", COMPLETION | {"prompt": [[5] * 60] * 9, "prompt_logprobs": 50}, ("3 MB", "--answer-mb")),
        ("/generate", SCORING | {"input_ids": [[5] * 60] * 30, "return_hidden_states": True}, ("--answer-mb",)),
        ("/generate", SCORING | {"input_ids": [[5, 6]] * 41}, ("41", "40", "--max-queue")),
        ("/generate", SCORING | {"input_ids": [5] * 65}, ("65", "64")),
        ("/generate", SCORING | {"top_logprobs_num": 51}, ("51", "50", "--max-top-k")),
    ],
)
async def test_a_limit_names_value_limit_and_remedy(lm: CausalLM, path: str, body: Any, parts: tuple[str, ...]) -> None:
    async with client(lm, answer_mb=1, max_queue=40, max_top_k=50) as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == 400
    assert all(part in message_of(answer) for part in parts), message_of(answer)


async def test_nothing_is_tokenized_or_scored_of_what_is_refused(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[Any] = []
    monkeypatch.setattr(Scorer, "score", lambda self, asked: work.append(asked))
    monkeypatch.setattr(type(lm.tokenizer), "__call__", lambda self, *args, **more: work.append(args))
    async with client(lm, answer_mb=1) as http:
        for body in (
            {"text": "1" * 2**20},
            {"text": ["1", "1" * 2000]},
            {"input_ids": IDS, "token_ids_logprob": [5] * 50_000},
        ):
            answer = await http.post("/generate", json={"sampling_params": {"max_new_tokens": 0}, **body})
            assert answer.status_code == 400
    assert not work


def test_a_text_may_be_as_long_as_the_context_and_no_longer_than_a_tokenizer_can_take() -> None:
    Limits(ServeSettings(), V, 8192, 32, "x").check_text("a" * 8192 * 16, "it")
    with pytest.raises(WireError, match=f"more than the {CHARACTERS} this server tokenizes"):
        Limits(ServeSettings(), V, 2**20, 32, "x").check_text("a" * (CHARACTERS + 1), "it")


ANY_FLOAT = st.floats(-1e4, 0, width=32)


@settings(max_examples=60, deadline=None)
@given(
    schema=st.sampled_from(["sglang", "vllm", "binary"]), rows=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    k=st.sampled_from([0, 1, 7]), listed=st.lists(st.integers(0, 2**31 - 1), max_size=3), states=st.booleans(),
    echo=st.booleans(), value=ANY_FLOAT, name=st.text(min_size=1, max_size=256),
)  # fmt: skip
@example("sglang", [9] * 3, 7, [2**31 - 1] * 3, True, True, -1.2345678806304932e-38, "\U0010ffff" * 256)
def test_no_answer_is_longer_than_was_foreseen(
    schema: Any, rows: list[int], k: int, listed: list[int], states: bool, echo: bool, value: float, name: str
) -> None:
    """The bound is what the memory of the server hangs on."""
    limits = Limits(ServeSettings(), 2**31, None, 5, "tiny 123")
    only = schema == "binary" and states
    question = questions.Question(
        schema, [(np.full(n, 2**31 - 1), 1) for n in rows], "m", 0.7, k, tuple(listed) if schema == "sglang" else (),
        "only" if only else "too" if states and schema == "sglang" else "none", True, [name] * len(rows), echo,
    )  # fmt: skip
    asked, cost = questions.prepare(question, lambda *_: [], limits)
    results = []
    for one in asked:
        n = len(one.request.scored_ids)
        of = lambda *shape: np.full(shape, value, np.float32)
        hidden = of(n + 1, 5) if one.hidden or only else None
        tops = (np.tile(np.arange(2**31 - k, 2**31), (n, 1)), of(n, k)) if k and not only else (None, None)
        results.append(
            binary.Result(None if only else of(n), *tops, hidden, of(n, len(one.listed)) if one.listed else None, 0.7)
        )
    assert len(answers.write(question, asked, results)) <= cost.answer


# Memory.


def test_requests_together_hold_no_more_than_there_is_room_for() -> None:
    room = Room(100, "--body-mb")
    with room.share() as first, room.share() as second:
        first.take(60)
        with pytest.raises(QueueFullError, match=r"room for no more \(--body-mb\)"):
            second.take(41)
        second.take(40)
    assert room.held == 0


async def test_who_waits_for_room_has_it_in_turn_and_leaves_none_behind() -> None:
    room = Room(100, "--answer-mb")
    order: list[str] = []

    async def one(name: str, count: int, done: asyncio.Event) -> None:
        with room.share() as share:
            await share.wait(count)
            order.append(name)
            await done.wait()

    ends = {name: asyncio.Event() for name in "abcd"}
    tasks = {}
    for name, count in {"a": 60, "b": 500, "c": 10, "d": 10}.items():  # b needs more than there is: all of it
        tasks[name] = asyncio.create_task(one(name, count, ends[name]))
        await asyncio.sleep(0)
    assert order == ["a"]  # c and d would fit, and b would wait for ever
    tasks["c"].cancel()
    for name in "abd":
        ends[name].set()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert order == ["a", "b", "d"]
    assert (room.held, len(room._waiting)) == (0, 0)


async def test_a_body_that_there_is_no_room_for_is_429_and_gives_back_what_it_took() -> None:
    room = Room(2**20, "--body-mb")

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 2**18, "more_body": True}

    with room.share() as share:
        incoming = Incoming({"method": "POST", "path": "/generate", "headers": []}, receive, share, ExitStack())
        with pytest.raises(QueueFullError):
            await incoming.read(2**30)
    assert room.held == 0


async def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.serve.face.GRACE", 0.1)
    sent = 0

    async def receive() -> Any:
        nonlocal sent
        sent += 1
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    with Room(2**20, "--body-mb").share() as share:
        incoming = Incoming({"method": "POST", "path": "/generate", "headers": []}, receive, share, ExitStack())
        with pytest.raises(RefusedError, match="too slowly") as refused:
            await incoming.read(2**20)
    assert refused.value.status == 408
    assert 1 < sent < 50 + 1 / PACE


# Large bodies take another process, whose every outcome comes back.


@pytest.fixture(scope="module")
def codec() -> Any:
    one = Codec(600 * MB)
    yield one
    one.close()


async def test_a_large_body_is_read_and_a_large_answer_written_elsewhere_and_no_different(codec: Codec) -> None:
    body = json.dumps(SCORING | {"input_ids": [IDS] * 3, "pad": " " * SMALL}).encode()
    here, there = [await codec.run(size, questions.read, "sglang", body, LIMITS) for size in (1, len(body))]
    assert [rows.tolist() for rows, _ in here.rows] == [rows.tolist() for rows, _ in there.rows] == [IDS] * 3
    asked, _ = questions.prepare(there, lambda *_: [], LIMITS)
    results = Scorer(tiny.fresh()).score(asked)
    one, other = [json.loads(await codec.run(size, answers.write, there, asked, results)) for size in (1, 10**6)]
    for answer in (*one, *other):
        answer["meta_info"].pop("id")
    assert one == other


async def test_a_refusal_there_is_one_here(codec: Codec) -> None:
    for body in (
        b"[" * (SMALL + 1),
        b'{"input_ids":[' + b'"1",' * SMALL + b'"1"]}',
        json.dumps(SCORING | {"stream": 1}).encode(),
    ):
        with pytest.raises(WireError) as refused:
            await codec.run(SMALL + 1, questions.read, "sglang", body, LIMITS)
        assert refused.value.kind in ("malformed", "refused")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
async def test_a_body_that_becomes_too_much_in_memory_is_refused_there_and_harms_nothing() -> None:
    codec = Codec(300 * MB)
    bomb = b"\xdd" + (15 * MB).to_bytes(4, "big") + b"\x90" * (15 * MB)  # 15 million empty lists
    with pytest.raises(WireError, match=r"MemoryError|not msgpack"):
        await codec.run(len(bomb), questions.read, "binary", bomb, LIMITS)
    body = binary.write([request_of(IDS, 4, 0.7)])
    assert len((await codec.run(SMALL + 1, questions.read, "binary", body, LIMITS)).rows) == 1
    codec.close()


async def test_a_process_that_ends_is_started_again(codec: Codec) -> None:
    body = json.dumps(SCORING).encode()
    await codec.run(SMALL + 1, questions.read, "sglang", body, LIMITS)
    process = codec._worker._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="ended"):
        await codec.run(SMALL + 1, questions.read, "sglang", body, LIMITS)
    assert len((await codec.run(SMALL + 1, questions.read, "sglang", body, LIMITS)).rows) == 1


async def test_health_is_answered_while_large_bodies_are_read(lm: CausalLM) -> None:
    body = b'{"text":[' + b"[]," * 2_000_000 + b"[]]}"
    async with client(lm) as http:
        await http.post("/generate", content=b'{"text":[' + b"[]," * SMALL + b"[]]}")  # starts the process
        reading = [asyncio.create_task(http.post("/generate", content=body)) for _ in range(3)]
        await asyncio.sleep(0.05)
        waits = []
        while not all(task.done() for task in reading):
            start = time.perf_counter()
            assert (await http.get("/health")).status_code == 200
            waits.append(time.perf_counter() - start)
            await asyncio.sleep(0.005)
        assert [(await task).status_code for task in reading] == [400] * 3
    assert len(waits) > 5
    assert float(np.median(waits)) < 0.05


async def test_one_request_that_cannot_be_scored_fails_alone(lm: CausalLM) -> None:
    real = Scorer(lm)

    def score(asked: Any) -> Any:
        if any(one.listed for one in asked):
            raise MemoryError("too much")
        return real.score(asked)

    queue = ScoringQueue(score, 64, 10_000)
    good, bad = [Asked(request_of(IDS, 1, 1.0))], [Asked(request_of(IDS, 1, 1.0), (5,))]
    outcomes = await asyncio.gather(*(queue.score(one) for one in (good, bad, good)), return_exceptions=True)
    assert [isinstance(outcome, MemoryError) for outcome in outcomes] == [False, True, False]
    await queue.close()
    assert queue.depth == 0
