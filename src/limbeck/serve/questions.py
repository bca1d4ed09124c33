"""Requests in SGLang's and vLLM's schemas and in our own, for clients that were written for those servers.

    question = read("sglang", body, limits)
    asked, cost = prepare(question, tokenize, limits)

Only scoring is served: a request for new tokens is refused rather than answered with none. No torch: large bodies are
read, and large answers written (`answers`), in a process of their own (`codec`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from limbeck.config.values import HiddenDtype
from limbeck.records import Ints, Support, request_of
from limbeck.serve.limits import Asked, Cost, Limits, Size
from limbeck.wire import binary
from limbeck.wire.score import WireError, integer, number, top_k, wants_states

# Fields of SGLang's that change what is scored, or what must be in the answer. Others change how, and are ignored.
OTHER_MODEL = (
    "lora_path", "image_data", "video_data", "audio_data", "input_embeds", "session_params", "custom_logit_processor",
    "token_ids_logprob_positions",
)  # fmt: skip
LONGEST_NAME = 256  # characters of a request's own name

Schema: TypeAlias = Literal["sglang", "vllm", "binary", "tokenize"]
Row: TypeAlias = "tuple[str | Ints, int]"  # text or token ids, and the first token to score; -1: none is
Tokenize: TypeAlias = Callable[[str, bool], list[int]]  # the second: with the special tokens of the model

SIZES: Mapping[Schema, Size] = {
    "sglang": Size(entry=48, number=26),  # [-0.12345678901234567,4294967295,null],
    "vllm": Size(
        entry=100, number=0
    ),  # "4294967295":{"logprob":-0.12345678901234567,"rank":1024,"decoded_token":null},
    "binary": Size(entry=8, number=4, echo=4),
    "tokenize": Size(entry=0, number=0),
}


@dataclass(frozen=True, slots=True)
class Question:
    """What a body asks for, before texts are tokenized."""

    schema: Schema
    rows: Sequence[Row]
    model: str  # as the answer names it
    temperature: float = 1.0
    top_k: int = 0
    listed: tuple[int, ...] = ()
    states: Literal["none", "too", "only"] = "none"
    many: bool = False  # a list of prompts, not one
    names: Sequence[str] = ()  # what the client calls its sequences, or its request
    echo: bool = False  # repeat the token ids
    special_tokens: bool = True
    given: Sequence[Support] = ()  # of each sequence; empty where `top_k` and `states` say all
    hidden_dtype: HiddenDtype = "float32"  # in which states alone travel

    @property
    def has_text(self) -> bool:
        return any(isinstance(tokens, str) for tokens, _ in self.rows)


def read(schema: Schema, body: bytes, limits: Limits) -> Question:
    """What a body asks for. Raises `WireError`, whatever the bytes are."""
    try:
        question = _READERS[schema](body, limits)
        limits.check_sequences(len(question.rows))
        for tokens, _ in question.rows:
            if isinstance(tokens, str):
                limits.check_text(tokens, "a text")
            else:
                limits.check_length(len(tokens))
    except (ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        # The ways in which bytes can be no request are many: a number of 5000 digits, a nesting of 100,000 levels.
        raise WireError("malformed", f"the request cannot be read: {type(error).__name__}: {error}") from None
    return question


def prepare(question: Question, tokenize: Tokenize, limits: Limits) -> tuple[list[Asked], Cost]:
    """The sequences to score, and what they cost. Raises `WireError` for what is beyond the limits."""
    asked = []
    support: Any = "full" if question.states == "only" else question.top_k or "sampled"
    for index, (tokens, start) in enumerate(question.rows):
        ids = np.array(tokenize(tokens, True), dtype=np.int64) if isinstance(tokens, str) else tokens
        limits.check_length(len(ids))
        if start > len(ids):
            raise WireError(
                "refused", f"logprob_start_len is {start - 1}, expected 0 to {len(ids) - 1}, the last token"
            )
        own = question.given[index] if question.given else support
        request = request_of(ids, len(ids) if start < 0 else start, question.temperature, own)
        asked.append(Asked(request, question.listed, question.states == "too", question.hidden_dtype))
    return asked, limits.check(asked, SIZES[question.schema])


def _read_sglang(data: bytes, limits: Limits) -> Question:
    """What a `/generate` body asks for."""
    body = _object(data)
    sampling = body.get("sampling_params") or {}
    if not isinstance(sampling, Mapping):
        raise WireError("refused", "sampling_params must be one object: this server scores, and scores all alike")
    if body.get("stream"):
        raise WireError("refused", "stream is not supported: scores come all at once")
    for name in OTHER_MODEL:
        if body.get(name):
            raise WireError("refused", f"{name} is not supported: without it the score would be of something else")
    given = body.get("input_ids")
    given = body.get("text") if given is None else given
    start = body.get("logprob_start_len")
    first = 0 if start is None else integer(start, "logprob_start_len")
    hidden = _flag(body, "return_hidden_states")
    # SGLang itself needs a token to be generated where its hidden states are wanted.
    _only_scores(sampling.get("max_new_tokens", 128), "sampling_params.max_new_tokens", most=int(hidden))
    listed = body.get("token_ids_logprob") or []
    if not isinstance(listed, list) or not all(type(i) is int for i in listed):
        raise WireError("refused", "token_ids_logprob must be one list of token ids")
    # SGLang's -1 means "from the last token": nothing of the input is scored.
    many = _is_many(given)
    rows = [(tokens, -1 if first < 0 else first + 1) for tokens in _rows(given, limits, "input_ids or text")]
    return Question(
        "sglang", rows, limits.model,
        limits.settings.pick_temperature(
            _optional(body, "input_logprob_temperature"), _optional(sampling, "temperature")
        ),
        integer(body.get("top_logprobs_num") or 0, "top_logprobs_num"),
        tuple(listed),
        "too" if hidden else "none",
        many,
        _names(body.get("rid"), len(rows), many),
        _flag(body, "return_prompt_token_ids"),
    )  # fmt: skip


def _read_vllm(data: bytes, limits: Limits) -> Question:
    """What a `/v1/completions` body asks for."""
    body, settings = _object(data), limits.settings
    given, model = body.get("prompt"), body.get("model")
    if model is not None and model not in limits.names:  # vLLM's clients choose an adapter by the name of its model
        there = " or ".join(map(repr, limits.names))
        raise WireError("refused", f"the model {str(model)[:100]!r} is not served here: there is {there}")
    _only_scores(body.get("max_tokens", 16), "max_tokens", most=1)
    if body.get("stream"):
        raise WireError("refused", "stream is not supported: scores come all at once")
    if body.get("prompt_logprobs") is None:
        raise WireError("refused", "prompt_logprobs is missing: this server scores prompts, it does not complete them")
    name = body.get("request_id")
    return Question(
        "vllm", [(tokens, 1) for tokens in _rows(given, limits, "prompt")], model or settings.name,
        settings.pick_temperature(_optional(body, "prompt_logprobs_temperature"), _optional(body, "temperature")),
        integer(body["prompt_logprobs"], "prompt_logprobs"),
        names=() if name is None else (_name(name, "request_id"),),
        echo=_flag(body, "return_token_ids"),
    )  # fmt: skip


def _read_binary(data: bytes, limits: Limits) -> Question:
    requests, hidden_dtype = binary.read_requests(data, lambda sent: limits.settings.pick_temperature(sent, None))
    if not requests:
        raise WireError("refused", "the request has no sequences")
    first = requests[0]  # all of one body share what is asked for
    return Question(
        "binary", [(request.token_ids, request.start) for request in requests], limits.model, first.temperature,
        top_k(first), given=[request.support for request in requests], states="only" if wants_states(first) else "none",
        hidden_dtype=hidden_dtype,
    )  # fmt: skip


def _read_tokenize(data: bytes, limits: Limits) -> Question:
    body = _object(data)
    text = body.get("prompt")
    if not isinstance(text, str):
        raise WireError("refused", "prompt must be text")
    special = body.get("add_special_tokens", True)
    if type(special) is not bool:
        raise WireError("refused", "add_special_tokens must be true or false")
    return Question("tokenize", [(text, 1)], limits.model, special_tokens=special)


_READERS: Mapping[Schema, Callable[[bytes, Limits], Question]] = {
    "sglang": _read_sglang, "vllm": _read_vllm, "binary": _read_binary, "tokenize": _read_tokenize,
}  # fmt: skip


def _object(body: bytes) -> dict[str, Any]:
    """A JSON object in UTF-8, of numbers that are numbers."""

    def refuse(name: str) -> None:
        raise WireError("malformed", f"the body has {name} in it, which is no number of JSON's")

    try:
        value = json.loads(body.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WireError("malformed", f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise WireError("malformed", "the body must be a JSON object")
    return value


def _rows(given: Any, limits: Limits, name: str) -> list[str | Ints]:
    """One text, several texts, one list of ids or several: each a text or an array."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise WireError("refused", f"{name} is missing or empty")
    if all(type(item) is int for item in given):
        given = [given]
    limits.check_sequences(len(given))
    rows: list[str | Ints] = []
    for item in given:
        if isinstance(item, str):
            rows.append(item)
            continue
        if not isinstance(item, list) or not item or not all(type(i) is int and abs(i) < 2**31 for i in item):
            raise WireError("refused", f"{name} must be text, token ids, or a list of either")
        rows.append(np.array(item, dtype=np.int64))
    return rows


