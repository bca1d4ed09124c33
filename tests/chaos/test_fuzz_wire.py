"""Whatever comes from a server is a valid reply or a `WireError`: bytes at random, honest answers that were damaged,
and values that no server would send."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limbeck.records import Key, SampleRequest, Sampling, request_of
from limbeck.sanitize import printable
from limbeck.wire import binary, binding, sglang, vllm
from limbeck.wire.dialects import BinaryDialect, Dialect, JsonDialect
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Reply, WireError
from tests.chaos.faults import damaged
from tests.wire.test_parsers import damage, say_binary, say_sglang, say_vllm
from tests.wire.test_sample import of_sglang, of_vllm

ASKED = request_of([5, 6, 7, 8], 2, 0.7, 3)
SAMPLED = SampleRequest(Key("p"), np.array([5, 6, 7]), Sampling(0.7, 4, (1, 2), seed=9))
VOCABULARY = 50
DEEP: Any = "x"
for _ in range(600):
    DEEP = [DEEP]
HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=9),
    st.sampled_from([
        2**63, -(2**63) - 1, 2**64, 10**400, -(10**400), 1e308, 5e-324, float("nan"), float("inf"), "\ud800", "\x1b[2J",
        "9" * 5000, "\u0661", "0x10", " 5", "-0", [], {}, [[]], [None], {"": None}, [2**70], [1e400], DEEP, b"\x00" * 3,
    ]),
)  # fmt: skip
FUZZ = settings(
    max_examples=200, deadline=None, suppress_health_check=list(HealthCheck),
    derandomize="LIMBECK_CHAOS_SEED" not in os.environ,
)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """What people are shown."""

    name: str


HONEST: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "sglang scores": (say_sglang(ASKED, 0.7), lambda answer: sglang.read(answer, ASKED, True)),
    "sglang scores and ties": (
        say_sglang(ASKED) | {"prompt_token_ids": [5, 6, 7, 8]}, lambda answer: sglang.read(answer, ASKED),
    ),
    "sglang sample": (
        of_sglang([8, 9, 10, 11], [-0.1] * 4), lambda answer: sglang.read_sample(answer, SAMPLED, VOCABULARY),
    ),
    "sglang identity": ({"model_path": "m"}, lambda answer: Named(sglang.read_identity(answer))),
    "sglang tokenize": ({"tokens": [1, 2]}, sglang.read_tokenize),
    "vllm scores": (say_vllm(ASKED, 0.7), lambda answer: vllm.read(answer, ASKED, True)),
    "vllm sample": (of_vllm([8, 9, 10, 11], [-0.1] * 4), lambda answer: vllm.read_sample(answer, SAMPLED, VOCABULARY)),
    "vllm identity": ({"data": [{"id": "m", "root": "r"}]}, lambda answer: Named(vllm.read_identity(answer))),
    "vllm name": ({"data": [{"id": "m"}]}, vllm.read_model_name),
    "vllm tokenize": ({"tokens": [1, 2]}, vllm.read_tokenize),
}  # fmt: skip


def check(found: Any) -> None:
    """A reply is of the right shape, and its numbers are log-probs."""
    if isinstance(found, Reply):
        assert found.logprobs.shape == (2,)
        assert np.isfinite(found.logprobs).all()
        assert (found.logprobs <= 0).all()
        assert found.top_ids is not None
        assert (found.top_ids >= 0).all()
        assert found.top_ids.shape == (2, 3)
    elif isinstance(found, Named):
        assert found.name == printable(found.name)


def read_or_refused(read: Callable[[], Any]) -> None:
    message = ""
    try:
        check(read())
    except WireError as error:
        message = str(error)
    assert message == printable(message)


@pytest.mark.parametrize("what", HONEST)
@given(junk=st.lists(HOSTILE, min_size=1, max_size=3), seed=st.integers(0, 2**32))
@FUZZ
def test_a_damaged_tree(what: str, junk: list[Any], seed: int) -> None:
    answer, read = copy.deepcopy(HONEST[what][0]), HONEST[what][1]
    rng = random.Random(seed)
    for one in junk:
        damage(answer, rng, one)
    read_or_refused(lambda: read(answer))


@pytest.mark.parametrize("what", HONEST)
@given(junk=HOSTILE)
@FUZZ
def test_another_value_altogether(what: str, junk: Any) -> None:
    read_or_refused(lambda: HONEST[what][1](junk))


@given(seed=st.integers(0, 2**32), junk=HOSTILE, way=st.sampled_from(["bytes", "tree", "anything"]), raw=st.binary())
@FUZZ
def test_the_binary_route_both_ways(seed: int, junk: Any, way: str, raw: bytes) -> None:
    rng = random.Random(seed)

    def spoiled(honest: bytes) -> bytes:
        if way == "anything":
            return raw
        if way == "bytes":
            return damaged(honest, rng)
        tree = msgpack.unpackb(honest)
        damage(tree, rng, junk)
        try:
            return bytes(msgpack.packb(tree))
        except (OverflowError, ValueError, TypeError, UnicodeEncodeError):
            return honest  # msgpack has no word for it

    read_or_refused(lambda: binary.read(spoiled(say_binary(ASKED)), [ASKED])[0])
    read_or_refused(lambda: binary.read_requests(spoiled(binary.write([ASKED])), lambda sent: sent or 1.0))


HEADERS = st.dictionaries(
    st.sampled_from(
        ["content-type", "content-encoding", "retry-after", "location", binding.WEIGHTS, binding.TEMPERATURE,
         binding.ANSWER, binding.PROBLEM]
    ),
    st.one_of(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=9),
              st.sampled_from(["gzip", "br", "nan", "1e999", "-5", "request", "0" * 64])),
)  # fmt: skip
ASKS: dict[str, tuple[Callable[[], Dialect], bytes]] = {
    "sglang": (lambda: JsonDialect("sglang", sglang), json.dumps(say_sglang(ASKED, 0.7)).encode()),
    "vllm": (lambda: JsonDialect("vllm", vllm), json.dumps(say_vllm(ASKED, 0.7)).encode()),
    "limbeck": (BinaryDialect, say_binary(ASKED)),
}


@pytest.mark.parametrize("kind", ASKS)
@given(
    status=st.one_of(st.just(200), st.sampled_from([204, 206, 301, 400, 401, 404, 429, 500, 503, 999])),
    headers=HEADERS, raw=st.one_of(st.none(), st.binary(max_size=60)), seed=st.integers(0, 2**32),
)  # fmt: skip
@FUZZ
def test_whatever_answers_over_http(
    kind: str, status: int, headers: dict[str, str], raw: bytes | None, seed: int
) -> None:
    """Through the pool: status, headers and body at random, or an honest body that was damaged."""
    make, honest = ASKS[kind]
    rng = random.Random(seed)
    body = damaged(honest, rng) if raw is None else raw

    def answer(_: httpx.Request) -> httpx.Response:
        pairs = [(name.encode(), value.strip().encode("latin-1")) for name, value in headers.items()]
        return httpx.Response(status, headers=pairs, stream=httpx.ByteStream(body))

    async def ask() -> None:
        settings = PoolSettings(tries=1, patience=0.0, first_wait=0.0, longest_wait=0.0)
        pool = Pool(["http://server"], settings, httpx.MockTransport(answer))
        for do in (
            lambda: make().ask(pool, ASKED, acknowledges=True),
            lambda: make().identity(pool, "http://server"),
            lambda: make().tokenize(pool, "x"),
        ):
            found = (await asyncio.gather(do(), return_exceptions=True))[0]
            read_or_refused(lambda found=found: returned(found))

    asyncio.run(ask())


def returned(found: Any) -> Any:
    if isinstance(found, BaseException):
        raise found
    return found
