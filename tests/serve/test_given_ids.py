"""Ids of the client's choosing at each position, over the binary route: answers, their bytes, and refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from limbeck.models.causal_lm import CausalLM
from limbeck.records import ScoreRequest, request_of
from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire import binary
from limbeck.wire.score import WireError
from tests import tiny

V, T = tiny.VOCABULARY, 0.7
IDS = np.random.default_rng(7).integers(5, V, 40)


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


@contextmanager
def serving(lm: CausalLM, **settings: Any) -> Iterator[TestClient]:
    with TestClient(make_app(Scorer(lm), ServeSettings(**settings), "tiny 123")) as http:
        yield http


def post(http: TestClient, body: bytes) -> Any:
    return http.post(binary.PATH, content=body, headers={"content-type": binary.MEDIA_TYPE})


def given(k: int, holes: bool = False, temperature: float = T, ids: np.ndarray = IDS) -> ScoreRequest:
    """Other ids at each position, in no order, the sampled one among some of them."""
    rng = np.random.default_rng(k)
    scored = np.arange(len(ids)) >= 7
    if holes:
        scored[10:15] = scored[20] = False
    return ScoreRequest("r", ids, scored, temperature, np.stack([rng.permutation(V)[:k] for _ in range(scored.sum())]))


def truth(lm: CausalLM, request: ScoreRequest) -> np.ndarray:
    """[S, V] log q_T by transformers itself."""
    with torch.inference_mode():
        logits = lm.model(torch.from_numpy(request.token_ids)[None]).logits[0, :-1].float()
    return torch.log_softmax(logits / request.temperature, dim=-1).numpy()[request.scored[1:]]


@pytest.mark.parametrize("k", [1, 4, V])
@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_each_id_is_answered_at_its_position(lm: CausalLM, k: int, holes: bool, temperature: float) -> None:
    request = given(k, holes, temperature)
    with serving(lm) as http:
        (reply,) = binary.read(post(http, binary.write([request])).content, [request])
    rows = truth(lm, request)
    np.testing.assert_array_equal(reply.top_ids, request.support)
    np.testing.assert_allclose(reply.top_logprobs, np.take_along_axis(rows, request.support, 1), atol=5e-5)
    np.testing.assert_allclose(reply.logprobs, rows[np.arange(len(rows)), request.scored_ids], atol=5e-5)
    assert reply.temperature == temperature


def test_several_sequences_of_other_lengths_and_one_of_which_nothing_is_scored(lm: CausalLM) -> None:
    nothing = ScoreRequest("n", IDS[:9], np.zeros(9, bool), T, np.zeros((0, 4), np.int64))
    unit = [given(4), given(4, holes=True), nothing, given(4, ids=IDS[:12])]
    with serving(lm) as http:
        replies = binary.read(post(http, binary.write(unit)).content, unit)
    for request, reply in zip(unit, replies, strict=True):
        assert reply.top_logprobs is not None
        wanted = np.take_along_axis(truth(lm, request), np.asarray(request.support), 1)
        np.testing.assert_allclose(reply.top_logprobs, wanted, atol=5e-5)


def test_the_servers_own_top_tokens_and_the_same_ids_given_have_the_same_scores(lm: CausalLM) -> None:
    own = replace(given(1), support=6)
    with serving(lm) as http:
        (top,) = binary.read(post(http, binary.write([own])).content, [own])
        assert top.top_ids is not None
        backwards = replace(own, support=top.top_ids[:, ::-1].copy())
        (asked,) = binary.read(post(http, binary.write([backwards])).content, [backwards])
    np.testing.assert_array_equal(asked.top_logprobs[:, ::-1], top.top_logprobs)


@pytest.mark.parametrize("k", [4, 20])
def test_as_many_bytes_as_the_servers_own_top(lm: CausalLM, k: int) -> None:
    """Four go up and four come down where eight come down: nothing is said twice."""
    sizes = {}
    with serving(lm) as http:
        for request in (given(k), replace(given(k), support=k)):
            body = binary.write([request])
            sizes[type(request.support)] = len(body) + len(post(http, body).content)
    assert abs(sizes[np.ndarray] - sizes[int]) < 64


def test_a_body_that_is_read_in_the_other_process(lm: CausalLM) -> None:
    ids = np.random.default_rng(1).integers(5, V, 400) if lm.context is None or lm.context >= 400 else IDS
    unit = [given(60, ids=ids)] * (1 if len(ids) == 400 else 12)
    body = binary.write(unit)
    assert len(body) > 2**14
    with serving(lm) as http:
        replies = binary.read(post(http, body).content, unit)
    np.testing.assert_allclose(
        replies[-1].top_logprobs, np.take_along_axis(truth(lm, unit[0]), unit[0].support, 1), atol=5e-5
    )


def row(**changes: Any) -> dict[str, Any]:
    ids = np.arange(5, 11, dtype="<i4").tobytes()
    return {"ids": ids, "start": 4, "support_ids": np.arange(4, dtype="<i4").tobytes(), **changes}


LIST = np.arange(6, dtype="<i4").tobytes()
REFUSED = {
    "an id beyond the vocabulary": ([row(support_ids=np.array([1, 2, 3, V], "<i4").tobytes())], {}, "vocabulary has"),
    "a negative id": ([row(support_ids=np.array([1, 2, 3, -1], "<i4").tobytes())], {}, "vocabulary has"),
    "not as many at each": ([row(support_ids=LIST[:12])], {}, "3 ids for 2 positions"),
    "none at all": ([row(support_ids=b"")], {}, "0 ids for 2 positions"),
    "for no position": ([row(start=6)], {}, "4 ids for 0 positions"),
    "half a number": ([row(support_ids=LIST[:7])], {}, "4-byte"),
    "text": ([row(support_ids="abcd")], {}, "4-byte"),
    "a number": ([row(support_ids=7)], {}, "4-byte"),
    "more than the limit": (
        [row(support_ids=np.arange(10, dtype="<i4").tobytes())],
        {},
        "5 ids a position .*max-top-k",
    ),
    "the top too": ([row()], {"top_k": 3}, "top_k must be 0"),
    "states too": ([row()], {"hidden": True}, "top_k must be 0"),
    "for some sequences": ([row(), {"ids": LIST, "start": 4}], {}, "in every sequence"),
    "for later sequences": ([{"ids": LIST, "start": 4}, row()], {}, "in every sequence"),
    "another number for each": ([row(), row(support_ids=LIST[:8])], {}, "in every sequence"),
}


@pytest.mark.parametrize(("rows", "more", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_answered_is_refused(lm: CausalLM, rows: list[Any], more: dict[str, Any], says: str) -> None:
    import re

    with serving(lm, max_top_k=4) as http:
        answer = post(http, msgpack.packb({"format": binary.FORMAT, "temperature": T, "sequences": rows, **more}))
    assert answer.status_code == 400
    assert re.search(says, answer.text), answer.text


def answer_with(request: ScoreRequest, **changes: Any) -> bytes:
    values = np.log(np.full((len(request.scored_ids), request.support.shape[1]), 0.01, np.float32))
    logprobs = np.log(np.full(len(request.scored_ids), 0.01, np.float32))
    packed = msgpack.unpackb(binary.write_answer([request], [binary.Result(logprobs, request.support, values)], T, "m"))
    packed["sequences"][0] |= changes
    return msgpack.packb(packed)


def test_the_client_takes_no_answer_that_does_not_fit() -> None:
    request = given(4)
    count = len(request.scored_ids)
    assert "top_ids" not in msgpack.unpackb(answer_with(request))["sequences"][0]
    binary.read(answer_with(request), [request])
    inside = replace(request, support=np.where(np.arange(4) == 2, request.scored_ids[:, None], request.support))
    for asked, changes, kind in (
        (request, {"top_logprobs": b""}, "short"),
        (request, {"top_logprobs": np.zeros(count * 3, "<f4").tobytes()}, "short"),
        (request, {"top_logprobs": np.full(count * 4, np.nan, "<f4").tobytes()}, "not_finite"),
        (request, {"top_logprobs": np.full(count * 4, -1.0, "<f4").tobytes()}, "unnormalised"),  # 4 / e > 1
        (request, {"top_logprobs": np.full(count * 4, 0.5, "<f4").tobytes()}, "unnormalised"),
        (inside, {"top_logprobs": np.full(count * 4, -9.0, "<f4").tobytes()}, "inconsistent"),
    ):
        with pytest.raises(WireError) as caught:
            binary.read(answer_with(asked, **changes), [asked])
        assert caught.value.kind == kind, changes


def test_a_server_that_knows_no_ids_is_no_teacher_for_them() -> None:
    """An older `limbeck serve` answers with the sampled tokens alone."""
    request = given(4)
    plain = request_of(request.token_ids, request.start, T)
    old = binary.write_answer([plain], [binary.Result(np.zeros(len(plain.scored_ids), np.float32) - 1)], T, "m")
    with pytest.raises(WireError, match="no 'top_logprobs'"):
        binary.read(old, [request])
