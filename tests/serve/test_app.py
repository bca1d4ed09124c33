"""The scoring server: exact at any temperature through every schema, and hard to upset."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import uvicorn

from limbeck.contract.bake import bake
from limbeck.errors import ModelError, RecipeError
from limbeck.models.causal_lm import CausalLM
from limbeck.records import ScoreRequest, request_of
from limbeck.serve import scorer as scorer_module
from limbeck.serve.app import make_app
from limbeck.serve.main import serve
from limbeck.serve.queue import QueueFullError, ScoringQueue
from limbeck.serve.scorer import Asked, Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire import binary
from limbeck.wire.score import WireError
from tests import tiny

TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(5, 100, 12 + 3 * n)) for n in range(5)]


V = tiny.VOCABULARY


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


def truth(lm: CausalLM, ids: tuple[int, ...], temperature: float) -> np.ndarray:
    """[L-1, V] log q_T by transformers itself."""
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits / temperature, dim=-1).numpy()


def of_tokens(rows: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    return rows[np.arange(len(ids) - 1), ids[1:]]


@asynccontextmanager
async def client(lm: CausalLM, scorer: Any = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = make_app(scorer or Scorer(lm), ServeSettings(**settings), "tiny 123")
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http,
    ):
        yield http


# What slime's and miles's reward functions have put there over time: 0, the rollout temperature, and a pinned 1 beside
# the field of servers that know one. A pinned 1 alone may be the rollout's, too.
HOOKS = {
    "zero": ({"temperature": 0}, {}),
    "the rollout's": ({"temperature": 0.7}, {}),
    "the scoring field": ({"temperature": 1.0}, {"input_logprob_temperature": 0.7}),
}


def hook_body(tokens: tuple[int, ...], hook: str) -> dict[str, Any]:
    sampling, more = HOOKS[hook]
    return {
        "input_ids": list(tokens),
        "sampling_params": {**sampling, "max_new_tokens": 0, "skip_special_tokens": False},
        "return_logprob": True, "logprob_start_len": 0, **more,
    }  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
async def test_slimes_unmodified_request_gets_q_at_the_rollout_temperature(lm: CausalLM, hook: str) -> None:
    """The body slime's reward function sends, and the way its post-processing reads the answer."""
    tokens = TEXTS[2]
    async with client(lm, temperature=0.7) as http:
        reward = (await http.post("/generate", json=hook_body(tokens, hook))).raise_for_status().json()
    scores = [item[0] for item in reward["meta_info"]["input_token_logprobs"][1:]][-5:]
    np.testing.assert_allclose(scores, of_tokens(truth(lm, tokens, 0.7), tokens)[-5:], atol=5e-5)
    assert reward["meta_info"]["input_logprob_temperature"] == 0.7


async def test_slimes_request_is_refused_where_its_temperature_is_anyones_guess(lm: CausalLM) -> None:
    """Answered at 1 it would train towards the wrong logits, and no metric would show it."""
    async with client(lm) as http:
        unknown = await http.post("/generate", json=hook_body(TEXTS[2], "zero"))
        assert (await http.post("/generate", json=hook_body(TEXTS[2], "the rollout's"))).status_code == 200
    async with client(lm, temperature=0.9) as http:
        another = await http.post("/generate", json=hook_body(TEXTS[2], "the rollout's"))
    assert (unknown.status_code, another.status_code) == (400, 400)
    assert "start this server with --temperature T" in unknown.json()["error"]["message"]
    assert "0.7, but this server was started with --temperature 0.9" in another.json()["error"]["message"]


async def test_a_one_beside_another_temperature_is_refused_unless_the_operator_says_what_it_means(lm: CausalLM) -> None:
    """slime's newest hook sends its rollout temperature, so its 1 is meant; older ones pinned a 1 at any."""
    body = hook_body(TEXTS[2], "zero") | {"sampling_params": {"temperature": 1.0, "max_new_tokens": 0}}
    async with client(lm, temperature=0.7) as http:
        refused = await http.post("/generate", json=body)
    assert refused.status_code == 400
    assert "is 1, but this server was started with --temperature 0.7" in refused.json()["error"]["message"]
    assert "--ignore-sampling-temperature" in refused.json()["error"]["message"]
    async with client(lm, temperature=0.7, ignore_sampling_temperature=True) as http:
        answered = await http.post("/generate", json=body)
    assert answered.json()["meta_info"]["input_logprob_temperature"] == 0.7


