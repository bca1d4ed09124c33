"""A parser gives back exactly what a server meant, or a `WireError`: never anything else, never a number made up."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.records import ScoreRequest, request_of
from limbeck.wire import binary, sglang, vllm
from limbeck.wire.score import Reply, WireError, asked_ids, top_k

V = 40


@st.composite
def requests(draw: st.DrawFn) -> ScoreRequest:
    """Any text, with holes in what is scored, the sampled tokens alone or a top K with them."""
    ids = np.array(draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=9)), dtype=np.int64)
    scored = np.array([False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))])
    k = draw(st.integers(0, 6))
    return ScoreRequest("q", ids, scored, draw(st.sampled_from([1.0, 0.7])), k or "sampled")


def truth(request: ScoreRequest) -> np.ndarray:
    """[n, V] float32 log-probs from the first scored token to the end, a function of the tokens."""
    rng = np.random.default_rng(int(request.token_ids.sum()))
    logits = 3 * rng.standard_normal((len(asked_ids(request)), V))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def say_sglang(request: ScoreRequest, temperature: float | None = None) -> Any:
    rows = truth(request)
    single = [[float(r[i]), int(i), None] for r, i in zip(rows, asked_ids(request), strict=True)]
    meta: dict[str, Any] = {"input_token_logprobs": [[None, int(request.token_ids[request.start - 1]), None], *single]}
    if k := top_k(request):
        meta["input_top_logprobs"] = [None, *([[float(r[i]), int(i), None] for i in np.argsort(-r)[:k]] for r in rows)]
    if isinstance(request.support, np.ndarray):
        given = request.support[0]
        meta["input_token_ids_logprobs"] = [None, *([[float(r[i]), int(i), None] for i in given] for r in rows)]
    if temperature is not None:
        meta["input_logprob_temperature"] = temperature
    return {"text": "", "meta_info": meta}


def say_vllm(request: ScoreRequest, temperature: float | None = None) -> Any:
    out: list[Any] = [None]
    prompt = [{str(i): {"logprob": -1.0}} for i in request.token_ids[1 : request.start]]
    for row, sampled in zip(truth(request), asked_ids(request), strict=True):
        ids = {int(i) for i in np.argsort(-row)[: top_k(request)]} | {int(sampled)}
        out.append({str(i): {"logprob": float(row[i]), "rank": 1, "decoded_token": "x"} for i in sorted(ids)})
    answer = {"choices": [{"index": 0, "prompt_logprobs": [*out[:1], *prompt, *out[1:]]}]}
    return answer | ({} if temperature is None else {"prompt_logprobs_temperature": temperature})


def say_binary(request: ScoreRequest, temperature: float | None = None) -> bytes:
    rows = truth(request)
    top = np.argsort(-rows, axis=1)[:, : top_k(request)]
    result = binary.Result(rows[np.arange(len(rows)), asked_ids(request)], top, np.take_along_axis(rows, top, axis=1))
    return binary.write_answer([request], [result], temperature or request.temperature, "m")


def assert_is_the_truth(reply: Reply, request: ScoreRequest) -> None:
    rows = truth(request)[request.scored[request.start :]]
    np.testing.assert_array_equal(reply.logprobs, rows[np.arange(len(rows)), request.scored_ids])
    if k := top_k(request):
        assert reply.top_ids is not None
        np.testing.assert_array_equal(reply.top_logprobs, -np.sort(-rows, axis=1)[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(rows, reply.top_ids, axis=1), reply.top_logprobs)


@given(requests(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_an_honest_answer_is_read_exactly(request: ScoreRequest, acknowledges: bool) -> None:
    t = request.temperature if acknowledges else None
    for reply in (
        sglang.read(json.loads(json.dumps(say_sglang(request, t))), request, acknowledges),
        vllm.read(json.loads(json.dumps(say_vllm(request, t))), request, acknowledges),
    ):
        assert_is_the_truth(reply, request)
        assert reply.temperature == t
    assert_is_the_truth(binary.read(say_binary(request), [request])[0], request)
    if request.start < len(request.token_ids):
        ((back,), _) = binary.read_requests(binary.write([request]), lambda sent: sent or 0.0)
        np.testing.assert_array_equal(back.token_ids, request.token_ids)
        assert back.scored.tolist() == [False] * request.start + [True] * len(asked_ids(request))
        assert (back.temperature, back.support) == (request.temperature, request.support)


def test_a_temperature_is_sent_to_those_who_acknowledge_it_and_to_no_one_else() -> None:
    request = request_of([5, 6, 7], 1, 0.7)
    for write, key in ((sglang.write, "input_logprob_temperature"), (vllm.write, "prompt_logprobs_temperature")):
        assert key not in write(request)
        assert write(request, None, True)[key] == 0.7
    picked: list[Any] = []
    for acknowledges in (True, False):
        binary.read_requests(binary.write([request], acknowledges), lambda sent: picked.append(sent) or 1.0)
    assert picked == [0.7, None]


def given_ids(*rows: list[int]) -> ScoreRequest:
    return request_of([5, 6, 7, 8], 2, 1.0, np.array(rows))


def test_given_ids_are_read_in_their_order_from_sglang() -> None:
    request = given_ids([9, 7, 3], [9, 7, 3])
    assert sglang.write(request)["token_ids_logprob"] == [9, 7, 3]
    answer = say_sglang(request)
    reply = sglang.read(answer, request)
    np.testing.assert_array_equal(reply.top_ids, request.support)
    np.testing.assert_array_equal(reply.top_logprobs, truth(request)[:, [9, 7, 3]])
    answer["meta_info"]["input_token_ids_logprobs"][1][0][1] = 4
    with pytest.raises(WireError, match="other tokens than") as caught:
        sglang.read(answer, request)
    assert caught.value.kind == "wrong_ids"
    answer = say_sglang(request)
    answer["meta_info"]["input_token_ids_logprobs"][1][1][0] -= 0.5  # token 7 is the sampled one there
    with pytest.raises(WireError, match="two log-probs"):
        sglang.read(answer, request)


@pytest.mark.parametrize(
    ("write", "request_", "words"),
    [
        (sglang.write, given_ids([9, 7], [9, 3]), "one list for all"),
        (vllm.write, given_ids([9], [9]), "vLLM does not take"),
        (vllm.write, request_of([5, 6], 1, 1.0, "full"), "vLLM sends no hidden states"),
    ],
)
def test_a_support_that_a_server_has_no_word_for_is_refused_before_it_is_sent(
    write: Any, request_: ScoreRequest, words: str
) -> None:
    with pytest.raises(WireError, match=words) as caught:
        write(request_)
    assert caught.value.kind == "unsupported"
    assert caught.value.final


def test_vllms_top_tokens_do_not_depend_on_the_sampled_one() -> None:
    """Tied at the last place, the sampled token that vLLM adds must not push out the one that is there anyway."""
    request = request_of([5, 6], 1, 1.0, 2)
    top = {"3": {"logprob": -1.0, "rank": 1}, "9": {"logprob": -2.0, "rank": 2}}
    for sent in ({"6": {"logprob": -2.0, "rank": 3}}, {"6": {"logprob": -4.0, "rank": 9}}):
        answer = {"choices": [{"prompt_logprobs": [None, sent | top]}]}
        assert vllm.read(answer, request).top_ids.tolist() == [[3, 9]]
    three = {"choices": [{"prompt_logprobs": [None, sent | top | {"11": {"logprob": -3.0, "rank": 3}}]}]}
    with pytest.raises(WireError, match="has 3 top tokens, 2 were asked for"):
        vllm.read(three, request)


def test_an_entry_of_another_shape_is_refused() -> None:
    """A digit that became a comma."""
    answer = {"meta_info": {"input_token_logprobs": [[None, 5, None], [-1, 6, 25, None]]}}
    with pytest.raises(WireError, match="expected \\[log-prob, id, text\\]"):
        sglang.read(answer, request_of([5, 6], 1, 1.0))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.just([[]]), st.just(-9999.0),
)  # fmt: skip


def damage(tree: Any, rng: random.Random, junk: Any) -> None:
    """Replace or remove one node somewhere in a JSON tree."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = rng.choice(list(keys)) if keys else None
        if key is None:
            return
        child = tree[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            tree = child
            continue
        if rng.random() < 0.3:
            del tree[key]
        else:
            tree[key] = junk
        return


@given(requests(), JUNK, st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_a_damaged_answer_is_an_error_or_still_valid(request: ScoreRequest, junk: Any, seed: int) -> None:
    """Whatever breaks, it is a `WireError`; what is read has the right shapes, is finite and at most 0."""
    for say, read in ((say_sglang, sglang.read), (say_vllm, vllm.read)):
        answer = copy.deepcopy(say(request))
        damage(answer, random.Random(seed), junk)
        try:
            reply = read(answer, request)
        except WireError:
            continue
        n = len(request.scored_ids)
        assert reply.logprobs.shape == (n,)
        assert np.isfinite(reply.logprobs).all()
        assert (reply.logprobs <= 0).all()
        if top_k(request):
            assert reply.top_ids is not None
            assert reply.top_logprobs is not None
            assert reply.top_ids.shape == reply.top_logprobs.shape == (n, top_k(request))


REQUEST = request_of([5, 6, 7, 8], 2, 1.0, 2)


def set_at(answer: Any, path: list[Any], value: Any) -> Any:
    node = answer
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return answer


META = ["meta_info", "input_token_logprobs"]
TOPS = ["meta_info", "input_top_logprobs"]


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ([*META, 1, 1], 9, "wrong_ids"),
        ([*META, 1, 0], None, "malformed"),
        ([*META, 1, 0], float("nan"), "not_finite"),
        ([*META, 1, 0], -9999.0, "clamped"),
        ([*META, 1, 0], 0.5, "unnormalised"),
        ([*META, 0, 0], -0.5, "malformed"),
        ([*META], [[None, 6, None]], "short"),
        ([*TOPS, 1], [[-0.1, 3, None]], "short"),
        ([*TOPS, 1], None, "malformed"),
        ([*TOPS, 1], [[-0.125, 3, None], [-9.0, 3, None]], "inconsistent"),
        ([*TOPS, 1], [[-0.125, 3, None], [-0.25, 4, None]], "unnormalised"),
        (["meta_info"], [], "malformed"),
        (["meta_info", "input_logprob_temperature"], 0.7, "temperature"),
    ],
)
def test_each_mistake_of_sglang_has_its_name(path: list[Any], value: Any, kind: str) -> None:
    with pytest.raises(WireError) as caught:
        sglang.read(set_at(say_sglang(REQUEST), path, value), REQUEST)
    assert caught.value.kind == kind


