"""Is an answer what its request asked for? One sentence says what is wrong with it, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from limbeck.records import (
    HiddenScores,
    Sampled,
    SampleRequest,
    ScoreRequest,
    Scores,
    TokenScores,
    TopKScores,
)

MOST = 0.05  # nats by which rounding may lift a log-prob above 0


def problem_of_scores(scores: Any, request: ScoreRequest) -> str | None:
    """Why the scores are not what the request asked for; None where they are."""
    count, support = len(request.scored_ids), request.support
    if not isinstance(scores, TokenScores | TopKScores | HiddenScores):
        return f"it answered {kind_of(scores)}, expected TokenScores, TopKScores, HiddenScores or a Failure"
    if isinstance(scores, HiddenScores):
        shape = getattr(scores.states, "shape", None)
        if not hasattr(scores.states, "fetch") or shape is None or len(shape) != 2 or shape[0] != count:
            return (
                f"states are {_array(scores.states)} for {count} scored tokens; expected limbeck.protocols.States of "
                f"shape [{count}, d], such as limbeck.models.states.LocalStates(tensor)"
            )
        return _problem_of_arrays(scores, request, count)  # more than any support
    wanted: type = TopKScores
    if isinstance(support, str):
        wanted = TokenScores if support == "sampled" else HiddenScores
    if count and not isinstance(scores, wanted):
        have = "'sampled'" if isinstance(scores, TokenScores) else f"{scores.ids.shape[-1]}"
        return (
            f"it was asked for {_asked(support)} and answered {type(scores).__name__}, expected {wanted.__name__}. Set "
            f"objective.support = {have} for this teacher, or answer with {wanted.__name__}."
        )
    if scores.temperature != request.temperature:
        return (
            f"the scores are stamped temperature {scores.temperature}, but the student sampled at "
            f"{request.temperature}. Score at the temperature of the request."
        )
    return _problem_of_arrays(scores, request, count)


def _problem_of_arrays(scores: Scores, request: ScoreRequest, count: int) -> str | None:
    if not count:
        return None
    expected: dict[str, tuple[Any, str, tuple[int, ...]]] = {}
    if isinstance(scores, TopKScores):
        support = request.support
        k = support if isinstance(support, int) else np.asarray(support).shape[1]
        expected["ids"] = (scores.ids, "int64", (count, k))
        expected["logprobs"] = (scores.logprobs, "float32", (count, k))
        expected["logprobs_of_sampled"] = (scores.logprobs_of_sampled, "float32", (count,))
    elif isinstance(scores, TokenScores):
        expected["logprobs"] = (scores.logprobs, "float32", (count,))
    if scores.errors is not None:
        expected["errors"] = (scores.errors, "float32", (count,))
    if scores.valid_mask is not None:
        expected["valid_mask"] = (scores.valid_mask, "bool", (count,))
    for name, (array, dtype, shape) in expected.items():
        if problem := _problem_of_array(name, array, dtype, shape):
            return problem
    valid = np.ones(count, np.bool_) if scores.valid_mask is None else scores.valid_mask
    for name, (array, _, _) in expected.items():
        wrong = array[valid & ~(array <= MOST).reshape(count, -1).all(axis=1)]
        if name.startswith("logprobs") and len(wrong):
            return f"{name} has {wrong.max():.4g}, but a log-prob is at most 0. Normalise over the vocabulary."
    return _problem_of_ids(scores.ids, request.support) if isinstance(scores, TopKScores) else None


def _problem_of_ids(ids: np.ndarray, support: Any) -> str | None:
    if isinstance(support, np.ndarray):
        wrong = np.flatnonzero((ids != support).any(axis=1))
        if not len(wrong):
            return None
        at = wrong[0]
        return (
            f"ids of scored token {at} are {ids[at, :8].tolist()}, but it was asked about {support[at, :8].tolist()}. "
            "Return the log-probs of request.support, in its order, or set objective.support to a number."
        )
    return _TWICE if _has_twins(ids) else None


_TWICE = "ids name one token twice at one position, which would count twice. Return K different tokens."


def _has_twins(ids: np.ndarray) -> bool:
    return bool((np.diff(np.sort(ids, axis=1), axis=1) == 0).any())


def problem_of_response(sampled: Any, request: SampleRequest, vocabulary: int) -> str | None:
    """Why a response cannot be one to the request; None where it can."""
    if not isinstance(sampled, Sampled):
        return f"it answered {kind_of(sampled)}, expected Sampled or a Failure"
    ids, sampling = sampled.token_ids, request.sampling
    count = len(ids) if isinstance(ids, np.ndarray) and ids.ndim == 1 else 0
    arrays: list[tuple[str, Any, str, tuple[int, ...]]] = [
        ("token_ids", ids, "int64", (count,)),
        ("logprobs", sampled.logprobs, "float32", (count,)),
    ]
    if request.top:
        arrays.append(("top_ids", sampled.top_ids, "int64", (count, request.top)))
    for name, array, dtype, shape in arrays:
        if problem := _problem_of_array(name, array, dtype, shape):
            return problem
    if not 0 < count <= sampling.max_tokens:
        return (
            f"the response has {count} tokens, expected 1 to rollout.max_tokens = {sampling.max_tokens}; a stop token "
            "belongs to the response"
        )
    outside = ids[(ids < 0) | (ids >= vocabulary)]
    if len(outside):
        return f"it sampled token {outside[0]}, but student and teacher share ids 0 to {vocabulary - 1} only"
    tops = sampled.top_ids if request.top else None
    if tops is not None and (_has_twins(tops) or ((tops < 0) | (tops >= vocabulary)).any()):
        return f"top_ids are not {request.top} different ids of 0 to {vocabulary - 1} at each position"
    wrong = sampled.logprobs[~(sampled.logprobs <= MOST) | np.isneginf(sampled.logprobs)]
    if len(wrong):
        return f"a sampled token has the log-prob {wrong[0]}, expected a finite number of at most 0"
    return _problem_of_end(sampled, sampling.stop_ids, sampling.max_tokens)


def _problem_of_end(sampled: Sampled, stop_ids: Sequence[int], max_tokens: int) -> str | None:
    ids = sampled.token_ids
    stops = np.flatnonzero(np.isin(ids, stop_ids))
    if len(stops) and stops[0] < len(ids) - 1:
        return (
            f"it went on after the stop token {ids[stops[0]]}, token {stops[0]} of {len(ids)}. End with the first one."
        )
    if not len(stops) and len(ids) < max_tokens:
        return (
            f"the response ends after {len(ids)} of {max_tokens} tokens without a stop token {tuple(stop_ids)}. Keep "
            "the stop token in the response, or add it to rollout.stop_ids."
        )
    finish = "stop" if len(stops) else "length"
    if sampled.finish != finish:
        return f"finish = {sampled.finish!r}, but the last token makes it {finish!r}"
    return None


def _problem_of_array(name: str, array: Any, dtype: str, shape: tuple[int, ...]) -> str | None:
    if isinstance(array, np.ndarray) and array.dtype == dtype and array.shape == shape:
        return None
    remedy = " Compute in float32, and convert with .astype(np.float32)." if dtype == "float32" else ""
    return f"{name} is {_array(array)}, expected a numpy array of {dtype} with shape {list(shape)}.{remedy}"


def _array(array: Any) -> str:
    if hasattr(array, "shape"):
        return f"{kind_of(array)} of {getattr(array, 'dtype', 'unknown type')} with shape {list(array.shape)}"
    return kind_of(array)


def _asked(support: Any) -> str:
    if isinstance(support, str):
        return "the whole distribution (support 'full')" if support == "full" else "the sampled tokens' log-probs"
    return f"{support} tokens a position" if isinstance(support, int) else "the log-probs of given ids"


def kind_of(thing: Any) -> str:
    return "None" if thing is None else type(thing).__name__
