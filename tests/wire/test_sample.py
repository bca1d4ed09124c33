"""Sampled turns of a server, read or refused; requests that leave nothing to the server's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from limbeck.records import Key, SampleRequest, Sampling, request_of
from limbeck.seeding import served_seed
from limbeck.wire import sglang, vllm
from limbeck.wire.score import FINAL, WireError

KEY = Key("arithmetic-000017", sample=3)
REQUEST = SampleRequest(KEY, np.array([5, 6, 7]), Sampling(0.7, 4, (1, 2), seed=9))
VOCABULARY = 50


Tops = Sequence[dict[int, float]]


def of_sglang(
    ids: list[Any], values: list[Any], reason: Any = "length", tops: Tops = (), **more: Any
) -> dict[str, Any]:
    if tops:
        more["output_top_logprobs"] = [[[value, i, None] for i, value in row.items()] for row in tops]
    entries = [[value, i, None] for value, i in zip(values, ids, strict=False)]
    meta = {"output_token_logprobs": entries, "finish_reason": {"type": reason}, **more}
    return {"output_ids": ids, "meta_info": meta}


def of_vllm(ids: list[Any], values: list[Any], reason: Any = "length", tops: Tops = ()) -> dict[str, Any]:
    logprobs: dict[str, Any] = {"token_logprobs": values}
    if tops:
        logprobs["top_logprobs"] = [{f"token_id:{i}": value for i, value in row.items()} for row in tops]
    return {"choices": [{"token_ids": ids, "logprobs": logprobs, "finish_reason": reason}]}


READERS = {"sglang": (of_sglang, sglang.read_sample), "vllm": (of_vllm, vllm.read_sample)}
both = pytest.mark.parametrize("kind", list(READERS))
FOUR = [-0.1, -0.2, -0.3, -0.4]


@both
@pytest.mark.parametrize(
    ("ids", "reason", "finish"),
    [([8, 9, 10, 11], "length", "length"), ([8, 2], "stop", "stop"), ([8, 9, 10, 1], "length", "stop")],
)
def test_complete_responses(kind: str, ids: list[int], reason: str, finish: str) -> None:
    make, read = READERS[kind]
    sampled = read(make(ids, FOUR[: len(ids)], reason), REQUEST, VOCABULARY)
    np.testing.assert_array_equal(sampled.token_ids, ids)
    np.testing.assert_allclose(sampled.logprobs, FOUR[: len(ids)], rtol=1e-6)
    assert sampled.finish == finish


@both
@pytest.mark.parametrize(
    ("ids", "values", "reason", "word", "final"),
    [
        ([8, 9], FOUR[:2], "length", "breaks off after 2 of 4", False),
        ([8, 9], FOUR[:2], "stop", "stopped after token 9", True),
        ([8, 2, 9, 10], FOUR, "length", "went on after the stop token 2", True),
        ([8, 2, 9, 2], FOUR, "stop", "went on after the stop token 2", True),
        ([8, 9, 10, 50], FOUR, "length", "sampled token 50", True),
        ([8, 9, 10, -1], FOUR, "length", "sampled token -1", True),
        ([8, 9, 10, 11, 12], [*FOUR, -1.0], "length", "5 tokens, expected 1 to 4", False),
        ([], [], "stop", "0 tokens", False),
        ([8, 9, 10, 11], FOUR[:3], "length", "log-probs|not about", False),
        ([8, 9, 10, 11], [*FOUR[:3], float("nan")], "length", "log-prob of nan", False),
        ([8, 9, 10, 11], [*FOUR[:3], None], "length", "None, expected a number", False),
        ([8, 9, 10, 11], [*FOUR[:3], -9999.0], "length", "-9999", False),
        ([8, 9, 10, 11], FOUR, "abort", "ended with 'abort'", False),
        ([8, 9, 10, True], FOUR, "length", "True, expected an integer", False),
    ],
)
def test_others_are_refused(kind: str, ids: list[Any], values: list[Any], reason: str, word: str, final: bool) -> None:
    """What the server meant is final; what damage on the way may have done is asked again."""
    make, read = READERS[kind]
    with pytest.raises(WireError, match=word) as caught:
        read(make(ids, values, reason), REQUEST, VOCABULARY)
    assert (caught.value.kind in FINAL) is final


TOP = replace(REQUEST, top=2)


@both
def test_the_top_tokens_are_the_students_by_rank(kind: str) -> None:
    """Token 8 was sampled though two others are more likely; 9 is one of the two. Neither changes the support."""
    make, read = READERS[kind]
    tops = [{8: -3.0, 4: -1.0, 5: -0.5}, {9: -2.0, 6: -0.2}, {7: -1.0, 10: -1.0}, {1: -1.0, 3: -0.1}]
    if kind == "sglang":
        del tops[0][8]  # which gives the K asked for
    answer = read(make([8, 9, 10, 1], [-3.0, -2.0, -1.0, -1.0], "stop", tops), TOP, VOCABULARY)
    assert answer.top_ids is not None
    assert answer.top_ids.tolist() == [[5, 4], [6, 9], [7, 10], [3, 1]]
    assert read(make([8, 9, 10, 1], FOUR, "stop", tops), REQUEST, VOCABULARY).top_ids is None


@both
@pytest.mark.parametrize(
    ("row", "word", "final"),
    [
        ({4: -1.0}, "1 top tokens, 2 different", False),
        ({4: -1.0, 5: -0.5, 6: -0.7}, "3 top tokens, 2 different", False),
        ({8: -0.4, 5: -0.5, 6: -0.7}, "less likely than the sampled one", False),
        ({4: -1.0, 5: -9999.0}, "cut distribution. Set rollout.top_p = 1", True),
        ({4: -1.0, 50: -0.5}, "lists token 50", True),
    ],
)
def test_other_top_tokens_are_refused(kind: str, row: dict[int, float], word: str, final: bool) -> None:
    make, read = READERS[kind]
    with pytest.raises(WireError, match=word) as caught:
        read(make([8, 2], FOUR[:2], "stop", [row, {1: -0.1, 2: -0.2}]), TOP, VOCABULARY)
    assert (caught.value.kind in FINAL) is final


@both
def test_a_server_without_top_tokens_is_named(kind: str) -> None:
    make, read = READERS[kind]
    with pytest.raises(WireError, match="top_logprobs"):
        read(make([8, 2], FOUR[:2], "stop"), TOP, VOCABULARY)


def test_sglang_names_the_weights() -> None:
    spans = [{"version": "a", "start": 0, "end": 4}]
    answer = of_sglang([8, 9, 10, 11], FOUR, weight_version="a", weight_versions=spans)
    assert sglang.read_sample(answer, REQUEST, VOCABULARY).version == "a"
    answer["meta_info"]["weight_versions"] = [*spans, {"version": "b", "start": 2, "end": 4}]
    with pytest.raises(WireError, match="weights changed while"):
        sglang.read_sample(answer, REQUEST, VOCABULARY)


def test_sglang_log_probs_are_of_the_tokens_that_came() -> None:
    answer = of_sglang([8, 9, 10, 11], FOUR)
    answer["output_ids"] = [8, 9, 10, 12]
    with pytest.raises(WireError, match="not about the tokens"):
        sglang.read_sample(answer, REQUEST, VOCABULARY)


def test_requests() -> None:
    params = sglang.write_sample(REQUEST)["sampling_params"]
    assert (params["temperature"], params["top_k"], params["stop_token_ids"]) == (0.7, -1, [1, 2])
    assert sglang.write_sample(TOP)["top_logprobs_num"] == vllm.write_sample(TOP)["logprobs"] == 2
    assert "ignore_eos" not in params  # it would switch the stop tokens off
    body = vllm.write_sample(REQUEST, "m")
    assert (body["temperature"], body["top_k"], body["stop_token_ids"], body["model"]) == (0.7, 0, [1, 2], "m")
    greedy = SampleRequest(KEY, np.array([5]), Sampling(0.7, 4, top_k=9, top_p=0.5, greedy=True))
    assert sglang.write_sample(greedy)["sampling_params"]["top_k"] == 1
    assert vllm.write_sample(greedy)["temperature"] == 0
    assert params["sampling_seed"] == body["seed"] == served_seed(9, KEY)
    for one in (params, body):
        assert (one["repetition_penalty"], one["frequency_penalty"], one["presence_penalty"]) == (1, 0, 0)


def test_the_last_id_of_a_vocabulary_comes_back_as_0() -> None:
    """SGLang clips one id too many in its echo. Any other 0, or one beside the id itself, is a wrong answer."""
    request = request_of([3, 49, 7, 49], 1, 1.0)

    def answer(*echo: int) -> dict[str, Any]:
        entries = [[None, 3, None], *([-0.5, i, None] for i in echo)]
        return {"prompt_token_ids": request.token_ids.tolist(), "meta_info": {"input_token_logprobs": entries}}

    assert sglang.read(answer(0, 7, 0), request).logprobs.tolist() == [-0.5] * 3
    assert sglang.read(answer(49, 7, 49), request).logprobs.tolist() == [-0.5] * 3
    for wrong in [(0, 0, 0), (0, 7, 49), (49, 7, 0), (49, 0, 49), (1, 7, 1)]:
        with pytest.raises(WireError, match="the server scored token"):
            sglang.read(answer(*wrong), request)
    older = {"meta_info": answer(0, 7, 0)["meta_info"]}  # shows no other way that no id became 0 on the way
    with pytest.raises(WireError, match="the server scored token 0"):
        sglang.read(older, request)