async def test_trls_request_is_answered_at_its_teacher_temperature(lm: CausalLM) -> None:
    """The body its asynchronous trainer sends to a teacher, after it has asked for the model's name."""
    tokens = TEXTS[2]
    async with client(lm) as http:
        name = (await http.get("/v1/models")).json()["data"][0]["id"]
        body = {"model": name, "prompt": list(tokens), "max_tokens": 1, "temperature": 0.7, "prompt_logprobs": 3}
        rows = (
            (await http.post("/v1/completions", json=body)).raise_for_status().json()["choices"][0]["prompt_logprobs"]
        )
    scores = [rows[i][str(token)]["logprob"] for i, token in enumerate(tokens) if i]
    np.testing.assert_allclose(scores, of_tokens(truth(lm, tokens, 0.7), tokens), atol=1e-5)


async def test_the_tokens_miles_lists_are_scored_at_every_position(lm: CausalLM) -> None:
    """miles with top tokens: the student's of all positions in one list, beside the teacher's own."""
    tokens, wanted = TEXTS[1], [7, 3, 50]
    body = {
        "input_ids": list(tokens),
        "sampling_params": {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False},
        "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 4, "token_ids_logprob": wanted,
    }  # fmt: skip
    async with client(lm, temperature=0.7) as http:
        meta = (await http.post("/generate", json=body)).raise_for_status().json()["meta_info"]
        refused = await http.post("/generate", json=body | {"token_ids_logprob": [V]})
    rows = meta["input_token_ids_logprobs"]
    expected = truth(lm, tokens, 0.7)
    assert rows[0] is None
    assert [[entry[1] for entry in row] for row in rows[1:]] == [wanted] * (len(tokens) - 1)
    np.testing.assert_allclose([[entry[0] for entry in row] for row in rows[1:]], expected[:, wanted], atol=5e-5)
    best = np.sort(expected, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose([[e[0] for e in row] for row in meta["input_top_logprobs"][1:]], best, atol=5e-5)
    assert "vocabulary has 100" in refused.text


async def test_a_text_and_a_list_of_prompts_are_answered_as_sglang_does(lm: CausalLM) -> None:
    common = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    async with client(lm) as http:
        one = (await http.post("/generate", json={"text": "12+34=46", **common})).json()
        two = (await http.post("/generate", json={"input_ids": [list(t) for t in TEXTS[:2]], **common})).json()
    assert [e[1] for e in one["meta_info"]["input_token_logprobs"]] == lm.tokenizer("12+34=46").input_ids
    for answer, ids in zip(two, TEXTS[:2], strict=True):
        values = [e[0] for e in answer["meta_info"]["input_token_logprobs"][1:]]
        np.testing.assert_allclose(values, of_tokens(truth(lm, ids, 1.0), ids), atol=5e-5)


@pytest.mark.parametrize("name", [None, "teacher", "tiny"])
async def test_a_client_of_vllm_may_name_the_model_as_it_was_loaded(lm: CausalLM, name: str | None) -> None:
    body = {"prompt": list(TEXTS[0]), "max_tokens": 1, "prompt_logprobs": 0, "model": name}
    async with client(lm) as http:
        answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    rows = answer["choices"][0]["prompt_logprobs"]
    values = [rows[i][str(TEXTS[0][i])]["logprob"] for i in range(1, len(rows))]
    np.testing.assert_allclose(values, of_tokens(truth(lm, TEXTS[0], 1.0), TEXTS[0]), atol=5e-5)


async def test_padding_and_company_do_not_change_an_answer(lm: CausalLM) -> None:
    asked = [Asked(request_of(ids, 1, t, 3)) for ids, t in zip(TEXTS, (0.5, 1, 2, 1, 3), strict=True)]
    together, alone = Scorer(lm).score(asked), Scorer(lm, budget=1, chunk_bytes=0).score(asked)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=5e-5)
        np.testing.assert_array_equal(a.top_ids, b.top_ids)


async def test_batch_invariant_answers_are_the_same_to_the_last_bit(lm: CausalLM) -> None:
    asked = [Asked(request_of(ids, 1, 0.7, 3)) for ids in TEXTS]
    scorer = Scorer(lm, batch_invariant=True)
    for one, together in zip(asked, scorer.score(asked), strict=True):
        (alone,) = scorer.score([one])
        np.testing.assert_array_equal(alone.logprobs, together.logprobs)
        np.testing.assert_array_equal(alone.top_logprobs, together.top_logprobs)


