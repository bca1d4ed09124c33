"""vLLM's `/v1/completions` with a token-id prompt and `prompt_logprobs`.

    {"model": "m", "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 2}

    {"choices": [{"prompt_logprobs": [null, {"6": {...}}, {"7": {"logprob": -0.51, "rank": 1},
                                                           "9": {"logprob": -1.2, "rank": 2}}]}]}

There is no way to ask for the response alone: the prompt's entries come too and are passed over. A
position holds the token that is there and the K most likely, K or K + 1 entries in all. Stock servers
answer at temperature 1 whatever `temperature` says; `prompt_logprobs_temperature` is the field of
builds that can do better, and they acknowledge it beside `choices`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from limbeck.wire.sample import Sampled, SampleRequest, make_sampled
from limbeck.wire.score import Question, Reply, WireError, integer, make_reply, member, number, sequence

PATH = "/v1/completions"
IDENTITY_PATH = "/v1/models"
HEALTH_PATH = "/health"


def write(question: Question, model: str | None = None) -> dict[str, Any]:
    """The request body. One token is generated and thrown away: stock servers take no `max_tokens` of 0 here."""
    body: dict[str, Any] = {
        "prompt": question.token_ids.tolist(),
        "max_tokens": 1,
        "temperature": question.temperature or 1.0,
        "prompt_logprobs": question.top_k,
    }
    if model is not None:
        body["model"] = model
    if question.temperature is not None:
        body["prompt_logprobs_temperature"] = question.temperature
    return body


def read(answer: Any, question: Question) -> Reply:
    """Raises `WireError` for anything that is not a whole answer to this question."""
    choices = sequence(member(answer, "choices"), "choices")
    if len(choices) != 1:
        raise WireError("malformed", f"the answer has {len(choices)} choices, expected 1")
    rows = sequence(member(choices[0], "prompt_logprobs", "choices[0]"), "prompt_logprobs")
    length = len(question.token_ids)
    if len(rows) != length:
        raise WireError("short", f"prompt_logprobs has {len(rows)} entries for a prompt of {length} tokens")
    if rows[0] is not None:
        raise WireError("malformed", "the first of prompt_logprobs has a value, expected null: nothing precedes it")
    ids, logprobs, tops = [], [], []
    for position, row in enumerate(rows[question.start :]):
        entries = _entries(row, position)
        sent = int(question.scored_ids[position])
        if sent not in entries:
            raise WireError(
                "wrong_ids",
                f"response position {position} has no entry for token {sent}, which was sent: the server holds another "
                "tokenizer, or shifted the answer",
            )
        ids.append(sent)
        logprobs.append(entries[sent])
        tops.append(sorted(entries.items(), key=lambda item: -item[1])[: question.top_k])
    return make_reply(question, ids, logprobs, tops if question.top_k else None, _temperature(answer))


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
    return f"{member(models[0], 'id')} {models[0].get('root') or ''}".strip()


def read_model_name(answer: Any) -> str:
    """What `model` must be in a request."""
    models = sequence(member(answer, "data"), "data")
    if not models:
        raise WireError("malformed", "the server lists no model")
    return str(member(models[0], "id"))


def write_tokenize(text: str, model: str | None = None) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request whose answer shows how the server splits `text`."""
    body: dict[str, Any] = {"prompt": text, "add_special_tokens": True}
    return "/tokenize", body | ({"model": model} if model else {})


def read_tokenize(answer: Any) -> list[int]:
    """Token ids of `text`."""
    return [integer(i, "token id") for i in sequence(member(answer, "tokens"), "tokens")]


def write_sample(request: SampleRequest, model: str | None = None) -> dict[str, Any]:
    """The request body for one response. Everything that the model's generation config might set is set."""
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": list(request.prompt_ids),
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
        "seed": request.seed,
        "logprobs": 0,
        "return_token_ids": True,
    }
    return body | ({"model": model} if model else {})


def read_sample(answer: Any, request: SampleRequest) -> Sampled:
    """Raises `WireError` for anything that is not a whole response."""
    choices = sequence(member(answer, "choices"), "choices")
    if len(choices) != 1:
        raise WireError("malformed", f"the answer has {len(choices)} choices, expected 1")
    choice = choices[0]
    ids = sequence(member(choice, "token_ids", "choices[0]"), "token_ids")
    logprobs = sequence(
        member(member(choice, "logprobs", "choices[0]"), "token_logprobs", "logprobs"), "token_logprobs"
    )
    return make_sampled(request, ids, logprobs, member(choice, "finish_reason", "choices[0]"))
