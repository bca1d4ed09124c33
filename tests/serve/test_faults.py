"""A request at fault is told so: 400, never 500, whatever the bytes are."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.models.causal_lm import CausalLM
from limbeck.records import request_of
from limbeck.wire import binary
from tests import tiny
from tests.serve.test_app import TEXTS, client

IDS = list(TEXTS[0])
SCORING = {"input_ids": IDS, "sampling_params": {"max_new_tokens": 0}}
COMPLETION = {"prompt": IDS, "max_tokens": 1, "prompt_logprobs": 2}


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


def message_of(answer: httpx.Response) -> str:
    text: str = answer.json()["error"]["message"]
    return text


HUGE = int("9" * 400)
FAULTS: dict[str, tuple[str, bytes]] = {
    name: (path, body if isinstance(body, bytes) else json.dumps(body).encode())
    for name, (path, body) in {
        "lone surrogate": ("/generate", SCORING | {"input_ids": None, "text": "ab\ud800"}),
        "lone surrogate of vllm": ("/v1/completions", COMPLETION | {"prompt": ["ok", "\udfff"]}),
        "lone surrogate to split": ("/tokenize", {"prompt": "\ud800"}),
        "surrogate in a name": ("/v1/completions", COMPLETION | {"model": "\ud800\x1b[31m"}),
        "raw surrogate bytes": ("/tokenize", b'{"prompt":"\xed\xa0\x80"}'),
        "400 digits": ("/generate", SCORING | {"input_logprob_temperature": HUGE}),
        "400 digits as sampling": (
            "/generate", SCORING | {"sampling_params": {"max_new_tokens": 0, "temperature": HUGE}},
        ),
        "400 digits of vllm": ("/v1/completions", COMPLETION | {"prompt_logprobs_temperature": HUGE}),
        "5000 digits": ("/generate", b'{"input_ids":[1,2],"top_logprobs_num":' + b"9" * 5000 + b"}"),
        "a huge start": ("/generate", SCORING | {"logprob_start_len": HUGE}),
        "a huge top": ("/generate", SCORING | {"top_logprobs_num": HUGE}),
        "a huge top of vllm": ("/v1/completions", COMPLETION | {"prompt_logprobs": HUGE}),
        "huge new tokens": ("/generate", SCORING | {"sampling_params": {"max_new_tokens": HUGE}}),
        "a huge id": ("/generate", SCORING | {"input_ids": [HUGE, 1]}),
        "a huge listed id": ("/generate", SCORING | {"token_ids_logprob": [HUGE]}),
        "a negative top": ("/v1/completions", COMPLETION | {"prompt_logprobs": -1}),
        "subnormal": ("/generate", SCORING | {"input_logprob_temperature": 1e-320}),
        "too cold": ("/generate", SCORING | {"input_logprob_temperature": 0.0009}),
        "too hot": ("/v1/completions", COMPLETION | {"temperature": 1e300}),
        "negative zero": ("/generate", SCORING | {"input_logprob_temperature": -0.0}),
        "NaN": ("/generate", SCORING | {"input_logprob_temperature": float("nan")}),
        "infinity": ("/generate", SCORING | {"sampling_params": {"max_new_tokens": 0, "temperature": float("inf")}}),
        "1e999": ("/generate", b'{"input_ids":[5,6],"sampling_params":{"max_new_tokens":0,"temperature":1e999}}'),
        "a temperature of text": ("/generate", SCORING | {"input_logprob_temperature": "0.7"}),
        "a true temperature": ("/generate", SCORING | {"input_logprob_temperature": True}),
        "lists for numbers": ("/generate", SCORING | {"logprob_start_len": [], "top_logprobs_num": {}}),
        "nested": ("/generate", b'{"input_ids":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
        "objects nested": ("/generate", b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
        "UTF-16": ("/generate", json.dumps(SCORING).encode("utf-16")),
        "a byte order mark": ("/generate", b"\xef\xbb\xbf" + json.dumps(SCORING).encode()),
        "a model of lists": ("/v1/completions", COMPLETION | {"model": [["x"]]}),
        "msgpack: subnormal": (binary.PATH, binary.write([request_of(IDS, 4, 1e-320)])),
        "msgpack: infinite": (binary.PATH, binary.write([request_of(IDS, 4, float("inf"))])),
        "msgpack: a temperature of 64 bits": (
            binary.PATH, msgpack.packb({"format": binary.FORMAT, "temperature": 2**64 - 1, "sequences": []}),
        ),
        "msgpack: start beyond": (
            binary.PATH, msgpack.packb({"format": binary.FORMAT, "sequences": [{"ids": b"\1\0\0\0", "start": 2**63}]}),
        ),
        "msgpack: nested": (binary.PATH, b"\x91" * 60_000 + b"\x90"),
        "msgpack: a map of maps": (binary.PATH, b"\x81" * 60_000 + b"\x80"),
        "msgpack: cut": (binary.PATH, binary.write([request_of(IDS, 4, 0.7)])[:-3]),
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
async def test_a_request_at_fault_is_a_400_of_one_line_that_is_safe_to_print(lm: CausalLM, name: str) -> None:
    path, body = FAULTS[name]
    media = binary.MEDIA_TYPE if path == binary.PATH else "application/json"
    async with client(lm, body_mb=1) as http:
        answer = await http.post(path, content=body, headers={"content-type": media})
    assert answer.status_code == 400
    assert message_of(answer).isprintable()
    assert len(message_of(answer)) < 600


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1, 1000, 1e3])
async def test_every_temperature_in_range_has_finite_scores(lm: CausalLM, temperature: float) -> None:
    async with client(lm) as http:
        answer = await http.post("/generate", json=SCORING | {"input_logprob_temperature": temperature})
    values = [entry[0] for entry in answer.raise_for_status().json()["meta_info"]["input_token_logprobs"][1:]]
    assert np.isfinite(values).all()


# Whatever the bytes.


@pytest.fixture(scope="module")
def loop_client(lm: CausalLM) -> Any:
    """A server that lives as long as a test of many examples."""
    with asyncio.Runner() as runner:
        context = client(lm, body_mb=1)
        http = runner.run(context.__aenter__())
        yield lambda path, body, media: runner.run(http.post(path, content=body, headers={"content-type": media}))
        runner.run(context.__aexit__(None, None, None))


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
KEYS = sorted(
    {"input_ids", "text", "sampling_params", "logprob_start_len", "top_logprobs_num", "token_ids_logprob", "rid",
     "return_hidden_states", "input_logprob_temperature", "return_prompt_token_ids", "prompt", "max_tokens",
     "prompt_logprobs", "prompt_logprobs_temperature", "model", "request_id", "return_token_ids", "temperature",
     "stream", "add_special_tokens", "format", "top_k", "hidden", "sequences", "ids", "start", "support_ids"}
)  # fmt: skip
MEDIA = {"/generate": "application/json", "/v1/completions": "application/json", "/tokenize": "application/json",
         binary.PATH: binary.MEDIA_TYPE}  # fmt: skip
BASES = [SCORING, COMPLETION, {"prompt": "12"}]
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(base=st.sampled_from(BASES), change=st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=3), data=st.data())
def test_no_json_is_a_fault_of_the_servers(loop_client: Any, base: Any, change: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(["/generate", "/v1/completions", "/tokenize"]))
    try:
        body = json.dumps(base | change).encode()
    except (ValueError, RecursionError):
        return
    assert loop_client(path, body, MEDIA[path]).status_code in (200, 400)


@FUZZ
@given(
    change=st.dictionaries(st.sampled_from(KEYS), JSONS, max_size=3),
    row=st.dictionaries(
        st.sampled_from(["ids", "start", "support_ids"]), st.integers(-9, 2**63) | st.binary(max_size=12), max_size=3
    ),
)
def test_no_msgpack_is_a_fault_of_the_servers(loop_client: Any, change: Any, row: Any) -> None:
    base = {"format": binary.FORMAT, "temperature": 0.7, "sequences": [{"ids": b"\5\0\0\0" * 4, "start": 2} | row]}
    try:
        body = msgpack.packb(base | change, unicode_errors="surrogatepass")
    except (OverflowError, ValueError):
        return
    assert loop_client(binary.PATH, body, binary.MEDIA_TYPE).status_code in (200, 400)


@FUZZ
@given(path=st.sampled_from(sorted(MEDIA)), junk=st.binary(max_size=200))
def test_no_bytes_are_a_fault_of_the_servers(loop_client: Any, path: str, junk: bytes) -> None:
    assert loop_client(path, junk, MEDIA[path]).status_code == 400


@FUZZ
@given(path=st.sampled_from(sorted(MEDIA)), seed=st.integers(0, 2**32))
def test_no_damage_is_a_fault_of_the_servers(loop_client: Any, path: str, seed: int) -> None:
    whole = {
        "/generate": json.dumps(SCORING | {"top_logprobs_num": 3, "token_ids_logprob": [5, 6]}).encode(),
        "/v1/completions": json.dumps(COMPLETION).encode(), "/tokenize": b'{"prompt":"12+34="}',
        binary.PATH: binary.write([request_of(IDS, 3, 0.7, np.array([7, 5]))] * 2),
    }[path]  # fmt: skip
    rng, damaged = random.Random(seed), bytearray(whole)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(damaged))
        damaged[place : place + rng.randint(0, 2)] = bytes(rng.randrange(256) for _ in range(rng.randint(0, 2)))
    assert loop_client(path, bytes(damaged), MEDIA[path]).status_code in (200, 400)
