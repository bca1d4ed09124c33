"""Limbeck's own route, `/limbeck/score`: msgpack, exact float32, hidden states. No pickle.

    request   {"format": 2, "temperature": 0.7, "top_k": 20, "hidden": false,
               "sequences": [{"ids": <int32 bytes>, "start": 6, "support_ids": <int32>}]}
    answer    {"format": 2, "model": "...", "temperature": 0.7,
               "sequences": [{"ids": <int32 bytes>, "logprobs": <float32>, "top_ids": <int32>,
                              "top_logprobs": <float32>, "hidden": <float32>}]}

Arrays are little-endian and row-major; their shapes follow from the request. With `hidden` there are
no log-probs: the asker holds the head, and takes them from the states. `support_ids`, where given, are K ids for each
position from `start` on, other ones at each; their log-probs come back in that order as `top_logprobs`, and the ids
do not come back. What ties the two together is in the headers: see `binding`.

Bytes a position: 8 for the sampled token; 8 more for each top token, or for each given one (4 of them sent); 4 d for
hidden states, against
4 V for full logits: with d = 4096 and V = 152k that is 8, 168 (K = 20), 16,392 and 608,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from limbeck.records import Ints, ScoreRequest, Support, request_of
from limbeck.wire.binding import Echo
from limbeck.wire.score import (
    Reply,
    WireError,
    asked_ids,
    check_ids,
    check_logprobs,
    check_temperature,
    given_ids,
    kept,
    member,
    number,
    sequence,
    support_size,
    top_k,
    top_reply,
    wants_states,
)

PATH = "/limbeck/score"
MEDIA_TYPE = "application/msgpack"
FORMAT = 2  # 1 had a checksum in the body


@dataclass(frozen=True, slots=True)
class Result:
    """What a server knows of one sequence. Shapes as in `Reply`, but `hidden` is [n + 1, d]: SGLang's schema also
    has the state at the last token."""

    logprobs: npt.NDArray[np.float32] | None
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None
    hidden: npt.NDArray[np.float32] | None = None
    listed: npt.NDArray[np.float32] | None = None  # [n, J] of ids that SGLang's schema alone lets a client give
    temperature: float = 1.0  # what the logits were divided by; states are not divided


def write(requests: Sequence[ScoreRequest], acknowledges: bool = True) -> bytes:
    """The body of requests that share temperature and kind of support.

    Without `acknowledges` no temperature is sent, and the server answers at the one it was started with.
    """
    first = requests[0]
    return _pack(
        {
            "format": FORMAT,
            "temperature": first.temperature if acknowledges else None,
            "top_k": top_k(first),
            "hidden": wants_states(first),
            "sequences": [_row(request) for request in requests],
        }
    )


def _row(request: ScoreRequest) -> dict[str, Any]:
    given = given_ids(request)
    row = {"ids": _bytes(request.token_ids, "<i4"), "start": request.start}
    return row if given is None else row | {"support_ids": _bytes(given, "<i4")}


def read_requests(body: bytes, pick: Callable[[float | None], float]) -> list[ScoreRequest]:
    """What a client asks, at the temperature that `pick` makes of the one it sent (None: it sent none).

    Raises `WireError`; sizes are for the server to limit.
    """
    given = _unpack(body)
    if member(given, "format", "the request") != FORMAT:
        raise WireError("malformed", f"the request has format {given['format']!r}, expected {FORMAT}")
    sent = given.get("temperature")
    k, hidden = given.get("top_k", 0), given.get("hidden", False)
    if type(k) is not int or k < 0 or type(hidden) is not bool:
        raise WireError("malformed", f"top_k is {k!r} and hidden {hidden!r}, expected a count and a boolean")
    temperature = pick(None if sent is None else number(sent, "temperature"))
    requests: list[ScoreRequest] = []
    for item in sequence(member(given, "sequences", "the request"), "sequences"):
        ids = _array(member(item, "ids", "a sequence"), "<i4", "ids").astype(np.int64)
        start = member(item, "start", "a sequence")
        if type(start) is not int or not 1 <= start <= len(ids):
            raise WireError("malformed", f"start is {start!r}, expected 1 to the length of {len(ids)}")
        support: Support = "full" if hidden else k or "sampled"
        if item.get("support_ids") is not None:
            if support != "sampled":
                raise WireError("malformed", "support_ids are given, so top_k must be 0 and hidden false")
            support = _given(item["support_ids"], len(ids) - start)
        requests.append(request_of(ids, start, temperature, support, str(len(requests))))
    if len({isinstance(r.support, np.ndarray) and r.support.shape[1] for r in requests if len(r.scored_ids)}) > 1:
        raise WireError("malformed", "support_ids are not as many a position in every sequence of the request")
    return requests


def _given(data: Any, count: int) -> Ints:
    """[n, K] the ids of `count` positions."""
    ids = _array(data, "<i4", "support_ids")
    if count == 0 and len(ids) == 0:
        return np.zeros((0, 0), dtype=np.int64)
    if len(ids) == 0 or count == 0 or len(ids) % count:
        raise WireError("malformed", f"support_ids are {len(ids)} ids for {count} positions, expected K for each")
    return ids.reshape(count, -1).astype(np.int64)


def write_answer(requests: Sequence[ScoreRequest], results: Sequence[Result], temperature: float, model: str) -> bytes:
    """The answer to `requests`, in their order; `temperature` is the one that the results were computed at."""
    rows = []
    for request, result in zip(requests, results, strict=True):
        row = {"ids": _bytes(asked_ids(request), "<i4")}
        given = isinstance(request.support, np.ndarray)  # whoever gave the ids has them
        for name, kind in (("logprobs", "<f4"), ("top_ids", "<i4"), ("top_logprobs", "<f4"), ("hidden", "<f4")):
            values = getattr(result, name)
            if values is not None and not (given and name == "top_ids"):
                values = values[: len(asked_ids(request))]
                row[name] = _bytes(values, kind)
        rows.append(row)
    return _pack({"format": FORMAT, "model": model, "temperature": temperature, "sequences": rows})


def read(
    body: bytes, requests: Sequence[ScoreRequest], acknowledges: bool = True, echo: Echo | None = None
) -> list[Reply]:
    """Replies to `requests`. Raises `WireError` for anything else."""
    echo, answer = echo or Echo(), _unpack(body)
    if member(answer, "format") != FORMAT:
        raise WireError("malformed", f"the answer has format {answer['format']!r}, expected {FORMAT}")
    echo.model(member(answer, "model"))
    echo.temperature(answer.get("temperature"))
    rows = sequence(member(answer, "sequences"), "sequences")
    if len(rows) != len(requests):
        raise WireError("short", f"the answer has {len(rows)} sequences, {len(requests)} were asked for")
    return [
        _reply(row, request, answer.get("temperature"), acknowledges)
        for row, request in zip(rows, requests, strict=True)
    ]


def _reply(row: Any, request: ScoreRequest, temperature: Any, acknowledges: bool) -> Reply:
    count, keep = len(asked_ids(request)), kept(request)
    reported = check_temperature(request, temperature, acknowledges)
    check_ids(request, _shaped(member(row, "ids"), "<i4", "ids", count).tolist())
    if wants_states(request):
        states = _array(member(row, "hidden"), "<f4", "hidden")
        if count and (len(states) == 0 or len(states) % count):
            raise WireError("short", f"the answer has {len(states)} numbers of hidden states for {count} positions")
        if not np.isfinite(states).all():
            raise WireError("not_finite", "the answer has hidden states that are not finite")
        states = states.reshape(count, -1) if count else states.reshape(0, 0)
        return Reply(np.zeros(0, np.float32), hidden=states[keep], temperature=reported)
    logprobs_n = check_logprobs(_shaped(member(row, "logprobs"), "<f4", "logprobs", count))
    k, ids = support_size(request), given_ids(request)
    if not k:
        return Reply(logprobs_n.astype(np.float32)[keep], temperature=reported)
    if ids is None:
        ids = _shaped(member(row, "top_ids"), "<i4", "top_ids", count * k).reshape(count, k).astype(np.int64)
    values = _shaped(member(row, "top_logprobs"), "<f4", "top_logprobs", count * k).reshape(count, k)
    return top_reply(request, logprobs_n, ids, values, reported)


def _shaped(data: Any, kind: str, what: str, count: int) -> npt.NDArray[Any]:
    values = _array(data, kind, what)
    if len(values) != count:
        raise WireError("short", f"the answer has {len(values)} numbers of {what}, expected {count}")
    return values


def _array(data: Any, kind: str, what: str) -> npt.NDArray[Any]:
    if not isinstance(data, bytes) or len(data) % 4:
        raise WireError("malformed", f"{what} is not an array of four-byte numbers")
    return np.frombuffer(data, dtype=kind)


def _bytes(values: npt.NDArray[Any], kind: str) -> bytes:
    return np.ascontiguousarray(values, dtype=kind).tobytes()


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def _unpack(body: bytes) -> Any:
    """Raises `WireError`: msgpack has many ways to say that bytes are not its own."""
    try:
        return msgpack.unpackb(body, raw=False, strict_map_key=True)
    except Exception as error:
        raise WireError("malformed", f"the body is not msgpack: {type(error).__name__}: {error}") from None