def _is_many(given: Any) -> bool:
    """Whether a request held a list of prompts rather than one."""
    return isinstance(given, list) and not all(type(item) is int for item in given)


def _names(given: Any, count: int, many: bool) -> tuple[str, ...]:
    """SGLang's `rid`: one name, which it numbers where there are several prompts, or one for each."""
    if given is None:
        return ()
    if isinstance(given, str):
        name = _name(given, "rid")
        return tuple(f"{name}_{index}" for index in range(count)) if many else (name,)
    if not isinstance(given, list) or len(given) != count or not many:
        raise WireError("refused", f"rid must be text, or a list of one for each of the {count} prompts")
    return tuple(_name(name, "rid") for name in given)


def _name(given: Any, what: str) -> str:
    if not isinstance(given, str) or not 0 < len(given) <= LONGEST_NAME:
        raise WireError("refused", f"{what} must be text of 1 to {LONGEST_NAME} characters")
    return given


def _only_scores(asked: Any, name: str, most: int = 0) -> None:
    if integer(asked, name) > most:
        raise WireError("refused", f"{name} is {str(asked)[:40]}, but this server only scores: set it to {most}")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        raise WireError("refused", f"{name} must be true or false")
    return bool(value)


def _optional(body: Mapping[str, Any], name: str) -> float | None:
    """A number as it was sent: an integer of 400 digits is no float, and is judged by its range."""
    value = body.get(name)
    return value if value is None or type(value) is int else number(value, name)
