"""Limbeck's own route, `/limbeck/score`: msgpack, exact float32, hidden states. No pickle.

    request   {"format": 2, "temperature": 0.7, "top_k": 20, "hidden": false, "hidden_dtype": "float32",
               "sequences": [{"ids": <int32 bytes>, "start": 6, "support_ids": <int32>}]}
    answer    {"format": 2, "model": "...", "temperature": 0.7, "hidden_dtype": "float32",
               "sequences": [{"ids": <int32 bytes>, "logprobs": <float32>, "top_ids": <int32>,
                              "top_logprobs": <float32>, "hidden": <float32>}]}

Arrays are little-endian and row-major; their shapes follow from the request. With `hidden` there are
no log-probs: the asker holds the head, and takes them from the states. `support_ids`, where given, are K ids for each
position from `start` on, other ones at each; their log-probs come back in that order as `top_logprobs`, and the ids
do not come back. What ties the two together is in the headers: see `binding`. With another `hidden_dtype` than float32
the states are rounded (`states`), and a sequence has more:

    {"ids": ..., "hidden": <uint16 or int8>, "scales": <float32, int8 alone>, "errors": <float32>,
     "prefix_errors": <float32>}

in nats, at the temperature of the request: the largest change that the rounding makes to the log-probs of a
position's 20 most likely tokens (`prefix_errors`), and of those and the token that is scored (`errors`).

Bytes a position: 8 for the sampled token; 8 more for each top token, or for each given one (4 of them sent); 4 d for
hidden states, against
4 V for full logits: with d = 4096 and V = 152k that is 8, 168 (K = 20), 16,392 and 608,000.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgpack
import numpy as np
import numpy.typing as npt

from limbeck.config.values import HiddenDtype
from limbeck.records import Floats, Ints, ScoreRequest, Support, request_of
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
    safe_text,
    sequence,
    support_size,
    top_k,
    top_reply,
    wants_states,
)
from limbeck.wire.states import KINDS, EncodedStates, blocks

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
    rounded: RoundedStates | None = None  # in place of `hidden`


@dataclass(frozen=True, slots=True)
class RoundedStates:
    """States as they travel, and what rounding did to them: see above."""

    encoded: EncodedStates  # [n, d]
    errors: Floats  # [n] nats
    prefix_errors: Floats  # [n] nats


def write(requests: Sequence[ScoreRequest], acknowledges: bool = True, hidden_dtype: HiddenDtype = "float32") -> bytes:
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
            **({"hidden_dtype": hidden_dtype} if wants_states(first) else {}),
            "sequences": [_row(request) for request in requests],
        }
    )


def _row(request: ScoreRequest) -> dict[str, Any]:
    given = given_ids(request)
    row = {"ids": _bytes(request.token_ids, "<i4"), "start": request.start}
    return row if given is None else row | {"support_ids": _bytes(given, "<i4")}


def read_requests(body: bytes, pick: Callable[[float | None], float]) -> tuple[list[ScoreRequest], HiddenDtype]:
    """What a client asks, at the temperature that `pick` makes of the one it sent (None: it sent none), and how
    hidden states are to travel.

    Raises `WireError`; sizes are for the server to limit.
    """
    given = _unpack(body)
    if member(given, "format", "the request") != FORMAT:
        raise WireError("malformed", f"the request has format {given['format']!r}, expected {FORMAT}")
    sent = given.get("temperature")
    k, hidden = given.get("top_k", 0), given.get("hidden", False)
    if type(k) is not int or k < 0 or type(hidden) is not bool:
        raise WireError("malformed", f"top_k is {k!r} and hidden {hidden!r}, expected a count and a boolean")
    hidden_dtype = given.get("hidden_dtype", "float32")
    if not isinstance(hidden_dtype, str) or hidden_dtype not in KINDS:
        raise WireError("malformed", f"hidden_dtype is {str(hidden_dtype)[:40]!r}, expected one of {', '.join(KINDS)}")
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
    return requests, cast(HiddenDtype, hidden_dtype)


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
    rows, hidden_dtype = [], "float32"
    for request, result in zip(requests, results, strict=True):
        row = {"ids": _bytes(asked_ids(request), "<i4")}
        given = isinstance(request.support, np.ndarray)  # whoever gave the ids has them
        for name, kind in (("logprobs", "<f4"), ("top_ids", "<i4"), ("top_logprobs", "<f4"), ("hidden", "<f4")):
            values = getattr(result, name)
            if values is not None and not (given and name == "top_ids"):
                values = values[: len(asked_ids(request))]
                row[name] = _bytes(values, kind)
        if result.rounded is not None:
            row |= _written(result.rounded)
            hidden_dtype = result.rounded.encoded.dtype
        rows.append(row)
    head = {"format": FORMAT, "model": model, "temperature": temperature, "hidden_dtype": hidden_dtype}
    return _pack({**head, "sequences": rows})


def _written(rounded: RoundedStates) -> dict[str, bytes]:
    encoded = rounded.encoded
    row = {"hidden": _bytes(encoded.values, KINDS[encoded.dtype])}
    if encoded.scales is not None:
        row["scales"] = _bytes(encoded.scales, "<f4")
    return {**row, "errors": _bytes(rounded.errors, "<f4"), "prefix_errors": _bytes(rounded.prefix_errors, "<f4")}


def read(
    body: bytes,
    requests: Sequence[ScoreRequest],
    acknowledges: bool = True,
    echo: Echo | None = None,
    hidden_dtype: HiddenDtype = "float32",
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
    sent = answer.get("hidden_dtype", "float32")  # older servers have no other
    if sent != hidden_dtype and any(map(wants_states, requests)):
        raise WireError(
            "unsupported",
            f"the server sends hidden states as {safe_text(sent, 40)}, but {hidden_dtype} was asked for. Update it, or "
            "set teacher.hidden_dtype = 'float32'",
        )
    return [
        _reply(row, request, answer.get("temperature"), acknowledges, hidden_dtype)
        for row, request in zip(rows, requests, strict=True)
    ]


def _reply(row: Any, request: ScoreRequest, temperature: Any, acknowledges: bool, hidden_dtype: HiddenDtype) -> Reply:
    count, keep = len(asked_ids(request)), kept(request)
    reported = check_temperature(request, temperature, acknowledges)
    check_ids(request, _shaped(member(row, "ids"), "<i4", "ids", count).tolist())
    if wants_states(request):
        states_nd = _states(row, count, hidden_dtype)
        none = np.zeros(0, np.float32)
        if hidden_dtype == "float32":
            return Reply(none, hidden=states_nd[keep], temperature=reported)
        errors_n, prefix_errors_n = (_errors(row, name, count)[keep] for name in ("errors", "prefix_errors"))
        return Reply(none, hidden=states_nd[keep], temperature=reported, errors=errors_n, prefix_errors=prefix_errors_n)
    logprobs_n = check_logprobs(_shaped(member(row, "logprobs"), "<f4", "logprobs", count))
    k, ids = support_size(request), given_ids(request)
    if not k:
        return Reply(logprobs_n.astype(np.float32)[keep], temperature=reported)
    if ids is None:
        ids = _shaped(member(row, "top_ids"), "<i4", "top_ids", count * k).reshape(count, k).astype(np.int64)
    values = _shaped(member(row, "top_logprobs"), "<f4", "top_logprobs", count * k).reshape(count, k)
    return top_reply(request, logprobs_n, ids, values, reported)


def _states(row: Any, count: int, dtype: HiddenDtype) -> Floats:
    """[n, d] as they were before they travelled, but for rounding."""
    values = _array(member(row, "hidden"), KINDS[dtype], "hidden")
    if count and (len(values) == 0 or len(values) % count):
        raise WireError("short", f"the answer has {len(values)} numbers of hidden states for {count} positions")
    values_nd = values.reshape(count, -1) if count else values.reshape(0, 0)
    scales = None
    if dtype == "int8":
        of_each = blocks(values_nd.shape[1])
        scales = _shaped(member(row, "scales"), "<f4", "scales", count * of_each).reshape(count, of_each)
    states_nd = EncodedStates(dtype, values_nd, scales).decode()
    if not np.isfinite(states_nd).all():
        raise WireError("not_finite", "the answer has hidden states that are not finite")
    return states_nd


def _errors(row: Any, name: str, count: int) -> Floats:
    """[n] nats"""
    values = _shaped(member(row, name), "<f4", name, count)
    if not (np.isfinite(values) & (values >= 0)).all():
        raise WireError("not_finite", f"the answer has {name} that are not finite, or below 0")
    return values


def _shaped(data: Any, kind: str, what: str, count: int) -> npt.NDArray[Any]:
    values = _array(data, kind, what)
    if len(values) != count:
        raise WireError("short", f"the answer has {len(values)} numbers of {what}, expected {count}")
    return values


def _array(data: Any, kind: str, what: str) -> npt.NDArray[Any]:
    size = np.dtype(kind).itemsize
    if not isinstance(data, bytes) or len(data) % size:
        raise WireError("malformed", f"{what} is not an array of {size}-byte numbers")
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