def test_only_the_scored_tokens_are_answered_for(lm: CausalLM) -> None:
    """A mask with holes, as of an agent's turns; given ids; states; and a sequence of which nothing is scored."""
    ids = TEXTS[3]
    mask = np.arange(len(ids)) % 3 == 1
    expected = truth(lm, ids, 0.7)[mask[1:]]
    of_sampled = ScoreRequest("r", np.array(ids), mask, 0.7)
    given = np.argsort(expected, axis=1)[:, :4].copy()
    plain, of_given, states, nothing, one_token = Scorer(lm).score(
        [
            Asked(of_sampled, listed=(7, 3)),
            Asked(replace(of_sampled, support=given)),
            Asked(replace(of_sampled, support="full")),
            Asked(request_of(ids, len(ids), 0.7, 5)),
            Asked(request_of(ids[:1], 1, 0.7), hidden=True),
        ]
    )
    np.testing.assert_allclose(plain.logprobs, expected[np.arange(mask.sum()), np.array(ids)[mask]], atol=5e-5)
    np.testing.assert_allclose(plain.listed, expected[:, [7, 3]], atol=5e-5)
    np.testing.assert_array_equal(of_given.top_ids, given)
    np.testing.assert_allclose(of_given.top_logprobs, np.take_along_axis(expected, given, 1), atol=5e-5)
    assert (plain.temperature, of_given.temperature, states.temperature) == (0.7, 0.7, 1.0)
    assert (states.logprobs, states.top_ids) == (None, None)
    with torch.inference_mode():
        logits = lm.head().logits(torch.from_numpy(states.hidden))
    np.testing.assert_allclose(torch.log_softmax(logits / 0.7, -1).numpy(), expected, atol=5e-5)
    assert (nothing.logprobs.shape, nothing.top_ids.shape, nothing.top_logprobs.shape) == ((0,), (0, 5), (0, 5))
    assert (one_token.logprobs.shape, len(one_token.hidden)) == ((0,), 1)