ROWS = ["choices", 0, "prompt_logprobs"]


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ([*ROWS, 2], {"9": {"logprob": -1.0}}, "wrong_ids"),
        ([*ROWS, 2], None, "malformed"),
        ([*ROWS, 2], {"7": {"logprob": None}}, "malformed"),
        ([*ROWS, 2], {"7": {"logprob": -9999.0}, "1": {"logprob": -0.1}}, "clamped"),
        ([*ROWS, 2], {"7": {"logprob": -1.0}}, "short"),
        ([*ROWS, 2], {"seven": {"logprob": -1.0}}, "malformed"),
        ([*ROWS, 0], {}, "malformed"),
        (ROWS, [None], "short"),
        (["choices"], [], "malformed"),
        (["prompt_logprobs_temperature"], 0.7, "temperature"),
    ],
)
def test_each_mistake_of_vllm_has_its_name(path: list[Any], value: Any, kind: str) -> None:
    with pytest.raises(WireError) as caught:
        vllm.read(set_at(say_vllm(REQUEST), path, value), REQUEST)
    assert caught.value.kind == kind


def test_a_temperature_that_was_sent_must_be_acknowledged() -> None:
    request = request_of([5, 6, 7, 8], 2, 0.7)
    for say, read, key in (
        (say_sglang, sglang.read, ["meta_info", "input_logprob_temperature"]),
        (say_vllm, vllm.read, ["prompt_logprobs_temperature"]),
    ):
        assert read(say(request, 0.7), request, True).temperature == 0.7
        for reported, kind in ((None, "unacknowledged"), (1.0, "temperature")):
            with pytest.raises(WireError) as caught:
                read(set_at(say(request), key, reported), request, True)
            assert caught.value.kind == kind
    with pytest.raises(WireError, match=r"scored at temperature 1\.0, expected 0\.7"):
        binary.read(say_binary(request, 1.0), [request])


