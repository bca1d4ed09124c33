"""Hidden states in fewer bytes: the rounding is what it says it is, and nothing else comes out of a body."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from limbeck.config.values import HiddenDtype
from limbeck.records import request_of
from limbeck.wire import binary
from limbeck.wire.binary import Result, RoundedStates
from limbeck.wire.score import WireError
from limbeck.wire.states import BLOCK, LARGEST, blocks, bytes_of, encode

ROUNDED: list[HiddenDtype] = ["bfloat16", "int8"]
STATES = arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(1, 2 * BLOCK + 3)),
    elements=st.floats(-(2.0**127), 2.0**127, width=32),
)


@given(STATES)
@example(np.full((1, 1), 1e-45, np.float32))
@settings(max_examples=150, deadline=None)
def test_bfloat16_is_torchs(states: np.ndarray) -> None:
    expected = torch.from_numpy(states).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(encode(states, "bfloat16").decode(), expected)


@given(STATES)
@example(np.full((1, 1), 1e-45, np.float32))
@example(np.zeros((2, BLOCK + 1), np.float32))
@settings(max_examples=150, deadline=None)
def test_int8_is_within_half_a_step_of_its_blocks_largest_number(states: np.ndarray) -> None:
    decoded = encode(states, "int8").decode()
    assert decoded.shape == states.shape
    assert decoded.dtype == np.float32
    for start in range(0, states.shape[1], BLOCK):
        block, back = states[:, start : start + BLOCK].astype(np.float64), decoded[:, start : start + BLOCK]
        step = np.abs(block).max(axis=1, initial=0.0, keepdims=True) / 127
        assert (np.abs(back - block) <= 0.5001 * step + 1e-43).all()


@given(STATES, st.sampled_from(["float32", *ROUNDED]))
@settings(max_examples=60, deadline=None)
def test_what_is_read_is_what_was_encoded(states: np.ndarray, dtype: HiddenDtype) -> None:
    count = len(states)
    request = request_of(np.arange(count + 2), 2, 0.7, "full")
    body = answer_of(request, states, dtype)
    (reply,) = binary.read(body, [request], hidden_dtype=dtype)
    assert reply.hidden is not None
    assert reply.hidden.shape == (states.shape if count else (0, 0))
    np.testing.assert_array_equal(reply.hidden, encode(states, dtype).decode().reshape(reply.hidden.shape))
    if dtype != "float32":
        np.testing.assert_array_equal(reply.errors, errors_of(count))
        np.testing.assert_array_equal(reply.prefix_errors, errors_of(count) / 2)
    rows = msgpack.unpackb(body)["sequences"]
    assert len(rows[0]["hidden"]) + len(rows[0].get("scales", b"")) == count * bytes_of(states.shape[1], dtype)


def errors_of(count: int) -> np.ndarray:
    return np.linspace(0.01, 0.1, count, dtype=np.float32)


def answer_of(request: Any, states: np.ndarray, dtype: HiddenDtype) -> bytes:
    if dtype == "float32":
        result = Result(None, hidden=states)
    else:
        errors = errors_of(len(states))
        result = Result(None, rounded=RoundedStates(encode(states, dtype), errors, errors / 2))
    return binary.write_answer([request], [result], 0.7, "m")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.5 * LARGEST])
@pytest.mark.parametrize("dtype", ["float32", *ROUNDED])
def test_states_that_are_not_finite_are_not_encoded(bad: float, dtype: HiddenDtype) -> None:
    with pytest.raises(ArithmeticError, match="not finite"):
        encode(np.array([[1.0, bad]], np.float32), dtype)


REQUEST = request_of([5, 6, 7, 8], 2, 0.7, "full")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"hidden": b"\0" * 3}, "short"),
        ({"hidden": b""}, "short"),
        ({"scales": b"\0" * 4}, "short"),
        ({"scales": b"\0" * 5}, "malformed"),
        ({"scales": np.full(2 * blocks(40), np.nan, "<f4").tobytes()}, "not_finite"),
        ({"errors": b"\0" * 4}, "short"),
        ({"errors": np.array([0.1, np.nan], "<f4").tobytes()}, "not_finite"),
        ({"prefix_errors": np.array([0.1, -0.1], "<f4").tobytes()}, "not_finite"),
        ({"prefix_errors": None}, "malformed"),
    ],
)
def test_a_spoiled_answer_is_refused(change: dict[str, Any], kind: str) -> None:
    answer = msgpack.unpackb(answer_of(REQUEST, np.ones((2, 40), np.float32), "int8"))
    answer["sequences"][0] |= change
    with pytest.raises(WireError) as caught:
        binary.read(msgpack.packb(answer), [REQUEST], hidden_dtype="int8")
    assert caught.value.kind == kind


def test_a_server_that_does_not_know_the_dtype_is_refused_by_name() -> None:
    """An older one ignores the field and sends four bytes a number."""
    answer = msgpack.unpackb(answer_of(REQUEST, np.ones((2, 40), np.float32), "float32"))
    del answer["hidden_dtype"]
    with pytest.raises(WireError, match=r"float32, but int8 was asked for.*teacher\.hidden_dtype") as caught:
        binary.read(msgpack.packb(answer), [REQUEST], hidden_dtype="int8")
    assert caught.value.final


def test_the_dtype_travels_with_the_request_and_nothing_else_is_taken() -> None:
    body = binary.write([REQUEST], hidden_dtype="int8")
    assert binary.read_requests(body, lambda sent: sent or 1.0)[1] == "int8"
    assert "hidden_dtype" not in msgpack.unpackb(binary.write([replace(REQUEST, support=3)], hidden_dtype="int8"))
    for wrong in ("int4", 8, None, ["int8"]):
        spoiled = msgpack.packb(msgpack.unpackb(body) | {"hidden_dtype": wrong})
        with pytest.raises(WireError, match="expected one of float32, bfloat16, int8"):
            binary.read_requests(spoiled, lambda sent: sent or 1.0)
