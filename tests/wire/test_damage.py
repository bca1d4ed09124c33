"""Answers that were damaged on the way and are still answers: what shows, and what two answers bring out."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from limbeck.wire import sglang
from limbeck.wire.agreement import confirmed
from limbeck.wire.score import Question, Reply, WireError, check_digits

N, K = 6, 4


def logprobs(seed: int, count: int = N * K) -> np.ndarray:
    return -np.random.default_rng(seed).gamma(2.0, 2.0, count).astype(np.float32).astype(np.float64)


@given(st.integers(0, 2**32 - 1), st.integers(3, 40))
@settings(max_examples=200, deadline=None)
def test_another_digit_behind_the_first_is_no_float32(seed: int, count: int) -> None:
    values, dice = logprobs(seed, count), random.Random(seed)
    check_digits(values)
    at = dice.randrange(count)
    text = repr(float(values[at]))
    place = dice.choice([i for i in range(text.index(".") + 2, len(text)) if text[i].isdigit()])
    other = dice.choice([digit for digit in "0123456789" if digit != text[place]])
    values[at] = float(text[:place] + other + text[place + 1 :])
    assume(values[at] != float(text))  # the last digit may be one too many
    with pytest.raises(WireError, match="damaged on the way"):
        check_digits(values)


@pytest.mark.parametrize("places", [2, 4, 8])
def test_a_server_that_rounds_what_it_prints_is_believed(places: int) -> None:
    rounded = np.round(logprobs(0), places)
    rounded[::2] = 0.0  # of a certain teacher: a float32 however it is printed
    check_digits(rounded)
    check_digits(logprobs(0, 1) + 1e-12)  # one number alone says nothing


def reply(seed: int = 0, noise: float = 0.0) -> Reply:
    """K of K + 2 tokens a position; noise makes them change places."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(50)[: K + 2] for _ in range(N)])
    values = -np.sort(rng.gamma(2.0, 2.0, (N, K + 2)), axis=1) + noise * rng.standard_normal((N, K + 2))
    order = np.argsort(-values, axis=1)[:, :K]
    tops = np.take_along_axis(values, order, axis=1).astype(np.float32)
    return Reply(logprobs(seed, N).astype(np.float32), np.take_along_axis(ids, order, axis=1), tops)


def copy(one: Reply, field: str, at: Any, value: float) -> Reply:
    parts = {name: None if (part := getattr(one, name)) is None else part.copy() for name in FIELDS}
    parts[field][at] = value
    return Reply(**parts)


FIELDS = ("logprobs", "top_ids", "top_logprobs", "hidden")


@pytest.mark.parametrize(
    ("field", "at", "value"), [("logprobs", 2, -3.0), ("top_ids", (N - 1, K - 1), 77), ("top_logprobs", (0, 1), -0.9)]
)
def test_of_a_damaged_answer_and_whole_ones_a_whole_one_is_taken(field: str, at: Any, value: float) -> None:
    whole, damaged = reply(), copy(reply(), field, at, value)
    assert confirmed([damaged], 1e-4) is None
    assert confirmed([damaged, whole], 1e-4) is None
    assert confirmed([damaged, whole, reply()], 1e-4) is whole
    elsewhere = copy(reply(), "logprobs", 0, -4.0)
    assert confirmed([damaged, elsewhere], 1e-4) is None


def test_hidden_states_are_compared_too() -> None:
    states = Reply(np.zeros(0, np.float32), hidden=np.ones((2, 3), np.float32))
    damaged = copy(states, "hidden", (1, 2), 1.5)
    narrower = Reply(np.zeros(0, np.float32), hidden=np.ones((2, 2), np.float32))
    assert confirmed([states, damaged], 1e-3) is None
    assert confirmed([states, narrower], 1e-3) is None
    assert confirmed([states, damaged, states], 1e-3) is states


def test_tokens_that_change_places_in_the_noise_are_no_damage() -> None:
    rng = np.random.default_rng(1)
    ids, values = np.arange(K + 2), np.array([-0.5, -1.0, -2.0, -3.0, -3.001, -3.002])
    replies = []
    for _ in range(6):
        noisy = values + 0.01 * rng.standard_normal(K + 2)
        order = np.argsort(-noisy)[:K]
        replies.append(Reply(np.zeros(1, np.float32), ids[order][None], noisy[order][None].astype(np.float32)))
    assert len({tuple(one.top_ids[0]) for one in replies}) > 1
    assert confirmed(replies, 0.08) is not None


def test_an_entry_of_another_shape_is_refused() -> None:
    """A digit that became a comma."""
    question = Question(np.array([5, 6]), 1)
    answer = {"meta_info": {"input_token_logprobs": [[None, 5, None], [-1, 6, 25, None]]}}
    with pytest.raises(WireError, match="expected \\[log-prob, id, text\\]"):
        sglang.read(json.loads(json.dumps(answer)), question)
