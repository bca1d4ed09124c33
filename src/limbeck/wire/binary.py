"""Limbeck's own route, `/limbeck/score`: msgpack, exact float32, hidden states, a digest. No pickle.

    question  {"format": 1, "temperature": 0.7, "top_k": 20, "hidden": false,
               "sequences": [{"ids": <int32 bytes>, "start": 6}]}
    answer    {"digest": <crc32 of "body">, "body": <msgpack of what follows>}
              {"format": 1, "model": "...", "temperature": 0.7,
               "sequences": [{"ids": <int32 bytes>, "logprobs": <float32>, "top_ids": <int32>,
                              "top_logprobs": <float32>, "hidden": <float32>}]}

Arrays are little-endian and row-major; their shapes follow from the question. With `hidden` there are
no log-probs: the asker holds the head, and takes them from the states. A digest that does not fit is an
answer that was damaged on the way, and is asked for again.

Bytes a position: 8 for the sampled token, 8 more for each top token, 4 d for hidden states, against
4 V for full logits: with d = 4096 and V = 152k that is 8, 168 (K = 20), 16,392 and 608,000.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from limbeck.wire.score import (
    Question,
    Reply,
    WireError,
    check_ids,
    check_logprobs,
    check_temperature,
    member,
    number,
    sequence,
    top_reply,
)

PATH = "/limbeck/score"
MEDIA_TYPE = "application/msgpack"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What a server knows of one sequence. Shapes as in `Reply`, but `hidden` is [n + 1, d]: SGLang's schema also
    has the state at the last token."""

    logprobs: npt.NDArray[np.float32] | None
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None
    hidden: npt.NDArray[np.float32] | None = None
    listed: npt.NDArray[np.float32] | None = None  # [n, J] of `Question.listed`; SGLang's schema alone has them


def write(questions: Sequence[Question]) -> bytes:
    """The request body of questions that share temperature, top K and kind."""
    first = questions[0]
    return _pack(
        {
            "format": FORMAT,
            "temperature": first.temperature,
            "top_k": first.top_k,
            "hidden": first.hidden,
            "sequences": [{"ids": _bytes(q.token_ids, "<i4"), "start": q.start} for q in questions],
        }
    )


def read_questions(body: bytes) -> list[Question]:
    """What a client asks. Raises `WireError`; sizes are for the server to limit."""
    told = _unpack(body)
    if member(told, "format", "the question") != FORMAT:
        raise WireError("malformed", f"the question has format {told['format']!r}, expected {FORMAT}")
    temperature = told.get("temperature")
    top_k, hidden = told.get("top_k", 0), told.get("hidden", False)
    if type(top_k) is not int or top_k < 0 or type(hidden) is not bool:
        raise WireError("malformed", f"top_k is {top_k!r} and hidden {hidden!r}, expected a count and a boolean")
    questions = []
    for item in sequence(member(told, "sequences", "the question"), "sequences"):
        ids = _array(member(item, "ids", "a sequence"), "<i4", "ids").astype(np.int64)
        start = member(item, "start", "a sequence")
        if type(start) is not int or not 1 <= start <= len(ids):
            raise WireError("malformed", f"start is {start!r}, expected 1 to the length of {len(ids)}")
        asked = None if temperature is None else number(temperature, "temperature")
        questions.append(Question(ids, start, asked, top_k, hidden))
    return questions


def write_answer(questions: Sequence[Question], results: Sequence[Result], temperature: float, model: str) -> bytes:
    """The answer to `questions`, in their order."""
    rows = []
    for question, result in zip(questions, results, strict=True):
        row = {"ids": _bytes(question.scored_ids, "<i4")}
        for name, kind in (("logprobs", "<f4"), ("top_ids", "<i4"), ("top_logprobs", "<f4"), ("hidden", "<f4")):
            values = getattr(result, name)
            if values is not None:
                values = values[: len(question.scored_ids)]
                row[name] = _bytes(values, kind)
        rows.append(row)
    body = _pack({"format": FORMAT, "model": model, "temperature": temperature, "sequences": rows})
    return _pack({"digest": zlib.crc32(body), "body": body})


def read(body: bytes, questions: Sequence[Question]) -> list[Reply]:
    """Replies to `questions`. Raises `WireError` for anything else."""
    envelope = _unpack(body)
    packed = member(envelope, "body")
    if not isinstance(packed, bytes) or zlib.crc32(packed) != member(envelope, "digest"):
        raise WireError("malformed", "the answer does not fit its digest: it was damaged on the way")
    answer = _unpack(packed)
    if member(answer, "format") != FORMAT:
        raise WireError("malformed", f"the answer has format {answer['format']!r}, expected {FORMAT}")
    rows = sequence(member(answer, "sequences"), "sequences")
    if len(rows) != len(questions):
        raise WireError("short", f"the answer has {len(rows)} sequences, {len(questions)} were asked for")
    return [_reply(row, question, answer.get("temperature")) for row, question in zip(rows, questions, strict=True)]


def _reply(row: Any, question: Question, temperature: Any) -> Reply:
    count = len(question.scored_ids)
    acknowledged = check_temperature(question, temperature)
    check_ids(question, _shaped(member(row, "ids"), "<i4", "ids", count).tolist())
    if question.hidden:
        states = _array(member(row, "hidden"), "<f4", "hidden")
        if count and (len(states) == 0 or len(states) % count):
            raise WireError("short", f"the answer has {len(states)} numbers of hidden states for {count} positions")
        if not np.isfinite(states).all():
            raise WireError("not_finite", "the answer has hidden states that are not finite")
        states = states.reshape(count, -1) if count else states.reshape(0, 0)
        return Reply(np.zeros(0, np.float32), hidden=states, temperature=acknowledged)
    logprobs_n = check_logprobs(_shaped(member(row, "logprobs"), "<f4", "logprobs", count))
    if not question.top_k:
        return Reply(logprobs_n.astype(np.float32), temperature=acknowledged)
    k = question.top_k
    ids = _shaped(member(row, "top_ids"), "<i4", "top_ids", count * k).reshape(count, k).astype(np.int64)
    values = _shaped(member(row, "top_logprobs"), "<f4", "top_logprobs", count * k).reshape(count, k)
    return top_reply(question, logprobs_n, ids, values, acknowledged)


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