async def test_the_temperature_of_an_answer_is_the_one_that_was_divided_by(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never the one that was asked for: a scorer at fault is found out by every client that reads it."""
    real = scorer_module.score_hidden

    def at_one(head: Any, hidden: Any, ids: Any, temperature: float, *args: Any, **more: Any) -> Any:
        return real(head, hidden, ids, 1.0, *args, **more)

    monkeypatch.setattr(scorer_module, "score_hidden", at_one)
    request = request_of(TEXTS[0], 4, 0.7)
    async with client(lm) as http:
        body = {"input_ids": list(TEXTS[0]), "sampling_params": SCORE, "input_logprob_temperature": 0.7}
        meta = (await http.post("/generate", json=body)).json()["meta_info"]
        body = {"prompt": list(TEXTS[0]), "max_tokens": 1, "prompt_logprobs": 0, "prompt_logprobs_temperature": 0.7}
        completion = (await http.post("/v1/completions", json=body)).json()
        answer = (await http.post(binary.PATH, content=binary.write([request]))).content
    assert (meta["input_logprob_temperature"], completion["prompt_logprobs_temperature"]) == (1.0, 1.0)
    with pytest.raises(WireError, match=r"scored at temperature 1\.0, expected 0\.7"):
        binary.read(answer, [request])


def test_a_baked_model_is_refused_with_the_model_to_serve_instead(tmp_path: Path) -> None:
    """Its own answers are at T, so a client's temperature would divide twice; every probe would pass."""
    source = tiny.save(tmp_path / "source")
    bake(source, 0.7, tmp_path / "baked")
    with pytest.raises(ModelError, match=rf"baked for temperature 0\.7.* divided twice. Serve {source}: it is exact"):
        serve(str(tmp_path / "baked"), ServeSettings(), port=0)
    (tmp_path / "baked" / "limbeck_bake.json").unlink()
    with pytest.raises(ModelError, match="Serve the model it was made of"):
        serve(str(tmp_path / "baked"), ServeSettings(), port=0)


async def test_requests_that_wait_share_a_batch(lm: CausalLM) -> None:
    scorer = Scorer(lm)
    queue = ScoringQueue(scorer.score, 64, 10_000)
    asked = [Asked(request_of(TEXTS[0], 1, 1.0))]
    await asyncio.gather(*(queue.score(asked) for _ in range(20)))
    assert queue.batches <= 3
    await queue.close()


async def test_a_full_queue_says_when_to_come_back_and_closing_answers_what_waits(lm: CausalLM) -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(asked: Any) -> Any:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        return Scorer(lm).score(asked)

    queue = ScoringQueue(slow, capacity=2, tokens=1)
    asked = [Asked(request_of(TEXTS[0], 1, 1.0))]
    waiting = [asyncio.create_task(queue.score(asked)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFullError) as full:
        await queue.score(asked)
    assert full.value.retry_after >= 1
    closing = asyncio.create_task(queue.close())
    await asyncio.sleep(0)
    go.set()
    assert all(len(done) == 1 for done in await asyncio.gather(*waiting))
    await closing
    assert queue.depth == 0


class Slow:
    """A scorer that waits for `go`."""

    def __init__(self, lm: CausalLM) -> None:
        self.real, self.go = Scorer(lm), threading.Event()
        self.lm, self.head = self.real.lm, self.real.head
        self.asked = 0

    def score(self, asked: Any) -> Any:
        self.asked += len(asked)
        self.go.wait(60)
        return self.real.score(asked)


def body_of(count: int) -> dict[str, Any]:
    return {"input_ids": [list(TEXTS[0])] * count, "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}


async def test_429_carries_retry_after(lm: CausalLM) -> None:
    slow = Slow(lm)
    async with client(lm, slow, max_queue=3) as http:
        waiting = asyncio.create_task(http.post("/generate", json=body_of(2)))
        while not slow.asked:
            await asyncio.sleep(0.01)
        full = await http.post("/generate", json=body_of(2))
        slow.go.set()
        assert (await waiting).status_code == 200
        never = await http.post("/generate", json=body_of(4))
    assert full.status_code == 429
    assert float(full.headers["retry-after"]) >= 1
    assert never.status_code == 400  # there will never be room: coming back is no remedy
    assert "send fewer" in never.text


async def test_nothing_is_scored_for_a_client_that_left(lm: CausalLM) -> None:
    slow = Slow(lm)
    server = uvicorn.Server(uvicorn.Config(make_app(slow, ServeSettings(batch_tokens=1), "tiny"), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as http:
            first = asyncio.create_task(http.post("/generate", json=body_of(1)))
            while not slow.asked:
                await asyncio.sleep(0.01)
            gone = asyncio.create_task(http.post("/generate", json=body_of(1)))
            await waiting_sequences(http, 2)
            gone.cancel()  # closes the connection
            await waiting_sequences(http, 1)
            slow.go.set()
            assert (await first).status_code == 200
            assert (await http.post("/generate", json=body_of(1))).status_code == 200
        server.should_exit = True
        await serving
    assert slow.asked == 2


async def waiting_sequences(http: httpx.AsyncClient, count: int) -> None:
    """Until the server reports that so many wait or are being scored."""
    async with asyncio.timeout(30):
        while f"limbeck_queue_sequences {float(count)}" not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)


class Broken(Slow):
    def score(self, asked: Any) -> Any:
        raise MemoryError("no room for the logits")


class Overflowing(Slow):
    def score(self, asked: Any) -> Any:
        return [replace(r, logprobs=r.logprobs * np.nan) for r in self.real.score(asked)]


@pytest.mark.parametrize(("scorer", "message"), [(Broken, "no room for the logits"), (Overflowing, "not finite")])
async def test_a_fault_of_the_server_is_answered_and_counted(lm: CausalLM, scorer: Any, message: str) -> None:
    async with client(lm, scorer(lm)) as http:
        answer = await http.post("/generate", json=body_of(1))
        assert answer.status_code == 500
        assert message in answer.json()["error"]["message"]
        assert 'limbeck_requests_total{route="generate",status="500"} 1.0' in (await http.get("/metrics")).text


SCORE = {"max_new_tokens": 0}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/generate", {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 5}}, "only scores"),
        ("/generate", {"input_ids": [1, 2]}, "only scores"),
        ("/generate", {"input_ids": [], "sampling_params": SCORE}, "missing or empty"),
        ("/generate", {"input_ids": [1, 999], "sampling_params": SCORE}, "vocabulary has 100"),
        ("/generate", {"input_ids": [1, -1], "sampling_params": SCORE}, "vocabulary has 100"),
        ("/generate", {"input_ids": [1] * 200, "sampling_params": SCORE}, "more than the 64"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "top_logprobs_num": 101}, "up to 100"),
        (
            "/generate",
            {"input_ids": [1, 2], "sampling_params": SCORE, "logprob_start_len": 7},
            "logprob_start_len is 7, expected 0 to 1",
        ),
        (
            "/generate",
            {"input_ids": [1, 2], "sampling_params": SCORE, "input_logprob_temperature": 0},
            "from 0.001 to 1000",
        ),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "lora_path": "x"}, "something else"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "image_data": ["x"]}, "something else"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "return_hidden_states": "last"}, "true or false"),
        ("/generate", {"input_ids": [1, "a"], "sampling_params": SCORE}, "token ids"),
        ("/v1/completions", {"prompt": [1, 2], "max_tokens": 1}, "prompt_logprobs is missing"),
        ("/v1/completions", {"prompt": [1, 2], "max_tokens": 9, "prompt_logprobs": 1}, "only scores"),
        ("/v1/completions", {"prompt": [1, 2], "prompt_logprobs": 1, "model": "lora"}, "not served here"),
        ("/tokenize", {}, "must be text"),
    ],
)
async def test_a_request_that_cannot_be_scored_is_refused_by_name(
    lm: CausalLM, path: str, body: dict[str, Any], message: str
) -> None:
    async with client(lm) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
        for junk in (b"", b"[1]", b"{", b"\x80\x04K\x01.", b"[" * 100_000):
            assert (await http.post(path, content=junk)).status_code == 400
            assert (await http.post("/limbeck/score", content=junk)).status_code == 400
        assert (await http.get("/health")).json() == {"status": "ok"}


