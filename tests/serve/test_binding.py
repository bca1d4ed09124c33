"""Every answer of the scoring server is tied to its request, and names the weights and the temperature."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from limbeck.models.causal_lm import CausalLM
from limbeck.records import request_of
from limbeck.wire import binary
from limbeck.wire.binding import ANSWER, PROBLEM, REQUEST, Stamp, new_nonce, request_headers, verified_answer
from tests import tiny
from tests.serve.test_app import TEXTS, Broken, client

IDS = list(TEXTS[0])
SCORING = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 0}, "input_logprob_temperature": 0.7}
COMPLETION = {"prompt": IDS, "max_tokens": 1, "prompt_logprobs": 2, "prompt_logprobs_temperature": 0.7}


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


def dumped(body: Any) -> bytes:
    return json.dumps(body).encode()


# What is asked, and status and temperature of the answer.
ASKED: dict[str, tuple[str, str, bytes, int, float | None]] = {
    "sglang": ("POST", "/generate", dumped(SCORING), 200, 0.7),
    "sglang and states": ("POST", "/generate", dumped(SCORING | {"return_hidden_states": True}), 200, 0.7),
    "nothing scored": ("POST", "/generate", dumped(SCORING | {"logprob_start_len": -1}), 200, None),
    "vllm": ("POST", "/v1/completions", dumped(COMPLETION), 200, 0.7),
    "binary": ("POST", binary.PATH, binary.write([request_of(IDS, 4, 0.7, 3)]), 200, 0.7),
    "states": ("POST", binary.PATH, binary.write([request_of(IDS, 4, 1.0, "full")]), 200, None),
    "tokenize": ("POST", "/tokenize", dumped({"prompt": "12"}), 200, None),
    "health": ("GET", "/health", b"", 200, None),
    "head": ("HEAD", "/health", b"", 200, None),
    "info": ("GET", "/get_model_info", b"", 200, None),
    "models": ("GET", "/v1/models", b"", 200, None),
    "metrics": ("GET", "/metrics", b"", 200, None),
    "description": ("GET", "/openapi.json", b"", 200, None),
    "not there": ("GET", "/generat", b"", 404, None),
    "not so": ("GET", "/generate", b"", 405, None),
    "no request": ("POST", "/generate", b"{", 400, None),
    "too long": ("POST", "/generate", b" " * (2**20 + 1), 413, None),
}  # fmt: skip


async def ask(
    http: httpx.AsyncClient, method: str, path: str, body: bytes, key: bytes = b"", more: Mapping[str, str] = {}
) -> tuple[httpx.Response, str]:
    headers = request_headers(key, method, path, body, new_nonce())
    if method == "POST":
        headers["content-type"] = binary.MEDIA_TYPE if path == binary.PATH else "application/json"
    headers |= {"authorization": f"Bearer {key.decode()}"} if key else {}
    answer = await http.request(method, path, content=body, headers={**headers, **more})
    return answer, headers[REQUEST]


@pytest.mark.parametrize("key", [b"", b"sesame"])
@pytest.mark.parametrize("what", ASKED)
async def test_every_answer_is_bound(lm: CausalLM, what: str, key: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    method, path, body, status, temperature = ASKED[what]
    async with client(lm, body_mb=1, **({"token_env": "SERVER_TOKEN"} if key else {})) as http:
        answer, request = await ask(http, method, path, body, key)
    assert answer.status_code == status
    assert verified_answer(key, request, status, answer.content, answer.headers) == Stamp("123", temperature)


async def test_a_fault_and_a_wrong_token_are_bound_too(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token that the client sent: it knows no other."""
    async with client(lm, Broken(lm)) as http:
        answer, request = await ask(http, "POST", "/generate", dumped(SCORING))
        assert verified_answer(b"", request, 500, answer.content, answer.headers) == Stamp("123", None)
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    async with client(lm, token_env="SERVER_TOKEN") as http:
        answer, request = await ask(http, "POST", "/generate", dumped(SCORING), b"wrong")
        assert verified_answer(b"wrong", request, 401, answer.content, answer.headers) == Stamp("123", None)


async def test_a_client_that_sends_no_digest_gets_a_plain_answer(lm: CausalLM) -> None:
    async with client(lm) as http:
        for answer in (await http.get("/health"), await http.post("/generate", json=SCORING), await http.get("/x")):
            assert not [name for name in answer.headers if name.startswith("limbeck")]


