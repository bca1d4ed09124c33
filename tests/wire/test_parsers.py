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

from limbeck.wire import binary, sglang, vllm
from limbeck.wire.score import Question, Reply, WireError

V = 40


@st.composite
def questions(draw: st.DrawFn) -> Question:
    ids = np.array(draw(st.lists(st.integers(0, V - 1), min_size=2, max_size=9)), dtype=np.int64)
    start = draw(st.integers(1, len(ids)))
    temperature = draw(st.sampled_from([None, 1.0, 0.7]))
    return Question(ids, start, temperature, draw(st.integers(0, 6)))


def truth(question: Question) -> np.ndarray:
    """[n, V] float32 log-probs, a function of the question."""
    rng = np.random.default_rng(int(question.token_ids.sum()))
    logits = 3 * rng.standard_normal((len(question.scored_ids), V))
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def say_sglang(question: Question) -> Any:
    rows = truth(question)
    single = [[float(r[i]), int(i), None] for r, i in zip(rows, question.scored_ids, strict=True)]
    meta: dict[str, Any] = {
        "input_token_logprobs": [[None, int(question.token_ids[question.start - 1]), None], *single]
    }
    if question.top_k:
        tops = [[[float(r[i]), int(i), None] for i in np.argsort(-r)[: question.top_k]] for r in rows]
        meta["input_top_logprobs"] = [None, *tops]
    if question.temperature is not None:
        meta["input_logprob_temperature"] = question.temperature
    return {"text": "", "meta_info": meta}


def say_vllm(question: Question) -> Any:
    out: list[Any] = [None]
    prompt = [{str(i): {"logprob": -1.0}} for i in question.token_ids[1 : question.start]]
    for row, sampled in zip(truth(question), question.scored_ids, strict=True):
        ids = {int(i) for i in np.argsort(-row)[: question.top_k]} | {int(sampled)}
        out.append({str(i): {"logprob": float(row[i]), "rank": 1, "decoded_token": "x"} for i in sorted(ids)})
    answer = {"choices": [{"index": 0, "prompt_logprobs": [*out[:1], *prompt, *out[1:]]}]}
    return answer | ({} if question.temperature is None else {"prompt_logprobs_temperature": question.temperature})


def say_binary(question: Question) -> bytes:
    rows = truth(question)
    top = np.argsort(-rows, axis=1)[:, : question.top_k]
    result = binary.Result(rows[np.arange(len(rows)), question.scored_ids], top, np.take_along_axis(rows, top, axis=1))
    return binary.write_answer([question], [result], question.temperature or 1.0, "m")


def assert_is_the_truth(reply: Reply, question: Question) -> None:
    rows = truth(question)
    np.testing.assert_array_equal(reply.logprobs, rows[np.arange(len(rows)), question.scored_ids])
    if question.top_k:
        assert reply.top_ids is not None
        np.testing.assert_array_equal(reply.top_logprobs, -np.sort(-rows, axis=1)[:, : question.top_k])
        np.testing.assert_array_equal(np.take_along_axis(rows, reply.top_ids, axis=1), reply.top_logprobs)


@given(questions())
@settings(max_examples=150, deadline=None)
def test_an_honest_answer_is_read_exactly(question: Question) -> None:
    assert_is_the_truth(sglang.read(json.loads(json.dumps(say_sglang(question))), question), question)
    assert_is_the_truth(vllm.read(json.loads(json.dumps(say_vllm(question))), question), question)
    assert_is_the_truth(binary.read(say_binary(question), [question])[0], question)
    (back,) = binary.read_questions(binary.write([question]))
    np.testing.assert_array_equal(back.token_ids, question.token_ids)
    assert (back.start, back.temperature, back.top_k) == (question.start, question.temperature, question.top_k)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.just([[]]), st.just(-9999.0),
)  # fmt: skip


def damage(tree: Any, dice: random.Random, junk: Any) -> None:
    """Replace or remove one node somewhere in a JSON tree."""
    while True:
        keys = list(tree) if isinstance(tree, dict) else range(len(tree))
        key = dice.choice(list(keys)) if keys else None
        if key is None:
            return
        child = tree[key]
        if isinstance(child, dict | list) and child and dice.random() < 0.8:
            tree = child
            continue
        if dice.random() < 0.3:
            del tree[key]
        else:
            tree[key] = junk
        return


