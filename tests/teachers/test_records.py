"""What records refuse to be: each with the value and, where it has one, the prompt's name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.records import Key, Prompt, Rollout, Sampling, ScoreRequest, request_of
from tests import tiny

NAN, INFINITY = float("nan"), float("inf")


def test_a_prompt_has_tokens() -> None:
    assert Prompt("p", (3,)).token_ids == (3,)
    with pytest.raises(ValueError, match="prompt 'p' has no tokens"):
        Prompt("p", ())


WRONG: list[tuple[str, Any]] = [
    *(("temperature", value) for value in (0, 0.0, -0.7, NAN, INFINITY, -INFINITY)),
    *(("max_tokens", value) for value in (0, -1)),
    *(("top_p", value) for value in (0, -0.1, 1.01, NAN)),
    *(("top_k", value) for value in (-1,)),
    *(("min_p", value) for value in (-0.1, 1, 1.5, NAN)),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_sampling_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        Sampling(**{"temperature": 1.0, "max_tokens": 1, name: value})


def test_greedy_evaluation_is_the_remedy_for_temperature_zero() -> None:
    with pytest.raises(ValueError, match=r"eval\.greedy = true"):
        Sampling(0.0, 1)


def test_sampling_at_the_edges_of_its_ranges() -> None:
    assert Sampling(1e-3, 1, top_p=1, top_k=0, min_p=0) == Sampling(1e-3, 1)


@pytest.mark.parametrize(
    ("cut", "truncated"),
    [({}, False), ({"greedy": True}, False), ({"top_p": 0.99}, True), ({"top_k": 1}, True), ({"min_p": 0.01}, True)],
)
def test_what_counts_as_truncated(cut: dict[str, Any], truncated: bool) -> None:
    assert Sampling(1.0, 1, **cut).truncated is truncated


def rollout(**fields: Any) -> Rollout:
    """Two tokens of prompt and two of response, but for `fields`."""
    complete = {
        "prompt": Prompt("p", (5, 6)), "key": Key("p"), "segment": 0, "token_ids": np.array([5, 6, 7, 8]),
        "trained": np.array([False, False, True, True]), "logprobs": np.zeros(2, dtype=np.float32),
        "versions": np.zeros(2, dtype=np.int64), "sampling": Sampling(1.0, 2),
    }  # fmt: skip
    return Rollout(**{**complete, **fields})


def test_response_ids_are_the_trained_tokens_in_order() -> None:
    assert rollout().response_ids.tolist() == [7, 8]
    assert tiny.rollout([4, 5, 6, 7], [0, 1, 0, 1]).response_ids.tolist() == [5, 7]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"token_ids": np.array([5, 6, 7])}, r"token_ids \(3,\) and trained \(4,\)"),
        ({"token_ids": np.ones((1, 4)), "trained": np.ones((1, 4), bool)}, "one-dimensional"),
        ({"logprobs": np.zeros(3)}, r"2 trained tokens but logprobs of shape \(3,\)"),
        ({"logprobs": np.zeros((2, 1))}, r"shape \(2, 1\)"),
        ({"versions": np.zeros(4, dtype=np.int64)}, r"2 trained tokens but versions of shape \(4,\)"),
        ({"top_ids": np.zeros((3, 5), dtype=np.int64)}, r"2 trained tokens but top_ids of shape \(3, 5\)"),
        ({"trained": np.array([True, False, False, True])}, "first token is trained"),
    ],
)
def test_a_rollout_whose_shapes_do_not_fit_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"prompt 'p'.*{reason}"):
        rollout(**fields)


def test_a_response_of_no_tokens_is_a_rollout() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    empty = rollout(trained=np.zeros(4, dtype=bool), logprobs=nothing.astype(np.float32), versions=nothing)
    assert empty.response_ids.tolist() == []


def test_a_request_knows_what_is_scored_and_where_it_begins() -> None:
    request = ScoreRequest("q", np.array([4, 5, 6, 7]), np.array([False, False, True, False]), 0.7)
    assert (request.scored_ids.tolist(), request.start) == ([6], 2)
    assert request_of([4, 5], 2, 1.0).start == 2  # nothing is scored


@pytest.mark.parametrize(
    ("scored", "reason"),
    [([True, False], "nothing precedes its first token"), ([False] * 3, r"\(2,\) and scored \(3,\)")],
)
def test_a_request_whose_shapes_do_not_fit_is_refused(scored: list[bool], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"request 'q'.*{reason}"):
        ScoreRequest("q", np.array([4, 5]), np.array(scored), 1.0)