@pytest.mark.parametrize("what", ["sglang", "vllm", "binary", "tokenize", "info", "health"])
async def test_a_request_that_was_damaged_on_the_way_is_sent_back(lm: CausalLM, what: str) -> None:
    method, path, body, *_ = ASKED[what]
    headers = request_headers(b"", method, path, body, new_nonce())
    media = {"content-type": binary.MEDIA_TYPE if path == binary.PATH else "application/json"}
    async with client(lm) as http:
        damages: list[tuple[str, str, bytes, dict[str, str]]] = [
            (method, path, body, headers | {"limbeck-nonce": new_nonce()}),
            (method, path, body, headers | {REQUEST: "0" * 64}),
            (method, path, body, {"limbeck-nonce": headers["limbeck-nonce"]}),
            (method, path, body, {REQUEST: headers[REQUEST]}),
            (method, path, body, headers | {"authorization": "Bearer other"}),
        ]
        if body:
            damages.append((method, path, body[:-1] + bytes([body[-1] ^ 1]), headers))
        if path != "/health" and method == "GET":
            damages.append((method, "/v1/models", body, headers))
        for damaged, where, content, sent in damages:
            answer = await http.request(damaged, where, content=content, headers=media | sent)
            assert (answer.status_code, answer.headers[PROBLEM]) == (400, "request")
            assert "does not fit its digest" in answer.json()["error"]["message"]


async def test_the_digest_is_keyed_where_there_is_a_token(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody without it can make one: not of a request, not of an answer."""
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    body = dumped(SCORING)
    async with client(lm, token_env="SERVER_TOKEN") as http:
        good, _ = await ask(http, "POST", "/generate", body, b"sesame")
        forged = request_headers(b"", "POST", "/generate", body, new_nonce())
        answer, _ = await ask(http, "POST", "/generate", body, b"sesame", forged)
    assert (good.status_code, answer.status_code, answer.headers[PROBLEM]) == (200, 400, "request")
    assert good.headers[ANSWER] != answer.headers[ANSWER]


# What stock servers repeat of a request, for clients that compare it.


async def test_sglangs_rid_and_prompt_ids_come_back(lm: CausalLM) -> None:
    async with client(lm) as http:

        async def sglang(**more: Any) -> Any:
            return (await http.post("/generate", json=SCORING | more)).raise_for_status().json()

        one = await sglang(rid="mine", return_prompt_token_ids=True)
        assert (one["meta_info"]["id"], one["prompt_token_ids"]) == ("mine", IDS)
        assert "prompt_token_ids" not in await sglang()
        two = await sglang(input_ids=[IDS, IDS[:5]], rid=["a", "b"], return_prompt_token_ids=True)
        assert [(x["meta_info"]["id"], x["prompt_token_ids"]) for x in two] == [("a", IDS), ("b", IDS[:5])]
        numbered = await sglang(input_ids=[IDS, IDS], rid="n")
        assert [x["meta_info"]["id"] for x in numbered] == ["n_0", "n_1"]
        text = await sglang(input_ids=None, text="12+34=", return_prompt_token_ids=True)
        assert text["prompt_token_ids"] == lm.tokenizer("12+34=").input_ids
        for rid in (7, "", "x" * 257, ["a"], ["a", 1], {"a": 1}):
            wrong = await http.post("/generate", json=SCORING | {"input_ids": [IDS, IDS], "rid": rid})
            assert wrong.status_code == 400
            assert "rid must be" in wrong.text


async def test_vllms_request_id_and_prompt_ids_come_back_and_the_model_as_it_was_named(lm: CausalLM) -> None:
    async with client(lm) as http:

        async def vllm(**more: Any) -> Any:
            return (await http.post("/v1/completions", json=COMPLETION | more)).raise_for_status().json()

        one = await vllm(request_id="mine", return_token_ids=True, model="tiny")
        assert (one["id"], one["model"], one["choices"][0]["prompt_token_ids"]) == ("cmpl-mine", "tiny", IDS)
        two = await vllm(prompt=[IDS, IDS[:4]], return_token_ids=True)
        assert two["id"] != one["id"]
        assert [choice["prompt_token_ids"] for choice in two["choices"]] == [IDS, IDS[:4]]
        assert (two["model"], "prompt_token_ids" in (await vllm())["choices"][0]) == ("teacher", False)
        for wrong in ({"request_id": 7}, {"request_id": "x" * 257}, {"return_token_ids": "yes"}, {"model": ["tiny"]}):
            assert (await http.post("/v1/completions", json=COMPLETION | wrong)).status_code == 400
