"""The scoring server against its own OpenAPI description, as a process: whatever is sent, no answer is a 500.

schemathesis makes requests out of the description (GET /openapi.json), right ones and wrong ones, and compares every
answer with it. Bodies of no schema go to every route beside them.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import msgpack
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from limbeck.records import request_of
from limbeck.wire import binary, binding
from tests import tiny
from tests.serve.test_faults import COMPLETION, SCORING
from tests.serve_process import Served, served

pytestmark = pytest.mark.chaos

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SEED = 20260
SCORING_ROUTES = {"/generate", "/v1/completions", "/tokenize", binary.PATH}
COUNTS: Counter[str] = Counter()


@pytest.fixture(scope="module")
def fuzzed() -> Iterator[Served]:
    with served(tiny.folder_of("llama"), "--body-mb", "1", "--answer-mb", "1") as process:
        yield process
    print("serve fuzz:", dict(sorted(COUNTS.items())))


@pytest.fixture(scope="module")
def http(fuzzed: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fuzzed.url, timeout=60) as client:
        yield client


@schemathesis.serializer(binary.MEDIA_TYPE)
def packed(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Ids become the bytes that they are, of tokens that the model has."""
    if isinstance(value, dict) and isinstance(value.get("sequences"), list):
        rows = [row for row in value["sequences"] if isinstance(row, dict) and "ids" in row]
        for row in rows:
            row["ids"] = b"".join(bytes([byte % 90, 0, 0, 0]) for byte in f"id {row['ids']}".encode()[:60])
            if type(row.get("start")) is int and row["start"] > 0:
                row["start"] %= 10
            if len(row["ids"]) % 5:  # they seldom fit the positions
                row.pop("support_ids", None)
        if not value.get("hidden"):
            value.pop("hidden_dtype", None)
    return msgpack.packb(value, default=str, unicode_errors="surrogatepass")


def operations(url: str) -> list[tuple[str, str]]:
    paths = httpx.get(f"{url}/openapi.json").json()["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


def test_every_route_keeps_to_the_description(fuzzed: Served) -> None:
    described = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    assert {path for path, _ in operations(fuzzed.url)} > SCORING_ROUTES
    for path, method in operations(fuzzed.url):
        operation = described[path][method.upper()]
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            examples = 60 if path in SCORING_ROUTES else 8

            @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                      phases=[Phase.generate], derandomize=True)  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode))
            def sent(case: schemathesis.Case) -> None:
                if len(str(case.body)) % 4:  # digests made up are told from right ones, and that is all
                    case.headers = {}
                response = case.call(timeout=30)
                COUNTS[f"{case.path} {response.status_code}"] += 1
                case.validate_response(response, checks=CHECKS)

            sent()
    assert fuzzed.process.poll() is None
    assert COUNTS["/generate 200"], COUNTS
    assert COUNTS["/v1/completions 200"], COUNTS
    assert COUNTS["/tokenize 200"], COUNTS
    assert COUNTS[f"{binary.PATH} 200"], COUNTS


WHOLE = {
    "/generate": json.dumps(SCORING | {"top_logprobs_num": 3, "token_ids_logprob": [5, 6], "rid": "x"}).encode(),
    "/v1/completions": json.dumps(COMPLETION | {"request_id": "x"}).encode(),
    "/tokenize": b'{"prompt":"12+34="}',
    binary.PATH: binary.write([request_of([5, 6, 7, 8], 2, 0.7, 3)] * 2),
}


@pytest.mark.parametrize("path", sorted(WHOLE))
def test_damaged_bodies_are_refused_or_answered_and_those_with_a_digest_are_sent_back(
    http: httpx.Client, path: str
) -> None:
    rng = random.Random(SEED)
    media = binary.MEDIA_TYPE if path == binary.PATH else "application/json"
    for _ in range(250):
        damaged = bytearray(WHOLE[path])
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(damaged) + 1)
            damaged[place : place + rng.randint(0, 3)] = rng.randbytes(rng.randint(0, 3))
        headers = {"content-type": media}
        answer = http.post(path, content=bytes(damaged), headers=headers)
        COUNTS[f"{path} damaged {answer.status_code}"] += 1
        assert answer.status_code in (200, 400), answer.text
        if bytes(damaged) != WHOLE[path]:
            bound = binding.request_headers(b"", "POST", path, WHOLE[path], binding.new_nonce())
            answer = http.post(path, content=bytes(damaged), headers={**headers, **bound})
            assert (answer.status_code, answer.headers.get(binding.PROBLEM)) == (400, "request")
            digest = bound[binding.REQUEST]
            assert binding.verified_answer(b"", digest, 400, answer.content, answer.headers) is not None


@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    path=st.sampled_from(sorted(WHOLE)),
    body=st.one_of(
        st.binary(max_size=3000),
        st.builds(bytes.__mul__, st.sampled_from([b"[", b'{"a":', b"\x91", b"\x81", b"9", b'"', b"[],"]),
                  st.integers(1, 150_000)),
    ),
    media=st.sampled_from(["application/json", binary.MEDIA_TYPE, "text/plain", ""]),
    headers=st.dictionaries(
        st.sampled_from(["limbeck-nonce", "limbeck-request", "authorization", "origin", "host", "accept-encoding"]),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=80), max_size=2,
    ),
)  # fmt: skip
def test_no_bytes_and_no_headers_are_a_fault_of_the_servers(
    http: httpx.Client, path: str, body: bytes, media: str, headers: dict[str, str]
) -> None:
    answer = http.post(path, content=body, headers={**headers, "content-type": media})
    COUNTS[f"junk {answer.status_code}"] += 1
    assert answer.status_code in (400, 403, 413, 415), answer.text


def test_after_all_that_it_scores_as_before_and_has_said_nothing(fuzzed: Served) -> None:
    answer = httpx.post(f"{fuzzed.url}/generate", json=SCORING, timeout=30)
    assert len(answer.raise_for_status().json()["meta_info"]["input_token_logprobs"]) == len(SCORING["input_ids"])
    said = [line for line in fuzzed.printed if not line.startswith("refused ")]  # those name what msgpack raised
    assert not any("Traceback" in line or "Error" in line for line in said), "".join(fuzzed.printed)
