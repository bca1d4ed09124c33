"""vLLM's `/v1/completions` with a token-id prompt and `prompt_logprobs`.

    {"model": "m", "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 2}

    {"choices": [{"prompt_logprobs": [null, {"6": {...}}, {"7": {"logprob": -0.51, "rank": 1},
                                                           "9": {"logprob": -1.2, "rank": 2}}]}]}

There is no way to ask for the response alone: the prompt's entries come too, and show that the server had this
prompt, as `prompt_token_ids` does in answers of newer builds and `id`, which is made of `request_id`. A
position holds the token that is there and the K most likely, K or K + 1 entries in all. Stock servers
answer at temperature 1 whatever `temperature` says; `prompt_logprobs_temperature` is the field of
builds that can do better, and they acknowledge it beside `choices`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.records import Ints, SampleRequest, ScoreRequest
from limbeck.seeding import served_seed
from limbeck.wire.binding import Echo
from limbeck.wire.sample import SampleReply, make_sample_reply
from limbeck.wire.score import (
    ONE_LIST,
    Reply,
    WireError,
    asked_ids,
    integer,
    make_reply,
    member,
    number,
    optional,
    refuse_states,
    safe_text,
    sequence,
    top_k,
)

PATH = "/v1/completions"
IDENTITY_PATH = "/v1/models"
ID_PREFIX = "token_id:"


def write(request: ScoreRequest, model: str | None = None, acknowledges: bool = False) -> dict[str, Any]:
    """The request body. Raises `WireError` for a support that this schema has no word for.

    One token is generated and thrown away: stock servers take no `max_tokens` of 0 here.
    """
    if isinstance(request.support, np.ndarray):
        raise WireError(
            "unsupported", f"request {request.id!r} gives ids to score, which vLLM does not take. {ONE_LIST}"
        )
    refuse_states(request, "vLLM")
    body: dict[str, Any] = {
        "prompt": request.token_ids.tolist(),
        "max_tokens": 1,
        "temperature": request.temperature if acknowledges else 1.0,
        "prompt_logprobs": top_k(request),
    }
    if model is not None:
        body["model"] = model
    if acknowledges:
        body["prompt_logprobs_temperature"] = request.temperature
    return body


def ties(nonce: str) -> dict[str, Any]:
    """The fields of any request whose answers show that they belong to it."""
    return {"request_id": nonce, "return_token_ids": True}


def read(answer: Any, request: ScoreRequest, acknowledges: bool = False, echo: Echo | None = None) -> Reply:
    """Raises `WireError` for anything that is not a complete answer to this request."""
    echo = echo or Echo()
    choice = _choice(answer, request.token_ids, echo)
    echo.temperature(_temperature(answer))
    rows = sequence(member(choice, "prompt_logprobs", "choices[0]"), "prompt_logprobs")
    length = len(request.token_ids)
    if len(rows) != length:
        raise WireError("short", f"prompt_logprobs has {len(rows)} entries for a prompt of {length} tokens")
    if rows[0] is not None:
        raise WireError("malformed", "the first of prompt_logprobs has a value, expected null: nothing precedes it")
    _check_prompt(rows, request)
    k = top_k(request)
    ids, logprobs, tops = [], [], []
    for position, (row, token) in enumerate(zip(rows[request.start :], asked_ids(request), strict=True)):
        entries = _entries(row, position)
        sent = int(token)
        if sent not in entries:
            raise WireError(
                "wrong_ids",
                f"response position {position} has no entry for token {sent}, which was sent: the server holds another "
                "tokenizer, or shifted the answer",
            )
        ids.append(sent)
        logprobs.append(entries[sent])
        if len(entries) > k:  # the sent token beside the K: kept, a tie at the last place would depend on it
            del entries[sent]
        tops.append(list(entries.items()))
    return make_reply(request, ids, logprobs, tops if k else None, _temperature(answer), acknowledges=acknowledges)


def _choice(answer: Any, sent: Ints, echo: Echo) -> Any:
    """The one choice of an answer to this request, as far as the server tells. Raises `WireError`."""
    choices = sequence(member(answer, "choices"), "choices")
    if len(choices) != 1:
        raise WireError("malformed", f"the answer has {len(choices)} choices, expected 1")
    echo.request_id(optional(answer, "id"))
    echo.model(optional(answer, "model"))
    echo.prompt_ids(optional(choices[0], "prompt_token_ids", "choices[0]"), sent.tolist())
    return choices[0]


def _check_prompt(rows: Sequence[Any], request: ScoreRequest) -> None:
    """Every position before the first scored one has an entry for the token that was sent. Raises `WireError`."""
    for position in range(1, request.start):
        row, sent = rows[position], str(int(request.token_ids[position]))
        if not isinstance(row, Mapping) or sent not in row:
            raise WireError(
                "unbound",
                f"position {position} of the prompt has no entry for token {sent}, which was sent: the request was "
                "damaged on the way, or the server holds another tokenizer",
            )


def _entries(row: Any, position: int) -> dict[int, float]:
    if not isinstance(row, Mapping):
        raise WireError("malformed", f"response position {position} of prompt_logprobs is {row!r}, expected an object")
    entries = {}
    for key, entry in row.items():
        text = str(key)
        if not text.isascii() or not text.isdigit():
            raise WireError("malformed", f"response position {position} has an entry {key!r}, expected a token id")
        entries[int(text)] = number(member(entry, "logprob", f"the entry of token {key}"), "log-prob")
    return entries


def _temperature(answer: Any) -> Any:
    return answer.get("prompt_logprobs_temperature") if isinstance(answer, Mapping) else None


def read_identity(answer: Any) -> str:
    """Name and weights of the first served model, from `/v1/models`."""
    models = sequence(member(answer, "data"), "data")
    if not models:
        raise WireError("malformed", "the server lists no model")
    return f"{safe_text(member(models[0], 'id'))} {safe_text(optional(models[0], 'root') or '')}".strip()


def read_model_name(answer: Any) -> str:
    """What `model` must be in a request."""
    models = sequence(member(answer, "data"), "data")
    if not models:
        raise WireError("malformed", "the server lists no model")
    name = member(models[0], "id")
    if not isinstance(name, str):
        raise WireError("malformed", f"the model's id is {name!r}, expected text")
    return name


def write_tokenize(text: str, model: str | None = None) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request whose answer shows how the server splits `text`."""
    body: dict[str, Any] = {"prompt": text, "add_special_tokens": True}
    return "/tokenize", body | ({"model": model} if model else {})


