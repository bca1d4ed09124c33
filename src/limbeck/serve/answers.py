"""Answers in SGLang's and vLLM's schemas and in our own.

    body = write(question, asked, scorer.score(asked))

Shape legend: S scored tokens, J listed tokens, K top tokens.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from limbeck.serve.limits import Asked, Limits
from limbeck.serve.questions import Question
from limbeck.wire import binary
from limbeck.wire.binary import Result
from limbeck.wire.score import top_k


def write(question: Question, asked: Sequence[Asked], results: Sequence[Result]) -> bytes:
    """The body of the answer. Raises `ArithmeticError` for a score that is not finite: it is never sent."""
    for result in results:
        errors = None if result.rounded is None else result.rounded.errors
        for values in (result.logprobs, result.top_logprobs, result.listed, result.hidden, errors):
            if values is not None and not np.isfinite(values).all():
                raise ArithmeticError("a score is not finite: the model's weights or their dtype are at fault")
    if question.schema == "binary":
        requests = [one.request for one in asked]
        return binary.write_answer(requests, results, results[0].temperature, question.model)
    if question.schema == "vllm":
        return _write_vllm(question, asked, results)
    rows = (dumped(answer) for answer in _write_sglang(question, asked, results))  # one at a time: objects are large
    return b"[" + b",".join(rows) + b"]" if question.many else next(rows)


def write_tokenized(ids: list[int], limits: Limits) -> bytes:
    return dumped({"tokens": ids, "count": len(ids), "max_model_len": limits.context})


def dumped(value: Any) -> bytes:
    """JSON. Raises `ValueError` for NaN."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _write_sglang(question: Question, asked: Sequence[Asked], results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """One object for each sequence."""
    for index, (one, result) in enumerate(zip(asked, results, strict=True)):
        request = one.request
        meta: dict[str, Any] = {
            "id": question.names[index] if question.names else uuid.uuid4().hex,
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
        answer = {"text": "", "output_ids": [], "meta_info": meta}
        yield answer | ({"prompt_token_ids": request.token_ids.tolist()} if question.echo else {})


def _write_vllm(question: Question, asked: Sequence[Asked], results: Sequence[Result]) -> bytes:
    """A text completion of no text, with `prompt_logprobs`. Sequences are written one at a time."""
    choices = []
    for index, (one, result) in enumerate(zip(asked, results, strict=True)):
        request = one.request
        assert result.logprobs is not None
        tops = _tops(result) if top_k(request) else [[] for _ in request.scored_ids]
        rows: list[Any] = [None]
        for (value, sampled), top in zip(_pairs(result.logprobs, request.scored_ids), tops, strict=True):
            entries = {str(i): _entry(x, rank) for rank, (x, i, _) in enumerate(top, start=1)}
            entries.setdefault(str(sampled), _entry(value, None))
            rows.append(entries)
        choice = {"index": index, "text": "", "logprobs": None, "finish_reason": "length", "prompt_logprobs": rows}
        echo = {"prompt_token_ids": request.token_ids.tolist(), "token_ids": []} if question.echo else {}
        choices.append(dumped(choice | echo))
    total = sum(len(one.request.token_ids) for one in asked)
    around = dumped(
        {
            "id": f"cmpl-{question.names[0] if question.names else uuid.uuid4().hex}",
            "object": "text_completion",
            "created": 0,
            "model": question.model,
            "usage": {"prompt_tokens": total, "completion_tokens": 0, "total_tokens": total},
            "prompt_logprobs_temperature": results[0].temperature,  # one field for all, which were asked at one
        }
    )
    return around[:-1] + b',"choices":[' + b",".join(choices) + b"]}"


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
