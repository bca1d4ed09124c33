"""What was sampled, as the agent is shown it: text, calls, log-probs; in one piece or as a stream of events.

A stop string cuts what is shown, and so does `parallel_tool_calls = false`. All that was sampled is trained on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.gateway.messages import Message, for_client, tool_call
from limbeck.gateway.rendering import Renderer
from limbeck.gateway.requests import ChatRequest
from limbeck.gateway.tool_calls import Parsed, parse
from limbeck.records import Ints, Sampled

PIECE = 32  # characters of an event


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `message` is as the agent will send it back; `cut`: it is less than was sampled."""

    message: Message
    finish_reason: str
    sampled: Sampled
    logprobs: list[dict[str, Any]] | None
    stop: int | None  # the token that ended it
    cut: bool
    malformed: bool


def read_choice(
    renderer: Renderer, request: ChatRequest, thinking: bool, sampled: Sampled, stop_ids: Sequence[int], fmt: str
) -> Choice:
    """`fmt`: how the student writes tool calls; `thinking`: the prompt ends within its thinking."""
    ids = sampled.token_ids.tolist()
    stop = ended_by(sampled, stop_ids)
    text = renderer.decode(ids if stop is None else ids[:-1])
    places = [place for one in request.wanted.stop if (place := text.find(one)) >= 0]
    shown = text[: min(places)] if places else text
    parsed = parse(fmt, shown, request.chat.tools, thinking) if request.parse_calls else Parsed(shown)
    calls = parsed.calls if request.parallel else parsed.calls[:1]
    message: Message = {"role": "assistant", "content": renderer.without_special(parsed.content)}
    if calls:
        # Nine letters and digits, as Mistral's templates demand, and the same whenever the turn is sampled again.
        message["tool_calls"] = [tool_call(f"c{sampled.turn:05d}{i:03d}", *call) for i, call in enumerate(calls)]
    reason = "tool_calls" if calls else "stop" if places else sampled.finish
    count = len(ids) if shown == text else _tokens_of(renderer, ids, len(shown))
    logprobs = _logprobs(renderer, sampled, count, request.names_as_ids) if request.logprobs else None
    cut = bool(places) or len(calls) < len(parsed.calls)
    return Choice(message, reason, sampled, logprobs, stop, cut, parsed.malformed)


def ended_by(sampled: Sampled, stop_ids: Sequence[int]) -> int | None:
    """The stop token at the end of a turn."""
    ids = sampled.token_ids
    return int(ids[-1]) if len(ids) and sampled.finish == "stop" and int(ids[-1]) in stop_ids else None


def completion(
    name: str, model: str, request: ChatRequest, prompt_ids: Ints, choices: Sequence[Choice]
) -> dict[str, Any]:
    """The answer in one piece."""
    answer: dict[str, Any] = _head(name, model, "chat.completion")
    answer["choices"] = [
        {
            "index": i,
            "message": for_client(choice.message),
            "logprobs": None if choice.logprobs is None else {"content": choice.logprobs, "refusal": None},
            "finish_reason": choice.finish_reason,
        }
        | ({"token_ids": choice.sampled.token_ids.tolist()} if request.token_ids else {})
        for i, choice in enumerate(choices)
    ]
    answer["usage"] = _usage(prompt_ids, choices)
    return answer | ({"prompt_token_ids": prompt_ids.tolist()} if request.token_ids else {})


def events(name: str, model: str, request: ChatRequest, prompt_ids: Ints, choices: Sequence[Choice]) -> Iterator[bytes]:
    """The answer as server-sent events, which end with `[DONE]`."""
    head = _head(name, model, "chat.completion.chunk")
    usage = {"usage": None} if request.include_usage else {}
    for i, choice in enumerate(choices):
        for delta, more in _deltas(choice, request):
            one = {"index": i, "delta": delta, "logprobs": None, "finish_reason": None} | more
            yield _event(head | {"choices": [one]} | usage)
    if request.include_usage:
        yield _event(head | {"choices": [], "usage": _usage(prompt_ids, choices)})
    yield b"data: [DONE]\n\n"


def token_answer(name: str, choices: Sequence[Sampled]) -> dict[str, Any]:
    """The answer of the token route."""
    return {
        "request_id": name,
        "choices": [
            {
                "index": i,
                "token_ids": one.token_ids.tolist(),
                "finish_reason": one.finish,
                "logprobs": {
                    "content": [
                        {"token": f"token_id:{id_}", "logprob": value, "bytes": None, "top_logprobs": []}
                        for id_, value in zip(one.token_ids.tolist(), one.logprobs.tolist(), strict=True)
                    ]
                },
            }
            for i, one in enumerate(choices)
        ],
    }


def _deltas(choice: Choice, request: ChatRequest) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """What each event adds, and what it says beside."""
    message = for_client(choice.message)
    first: dict[str, Any] = (
        {} if choice.logprobs is None else {"logprobs": {"content": choice.logprobs, "refusal": None}}
    )
    if request.token_ids:
        first["token_ids"] = choice.sampled.token_ids.tolist()
    yield {"role": "assistant", "content": "" if message["content"] is not None else None}, first
    for piece in _pieces(message["content"] or ""):
        yield {"content": piece}, {}
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        yield {"tool_calls": [{"index": index} | call | {"function": function | {"arguments": ""}}]}, {}
        for piece in _pieces(function["arguments"]):
            yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}, {}
    yield {}, {"finish_reason": choice.finish_reason}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _head(name: str, model: str, kind: str) -> dict[str, Any]:
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def _usage(prompt_ids: Ints, choices: Sequence[Choice]) -> dict[str, int]:
    said = sum(len(choice.sampled.token_ids) for choice in choices)
    return {"prompt_tokens": len(prompt_ids), "completion_tokens": said, "total_tokens": len(prompt_ids) + said}


def _tokens_of(renderer: Renderer, ids: Sequence[int], characters: int) -> int:
    """How many tokens it takes to say so many characters: texts of more tokens are not shorter."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(renderer.decode(ids[:middle])) < characters:
            low = middle + 1
        else:
            high = middle
    return low


def _logprobs(renderer: Renderer, sampled: Sampled, count: int, names_as_ids: bool) -> list[dict[str, Any]]:
    """At the rollout's temperature, over the student's whole distribution."""
    found = []
    for id_, value in zip(sampled.token_ids[:count].tolist(), sampled.logprobs[:count].tolist(), strict=True):
        (text,) = renderer.names([id_])
        raw = None if "\ufffd" in text else list(text.encode())
        token = f"token_id:{id_}" if names_as_ids else text
        found.append({"token": token, "logprob": value, "bytes": raw, "top_logprobs": []})
    return found