@given(questions(), JUNK, st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_a_damaged_answer_is_an_error_or_still_valid(question: Question, junk: Any, seed: int) -> None:
    """Whatever breaks, it is a `WireError`; what is read has the right shapes, is finite and at most 0."""
    for say, read in ((say_sglang, sglang.read), (say_vllm, vllm.read)):
        answer = copy.deepcopy(say(question))
        damage(answer, random.Random(seed), junk)
        try:
            reply = read(answer, question)
        except WireError:
            continue
        n = len(question.scored_ids)
        assert reply.logprobs.shape == (n,)
        assert np.isfinite(reply.logprobs).all()
        assert (reply.logprobs <= 0).all()
        if question.top_k:
            assert reply.top_ids is not None
            assert reply.top_logprobs is not None
            assert reply.top_ids.shape == reply.top_logprobs.shape == (n, question.top_k)


@given(questions(), st.integers(0, 2**32), st.booleans())
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_of_our_own_route_never_pass(question: Question, seed: int, cut: bool) -> None:
    body, dice = bytearray(say_binary(question)), random.Random(seed)
    if cut:
        del body[dice.randrange(len(body)) :]
    else:
        body[dice.randrange(len(body))] ^= 1 + dice.randrange(255)
    with pytest.raises(WireError):
        binary.read(bytes(body), [question])


QUESTION = Question(np.array([5, 6, 7, 8]), 2, None, 2)


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
        ([*META, 1, 0], 0.5, "inconsistent"),
        ([*META, 0, 0], -0.5, "malformed"),
        ([*META], [[None, 6, None]], "short"),
        ([*TOPS, 1], [[-0.1, 3, None]], "short"),
        ([*TOPS, 1], None, "malformed"),
        ([*TOPS, 1], [[-0.125, 3, None], [-9.0, 3, None]], "inconsistent"),
        ([*TOPS, 1], [[-0.125, 3, None], [-0.25, 4, None]], "inconsistent"),
        ([*META, 1, 0], -1.1, "malformed"),  # not a float32, as the others are
        (["meta_info"], [], "malformed"),
        (["meta_info", "input_logprob_temperature"], 0.7, "temperature"),
    ],
)
def test_each_mistake_of_sglang_has_its_name(path: list[Any], value: Any, kind: str) -> None:
    with pytest.raises(WireError) as caught:
        sglang.read(set_at(say_sglang(QUESTION), path, value), QUESTION)
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
        vllm.read(set_at(say_vllm(QUESTION), path, value), QUESTION)
    assert caught.value.kind == kind


def test_a_temperature_that_was_asked_for_must_be_acknowledged() -> None:
    asked = Question(QUESTION.token_ids, 2, 0.7, 0)
    for say, read, key in (
        (say_sglang, sglang.read, ["meta_info", "input_logprob_temperature"]),
        (say_vllm, vllm.read, ["prompt_logprobs_temperature"]),
    ):
        assert read(say(asked), asked).temperature == 0.7
        for told, kind in ((None, "unacknowledged"), (1.0, "temperature")):
            with pytest.raises(WireError) as caught:
                read(set_at(say(asked), key, told), asked)
            assert caught.value.kind == kind


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"top_k": -1}, {"top_k": True}, {"hidden": 1}, {"temperature": "hot"}, {"sequences": {}},
     {"sequences": [{"ids": b"abc", "start": 1}]}, {"sequences": [{"ids": b"\0" * 8, "start": 0}]},
     {"sequences": [{"ids": b"\0" * 8, "start": 3}]}],
)  # fmt: skip
def test_a_wrong_question_is_refused_by_our_route(change: dict[str, Any]) -> None:
    with pytest.raises(WireError):
        binary.read_questions(msgpack.packb(msgpack.unpackb(binary.write([QUESTION])) | change))
    with pytest.raises(WireError):
        binary.read_questions(b"\xc1 not msgpack")


def say_states(question: Question, states: Any) -> Any:
    answer = say_sglang(question)
    answer["meta_info"]["hidden_states"] = states
    return answer


@pytest.mark.parametrize("cached", [0, 1, 2])
def test_sglangs_states_are_those_that_predict_the_response(cached: int) -> None:
    """Row i is the state at token i; a cached prefix has no rows, the last one predicts nothing that was sent."""
    asked = Question(np.arange(6), 3, hidden=True)
    at_each = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    said = json.loads(json.dumps(say_states(asked, [at_each[cached:].tolist()])))
    reply = sglang.read(said, asked)
    assert sglang.write(asked)["sampling_params"]["max_new_tokens"] == 1  # with 0, version 0.5.23 sends no states
    np.testing.assert_array_equal(reply.hidden, at_each[2:5])
    assert_is_the_truth(reply, asked)


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        (None, "malformed"),
        ([], "short"),
        ([[[1.0, 2.0]] * 3], "short"),  # of a prompt in chunks, the last chunk's
        ([[[1.0, 2.0]] * 7], "short"),  # with a row for a token that was generated
        ([[[1.0, 2.0]] * 5 + [[1.0]]], "malformed"),
        ([[[1.0, "x"]] * 6], "malformed"),
        ([[[1.0, None]] * 6], "not_finite"),
        ([[[1.0, float("nan")]] * 6], "not_finite"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], "short"),
        ([7] * 6, "malformed"),
    ],
)
def test_states_that_cannot_be_placed_are_refused(states: Any, kind: str) -> None:
    asked = Question(np.arange(6), 3, hidden=True)
    with pytest.raises(WireError) as caught:
        sglang.read(say_states(asked, states), asked)
    assert caught.value.kind == kind