async def test_a_long_body_is_refused_before_it_is_held(lm: CausalLM) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 64:
            sent += 1
            yield b"x" * 2**20

    async with client(lm, body_mb=2) as http:
        answer = await http.post("/generate", content=endless())
    assert answer.status_code == 413
    assert "longer than 2 MB" in answer.text
    assert sent < 5


async def test_only_health_is_answered_without_the_token(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    async with client(lm, token_env="SERVER_TOKEN") as http:
        for path in ("/get_model_info", "/v1/models", "/metrics"):
            assert (await http.get(path)).status_code == 401
            right = {"authorization": "Bearer sesame"}
            assert (await http.get(path, headers=right)).status_code == 200
        for path in ("/generate", "/v1/completions", "/limbeck/score", "/tokenize"):
            assert (await http.post(path, json={}, headers={"authorization": "Bearer x"})).status_code == 401
        assert (await http.get("/health")).status_code == 200
    monkeypatch.delenv("SERVER_TOKEN")
    with pytest.raises(RecipeError, match="no such variable"):
        make_app(Scorer(lm), ServeSettings(token_env="SERVER_TOKEN"), "x")


async def test_metrics_count_requests_and_tokens(lm: CausalLM) -> None:
    body = {"input_ids": list(TEXTS[0]), "sampling_params": SCORE, "return_logprob": True, "logprob_start_len": 0}
    async with client(lm) as http:
        await http.post("/generate", json=body)
        await http.post("/generate", json={})
        text = (await http.get("/metrics")).text
    assert f"limbeck_tokens_total {float(len(TEXTS[0]))}" in text
    assert 'limbeck_requests_total{route="generate",status="200"} 1.0' in text
    assert 'limbeck_requests_total{route="generate",status="400"} 1.0' in text


@pytest.mark.parametrize(
    ("flag", "scoring", "sampling", "expected"),
    [
        (0.7, 0.3, 2.0, 0.3),
        (0.7, None, 0.7, 0.7),
        (0.7, None, 0.0, 0.7),
        (0.7, None, None, 0.7),
        (1.0, None, 1, 1.0),
        (None, None, 2.0, 2.0),
        (None, None, 1.0, 1.0),
        (None, None, None, 1.0),
    ],
)
def test_which_temperature_wins(flag: Any, scoring: Any, sampling: Any, expected: float) -> None:
    assert ServeSettings(temperature=flag).pick_temperature(scoring, sampling) == expected


@pytest.mark.parametrize(("scoring", "sampling", "expected"), [(None, 1.0, 0.7), (None, 2.0, 0.7), (0.3, 1.0, 0.3)])
def test_the_operator_may_say_that_the_sampling_field_means_nothing(
    scoring: Any, sampling: Any, expected: float
) -> None:
    settings = ServeSettings(temperature=0.7, ignore_sampling_temperature=True)
    assert settings.pick_temperature(scoring, sampling) == expected


@pytest.mark.parametrize(
    ("flag", "scoring", "sampling"),
    [
        (0.7, 0.0, None),
        (0.7, None, 0.9),
        (0.7, None, 1.0),
        (1.0, None, 0.7),
        (0.7, None, -1.0),
        (None, None, 0.0),
        (None, None, float("inf")),
    ],
)
def test_no_temperature_is_made_up(flag: Any, scoring: Any, sampling: Any) -> None:
    with pytest.raises(WireError):
        ServeSettings(temperature=flag).pick_temperature(scoring, sampling)