@pytest.mark.parametrize(
    "change",
    [{"format": 1}, {"top_k": -1}, {"top_k": True}, {"hidden": 1}, {"temperature": "hot"}, {"sequences": {}},
     {"sequences": [{"ids": b"abc", "start": 1}]}, {"sequences": [{"ids": b"\0" * 8, "start": 0}]},
     {"sequences": [{"ids": b"\0" * 8, "start": 3}]}],
)  # fmt: skip
def test_a_wrong_request_is_refused_by_our_route(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        binary.read_requests(msgpack.packb(msgpack.unpackb(binary.write([REQUEST])) | change), lambda sent: sent or 1.0)
    with pytest.raises(WireError):
        binary.read_requests(b"\xc1 not msgpack", lambda sent: sent or 1.0)


def say_states(request: ScoreRequest, states: Any) -> Any:
    answer = say_sglang(request)
    answer["meta_info"]["hidden_states"] = states
    return answer


@pytest.mark.parametrize("cached", [0, 1, 2])
def test_sglangs_states_are_those_that_predict_the_response(cached: int) -> None:
    """Row i is the state at token i; a cached prefix has no rows, the last one predicts nothing that was sent."""
    request = request_of(np.arange(6), 3, 1.0, "full")
    at_each = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    answer = json.loads(json.dumps(say_states(request, [at_each[cached:].tolist()])))
    reply = sglang.read(answer, request)
    assert sglang.write(request)["sampling_params"]["max_new_tokens"] == 1  # with 0, version 0.5.23 sends no states
    np.testing.assert_array_equal(reply.hidden, at_each[2:5])
    holes = ScoreRequest("q", np.arange(6), np.array([0, 0, 0, 1, 0, 1], dtype=bool), 1.0, "full")
    np.testing.assert_array_equal(sglang.read(answer, holes).hidden, at_each[[2, 4]])
    assert_is_the_truth(reply, request)


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        (None, "malformed"),
        ([], "short"),
        ([[[1.0, 2.0]] * 3], "short"),  # of a prompt in chunks, the last chunk's
        ([[[1.0, 2.0]] * 7], "short"),  # with a row for a token that was generated
        ([[[1.0, 2.0]] * 5 + [[1.0]]], "malformed"),
        ([[[1.0, "x"]] * 6], "malformed"),
        ([[[1.0, None]] * 6], "malformed"),
        ([[[1.0, True]] * 6], "malformed"),
        ([[[1.0, "1.5"]] * 6], "malformed"),
        ([[[1.0, [2.0]]] * 6], "malformed"),
        ([[[1.0, 1e39]] * 6], "not_finite"),
        ([[[1.0, float("nan")]] * 6], "not_finite"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "short"),
        ([7] * 6, "malformed"),
    ],
)
def test_states_that_cannot_be_placed_are_refused(states: Any, kind: str) -> None:
    request = request_of(np.arange(6), 3, 1.0, "full")
    with pytest.raises(WireError) as caught:
        sglang.read(say_states(request, states), request)
    assert caught.value.kind == kind
