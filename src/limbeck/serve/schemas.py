"""Requests and answers in SGLang's and vLLM's schemas, for clients that were written for those servers.

    asked = read_sglang(body, tokenize, settings)
    answer = write_sglang(asked, scorer.score(asked), many=False)

Only scoring is served: a request for new tokens is refused rather than answered with none.

Shape legend: S scored tokens, J listed tokens, K top tokens.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.records import request_of
from limbeck.serve.scorer import Asked
from limbeck.serve.settings import ServeSettings
from limbeck.wire.binary import Result
from limbeck.wire.score import WireError, integer, number, top_k

# Fields of SGLang's that change what is scored, or what must be in the answer. Others change how, and are ignored.
OTHER_MODEL = (
    "lora_path", "image_data", "video_data", "audio_data", "input_embeds", "session_params", "custom_logit_processor",
    "token_ids_logprob_positions",
)  # fmt: skip

Tokenize = Callable[[str], list[int]]


def read_sglang(body: Mapping[str, Any], tokenize: Tokenize, settings: ServeSettings) -> list[Asked]:
    """What a `/generate` body asks for. Raises `WireError`."""
    sampling = body.get("sampling_params") or {}
    if not isinstance(sampling, Mapping):
        raise WireError("refused", "sampling_params must be one object: this server scores, and scores all alike")
    if body.get("stream"):
        raise WireError("refused", "stream is not supported: scores come all at once")
    for name in OTHER_MODEL:
        if body.get(name):
            raise WireError("refused", f"{name} is not supported: without it the score would be of something else")
    given = body.get("input_ids")
    rows = _rows(body.get("text") if given is None else given, tokenize, "input_ids or text")
    start = body.get("logprob_start_len")
    first = 0 if start is None else integer(start, "logprob_start_len")
    k = integer(body.get("top_logprobs_num") or 0, "top_logprobs_num")
    hidden = body.get("return_hidden_states", False)
    if type(hidden) is not bool:
        raise WireError("refused", f"return_hidden_states is {hidden!r}, expected true or false")
    # SGLang itself needs a token to be generated where its hidden states are wanted.
    _only_scores(sampling.get("max_new_tokens", 128), "sampling_params.max_new_tokens", most=int(hidden))
    listed = body.get("token_ids_logprob") or []
    if not isinstance(listed, list) or not all(type(i) is int for i in listed):
        raise WireError("refused", "token_ids_logprob must be one list of token ids")
    temperature = settings.pick_temperature(
        _optional(body, "input_logprob_temperature"), _optional(sampling, "temperature")
    )
    asked = []
    for ids in rows:
        # SGLang's -1 means "from the last token": nothing of the input is scored.
        begin = len(ids) - 1 if first < 0 else first
        if begin >= len(ids):
            raise WireError("refused", f"logprob_start_len is {begin}, expected 0 to {len(ids) - 1}, the last token")
        asked.append(Asked(request_of(ids, begin + 1, temperature, k or "sampled"), tuple(listed), hidden))
    return asked


def write_sglang(asked: Sequence[Asked], results: Sequence[Result], many: bool) -> Any:
    """One object, or a list where the body held a list."""
    answers = []
    for one, result in zip(asked, results, strict=True):
        request = one.request
        meta: dict[str, Any] = {
            "id": uuid.uuid4().hex,
            "finish_reason": {"type": "length", "length": 0},
            "prompt_tokens": len(request.token_ids),
            "completion_tokens": 0,
            "cached_tokens": 0,
            "input_logprob_temperature": result.temperature,
        }
        assert result.logprobs is not None
        before = int(request.token_ids[request.start - 1])
        values = _pairs(result.logprobs, request.scored_ids)
        meta["input_token_logprobs"] = [[None, before, None], *([value, i, None] for value, i in values)]
        meta["output_token_logprobs"] = []
        if top_k(request):
            meta["input_top_logprobs"] = [None, *_tops(result)]
            meta["output_top_logprobs"] = []
        if one.listed:
            assert result.listed is not None
            rows = [[[value, i, None] for value, i in zip(r, one.listed, strict=True)] for r in result.listed.tolist()]
            meta["input_token_ids_logprobs"] = [None, *rows]
            meta["output_token_ids_logprobs"] = []
        if result.hidden is not None:
            meta["hidden_states"] = [result.hidden.tolist()]  # one block: the prompt was computed in one go
        answers.append({"text": "", "output_ids": [], "meta_info": meta})
    return answers if many else answers[0]


def read_vllm(body: Mapping[str, Any], tokenize: Tokenize, settings: ServeSettings) -> list[Asked]:
    """What a `/v1/completions` body asks for. Raises `WireError`."""
    _only_scores(body.get("max_tokens", 16), "max_tokens", most=1)
    if body.get("stream"):
        raise WireError("refused", "stream is not supported: scores come all at once")
    if body.get("prompt_logprobs") is None:
        raise WireError("refused", "prompt_logprobs is missing: this server scores prompts, it does not complete them")
    k = integer(body["prompt_logprobs"], "prompt_logprobs")
    temperature = settings.pick_temperature(
        _optional(body, "prompt_logprobs_temperature"), _optional(body, "temperature")
    )
    rows = _rows(body.get("prompt"), tokenize, "prompt")
    return [Asked(request_of(ids, 1, temperature, k or "sampled")) for ids in rows]


def check_model(asked: Any, names: Sequence[str]) -> None:
    """vLLM's clients choose an adapter by the name of its model. Raises `WireError` for one that is not served."""
    if asked is not None and asked not in names:
        raise WireError("refused", f"the model {asked!r} is not served here: there is {' or '.join(map(repr, names))}")


