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

from limbeck.config.base import ModelConfig
from limbeck.config.teacher import LimbeckTeacherConfig, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.probes import continuations, logprobs_of_sampled, probe_rollout
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.serve.app import make_app
from limbeck.serve.queue import QueueFullError, ScoringQueue
from limbeck.serve.scorer import Asked, Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.teachers.connect import remote_teacher
from limbeck.wire.score import Question, WireError
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


# What slime's and miles's reward functions have put there over time: 0, the rollout temperature, a pinned 1, and
# the pinned 1 beside the field of servers that know one.
HOOKS = {
    "zero": ({"temperature": 0}, {}),
    "the rollout's": ({"temperature": 0.7}, {}),
    "one": ({"temperature": 1.0}, {}),
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
    np.testing.assert_allclose(scores, of_tokens(truth(lm, tokens, 0.7), tokens)[-5:], atol=1e-5)
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
    np.testing.assert_allclose([[entry[0] for entry in row] for row in rows[1:]], expected[:, wanted], atol=1e-5)
    best = np.sort(expected, axis=1)[:, ::-1][:, :4]
    np.testing.assert_allclose([[e[0] for e in row] for row in meta["input_top_logprobs"][1:]], best, atol=1e-5)
    assert "vocabulary has 100" in refused.text


async def test_a_text_and_a_list_of_prompts_are_answered_as_sglang_does(lm: CausalLM) -> None:
    common = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": 0}
    async with client(lm) as http:
        one = (await http.post("/generate", json={"text": "12+34=46", **common})).json()
        two = (await http.post("/generate", json={"input_ids": [list(t) for t in TEXTS[:2]], **common})).json()
    assert [e[1] for e in one["meta_info"]["input_token_logprobs"]] == lm.tokenizer("12+34=46").input_ids
    for answer, ids in zip(two, TEXTS[:2], strict=True):
        values = [e[0] for e in answer["meta_info"]["input_token_logprobs"][1:]]
        np.testing.assert_allclose(values, of_tokens(truth(lm, ids, 1.0), ids), atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("section", "method"),
    [
        (LimbeckTeacherConfig(url="http://server"), "native"),
        (SGLangTeacherConfig(url="http://server"), "native"),
        (VLLMTeacherConfig(url="http://server"), "native"),
        (LimbeckTeacherConfig(url="http://server", head="here"), "hidden"),
        (SGLangTeacherConfig(url="http://server", head="here"), "hidden"),
    ],
)
async def test_our_own_clients_prove_it_and_get_the_truth(
    lm: CausalLM, section: Any, method: str, temperature: float
) -> None:
    head = lm.head() if method == "hidden" else None
    teacher = remote_teacher("t", section, V, V, 0 if head else 7, head)
    app = make_app(Scorer(lm), ServeSettings(), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        verdicts = await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), temperature, lm.tokenizer)
        assert all(v.ok for v in verdicts)
        assert teacher.method == method
        rollouts = [probe_rollout(ids[:4], ids[4:], temperature) for ids in TEXTS]
        for scores, ids, rollout in zip(await teacher.score(rollouts), TEXTS, rollouts, strict=True):
            expected = of_tokens(truth(lm, ids, temperature), ids)[3:]
            np.testing.assert_allclose(logprobs_of_sampled(scores, rollout), expected, atol=2e-5)
        await teacher.close()


async def test_states_under_another_models_head_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    other = load_model(ModelConfig(model=tiny.save(tmp_path, seed=1)), torch.device("cpu")).head()
    teacher = remote_teacher("t", SGLangTeacherConfig(url="http://server", head="other"), V, V, 0, other)
    app = make_app(Scorer(lm), ServeSettings(), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        with pytest.raises(ContractError, match=r"hidden states under the head of 'other' are .* another model"):
            await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), 0.7, lm.tokenizer)
        await teacher.close()


@pytest.mark.parametrize("kind", [SGLangTeacherConfig, VLLMTeacherConfig, LimbeckTeacherConfig])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_a_server_with_a_temperature_of_its_own_is_asked_by_name(
    lm: CausalLM, kind: Any, temperature: float
) -> None:
    """As the drop-ins meet it: `limbeck serve --temperature 0.7`, which answers unasked at 0.7."""
    teacher = remote_teacher("t", kind(url="http://server"), V, V, 5)
    app = make_app(Scorer(lm), ServeSettings(temperature=0.7), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), temperature)
        assert teacher.method == "native"
        (scores,) = await teacher.score([probe_rollout(TEXTS[0][:4], TEXTS[0][4:], temperature)])
        expected = of_tokens(truth(lm, TEXTS[0], temperature), TEXTS[0])[3:]
        np.testing.assert_allclose(scores.logprobs_of_sampled, expected, atol=2e-5)
        await teacher.close()


@pytest.mark.parametrize("name", [None, "teacher", "tiny"])
async def test_a_client_of_vllm_may_name_the_model_as_it_was_loaded(lm: CausalLM, name: str | None) -> None:
    body = {"prompt": list(TEXTS[0]), "max_tokens": 1, "prompt_logprobs": 0, "model": name}
    async with client(lm) as http:
        answer = (await http.post("/v1/completions", json=body)).raise_for_status().json()
    rows = answer["choices"][0]["prompt_logprobs"]
    values = [rows[i][str(TEXTS[0][i])]["logprob"] for i in range(1, len(rows))]
    np.testing.assert_allclose(values, of_tokens(truth(lm, TEXTS[0], 1.0), TEXTS[0]), atol=1e-5)