def read_tokenize(answer: Any) -> list[int]:
    """Token ids of `text`."""
    return [integer(i, "token id") for i in sequence(member(answer, "tokens"), "tokens")]


def write_text(text: str, model: str | None = None) -> dict[str, Any]:
    """The body of a request to read `text` itself, for servers without such a route."""
    body: dict[str, Any] = {"prompt": text, "max_tokens": 1, "temperature": 1.0, "return_token_ids": True}
    return body | ({"model": model} if model else {})


def read_text(answer: Any) -> list[int]:
    """Token ids of the text. Raises `WireError` (kind refused) for older builds, which do not repeat them."""
    choices = sequence(member(answer, "choices"), "choices")
    ids = optional(choices[0], "prompt_token_ids", "choices[0]") if choices else None
    if ids is None:
        raise WireError("refused", "the server does not say how it splits a text")
    return [integer(i, "token id") for i in sequence(ids, "prompt_token_ids")]


def write_sample(request: SampleRequest, model: str | None = None) -> dict[str, Any]:
    """The request body for one response. Everything that the model's generation config might set is set."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": request.token_ids.tolist(),
        "max_tokens": sampling.max_tokens,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": 1.0 if sampling.greedy else sampling.top_p,
        "top_k": 0 if sampling.greedy else sampling.top_k,
        "min_p": 0.0 if sampling.greedy else sampling.min_p,
        "stop_token_ids": list(sampling.stop_ids),
        "ignore_eos": True,  # the stop tokens above are all there are
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": served_seed(sampling.seed, request.key),
        "logprobs": request.top,
        "return_tokens_as_token_ids": True,  # the names of top tokens: two ids may have one text
    }
    return body | ({"model": model} if model else {})


def read_sample(answer: Any, request: SampleRequest, vocabulary: int, echo: Echo | None = None) -> SampleReply:
    """Raises `WireError` for anything that is not a complete response."""
    choice = _choice(answer, request.token_ids, echo or Echo())
    ids = sequence(member(choice, "token_ids", "choices[0]"), "token_ids")
    found = member(choice, "logprobs", "choices[0]")
    logprobs = sequence(member(found, "token_logprobs", "logprobs"), "token_logprobs")
    reason = member(choice, "finish_reason", "choices[0]")
    tops = _top_tokens(found) if request.top else None
    return make_sample_reply(request, vocabulary, ids, logprobs, reason, tops=tops)


def _top_tokens(logprobs: Any) -> list[list[tuple[int, Any]]]:
    """[n][K or K + 1] of (id, log-prob): the sampled token is added to the K where it is not one of them."""
    tops = []
    for row in sequence(member(logprobs, "top_logprobs", "logprobs"), "top_logprobs"):
        if not isinstance(row, Mapping):
            raise WireError("malformed", f"an entry of top_logprobs is {row!r}, expected an object")
        entries = []
        for key, value in row.items():
            id_ = key.removeprefix(ID_PREFIX)
            if id_ == key or not (id_.isascii() and id_.isdigit()):
                raise WireError("malformed", f"a top token is named {key!r}, expected '{ID_PREFIX}' and a number")
            entries.append((int(id_), value))
        tops.append(entries)
    return tops