def write_vllm(asked: Sequence[Asked], results: Sequence[Result], model: str) -> Any:
    """A text completion of no text, with `prompt_logprobs`."""
    choices, total = [], 0
    for index, (one, result) in enumerate(zip(asked, results, strict=True)):
        request = one.request
        assert result.logprobs is not None
        total += len(request.token_ids)
        tops = _tops(result) if top_k(request) else [[] for _ in request.scored_ids]
        rows: list[Any] = [None]
        for (value, sampled), top in zip(_pairs(result.logprobs, request.scored_ids), tops, strict=True):
            entries = {str(i): _entry(x, rank) for rank, (x, i, _) in enumerate(top, start=1)}
            entries.setdefault(str(sampled), _entry(value, None))
            rows.append(entries)
        choices.append(
            {"index": index, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": rows}
        )
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": 0,
        "model": model,
        "choices": choices,
        "usage": {"prompt_tokens": total, "completion_tokens": 0, "total_tokens": total},
        "prompt_logprobs_temperature": results[0].temperature,  # one field for all, which were asked at one
    }


def _rows(given: Any, tokenize: Tokenize, name: str) -> list[np.ndarray]:
    """Token ids of one text, several texts, one list of ids or several."""
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, list) or not given:
        raise WireError("refused", f"{name} is missing or empty")
    if all(type(item) is int for item in given):
        given = [given]
    rows = []
    for item in given:
        ids = tokenize(item) if isinstance(item, str) else item
        if not isinstance(ids, list) or not ids or not all(type(i) is int and abs(i) < 2**31 for i in ids):
            raise WireError("refused", f"{name} must be text, token ids, or a list of either")
        rows.append(np.array(ids, dtype=np.int64))
    return rows


def is_many(given: Any) -> bool:
    """Whether a request held a list of prompts rather than one."""
    return isinstance(given, list) and not all(type(item) is int for item in given)


def _only_scores(asked: Any, name: str, most: int = 0) -> None:
    if integer(asked, name) > most:
        raise WireError("refused", f"{name} is {asked}, but this server only scores: set it to {most}")


def _optional(body: Mapping[str, Any], name: str) -> float | None:
    value = body.get(name)
    return None if value is None else number(value, name)


def _entry(value: float, rank: int | None) -> dict[str, Any]:
    return {"logprob": value, "rank": rank, "decoded_token": None}


def _pairs(values: np.ndarray, ids: np.ndarray) -> list[tuple[float, int]]:
    return list(zip(values.tolist(), ids.tolist(), strict=True))


def _tops(result: Result) -> list[list[list[Any]]]:
    assert result.top_ids is not None
    assert result.top_logprobs is not None
    return [
        [[value, i, None] for value, i in _pairs(values, ids)]
        for values, ids in zip(result.top_logprobs, result.top_ids, strict=True)
    ]