async def test_padding_and_company_do_not_change_an_answer(lm: CausalLM) -> None:
    asked = [Asked(Question(np.array(ids), 1, top_k=3), t) for ids, t in zip(TEXTS, (0.5, 1, 2, 1, 3), strict=True)]
    together, alone = Scorer(lm).score(asked), Scorer(lm, budget=1, chunk_mb=0).score(asked)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
        np.testing.assert_array_equal(a.top_ids, b.top_ids)


async def test_requests_that_wait_share_a_batch(lm: CausalLM) -> None:
    scorer = Scorer(lm)
    queue = ScoringQueue(scorer.score, 64, 64)
    asked = [Asked(Question(np.array(TEXTS[0]), 1), 1.0)]
    await asyncio.gather(*(queue.score(asked) for _ in range(20)))
    assert queue.batches <= 3
    await queue.close()


async def test_a_full_queue_says_when_to_come_back_and_closing_answers_what_waits(lm: CausalLM) -> None:
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(asked: Any) -> Any:
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        return Scorer(lm).score(asked)

    queue = ScoringQueue(slow, capacity=2, most=1)
    asked = [Asked(Question(np.array(TEXTS[0]), 1), 1.0)]
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
    async with client(lm, slow, queue=3) as http:
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
    server = uvicorn.Server(uvicorn.Config(make_app(slow, ServeSettings(batch=1), "tiny"), log_level="warning"))
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
    """Until the server says that so many wait or are being scored."""
    async with asyncio.timeout(30):
        while f"limbeck_queue_sequences {float(count)}" not in (await http.get("/metrics")).text:
            await asyncio.sleep(0.01)


class Broken(Slow):
    def score(self, asked: Any) -> Any:
        raise MemoryError("no room for the logits")


class Overflowing(Slow):
    def score(self, asked: Any) -> Any:
        return [replace(r, logprobs=r.logprobs * np.nan) for r in self.real.score(asked)]


@pytest.mark.parametrize(("scorer", "says"), [(Broken, "no room for the logits"), (Overflowing, "not finite")])
async def test_a_fault_of_the_server_is_told_and_counted(lm: CausalLM, scorer: Any, says: str) -> None:
    async with client(lm, scorer(lm)) as http:
        answer = await http.post("/generate", json=body_of(1))
        assert answer.status_code == 500
        assert says in answer.json()["error"]["message"]
        assert 'limbeck_requests_total{route="generate",status="500"} 1.0' in (await http.get("/metrics")).text


SCORE = {"max_new_tokens": 0}


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/generate", {"input_ids": [1, 2], "sampling_params": {"max_new_tokens": 5}}, "only scores"),
        ("/generate", {"input_ids": [1, 2]}, "only scores"),
        ("/generate", {"input_ids": [], "sampling_params": SCORE}, "missing or empty"),
        ("/generate", {"input_ids": [1, 999], "sampling_params": SCORE}, "vocabulary has 100"),
        ("/generate", {"input_ids": [1, -1], "sampling_params": SCORE}, "vocabulary has 100"),
        ("/generate", {"input_ids": [1] * 200, "sampling_params": SCORE}, "more than the 64"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "top_logprobs_num": 101}, "up to 100"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "logprob_start_len": 7}, "start must be"),
        ("/generate", {"input_ids": [1, 2], "sampling_params": SCORE, "input_logprob_temperature": 0}, "above 0"),
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
    lm: CausalLM, path: str, body: dict[str, Any], says: str
) -> None:
    async with client(lm) as http:
        answer = await http.post(path, json=body)
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]
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
    assert answer.status_code == 400
    assert "longer than 2 MB" in answer.text


async def test_only_health_is_told_without_the_token(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
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
    with pytest.raises(ModelError, match="no such variable"):
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
        (0.7, None, 1.0, 0.7),
        (None, None, 2.0, 2.0),
        (None, None, None, 1.0),
    ],
)
def test_which_temperature_wins(flag: Any, scoring: Any, sampling: Any, expected: float) -> None:
    assert ServeSettings(temperature=flag).pick_temperature(scoring, sampling) == expected


@pytest.mark.parametrize(
    ("flag", "scoring", "sampling"),
    [(0.7, 0.0, None), (0.7, None, 0.9), (0.7, None, -1.0), (None, None, 0.0), (None, None, float("inf"))],
)
def test_no_temperature_is_made_up(flag: Any, scoring: Any, sampling: Any) -> None:
    with pytest.raises(WireError):
        ServeSettings(temperature=flag).pick_temperature(scoring, sampling)


def test_a_folder_with_other_weights_has_another_fingerprint(tmp_path: Path, lm: CausalLM) -> None:
    from limbeck.serve.main import fingerprint

    other = load_model(ModelConfig(model=str(tiny.save(tmp_path, seed=1))), torch.device("cpu"))
    assert fingerprint(lm) == fingerprint(lm) != fingerprint(other)
