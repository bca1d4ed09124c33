"""What a client asks for, read from its JSON and judged. What the rollout decides is noted, and nothing more.

refused       pictures and sound, a model that is not here, what cannot be enforced on a sampled answer
overridden    temperature, seed and their like: the rollout's own settings stand
taken         messages, tools, n, stop, max_tokens (where it is lower), logprobs, stream
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from limbeck.config.task import NOT_OPTIONS
from limbeck.formatting import shown
from limbeck.gateway.api_errors import ApiError, invalid, unsupported
from limbeck.gateway.messages import read_messages
from limbeck.gateway.rendering import Chat
from limbeck.records import Sampling

MOST_CHOICES = 128  # as OpenAI has it
NEUTRAL = {  # what the student's own distribution is: a client that says so asks for nothing
    "presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "logit_bias": {}, "min_tokens": 0,
    "ignore_eos": False, "use_beam_search": False, "length_penalty": 1, "best_of": None, "typical_p": 1,
}  # fmt: skip
REFUSED = {  # with anything but these values
    "audio": (), "functions": ([],), "function_call": ("none",), "web_search_options": (), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "top_logprobs": (0,), "echo": (False,), "suffix": ("",),
    "continue_final_message": (False,), "add_generation_prompt": (True,), "chat_template": (), "documents": ([],),
    "prompt_logprobs": (), "allowed_token_ids": (), "bad_words": ([],), "include_stop_str_in_output": (False,),
    "structured_outputs": (), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
}  # fmt: skip
REMEDIES = {
    "response_format": "ask for the format in a message, and read the answer yourself",
    "top_logprobs": "the log-prob of each sampled token is there with logprobs alone",
    "functions": "use tools",
    "function_call": "use tool_choice",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What any route can be asked for. `overridden`: what the rollout's settings replaced, and the values asked for."""

    n: int
    max_tokens: int | None
    stop: tuple[str, ...]
    overridden: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChatRequest:
    chat: Chat
    wanted: Wanted
    parse_calls: bool
    parallel: bool  # False: the agent is shown the first of several calls
    logprobs: bool
    stream: bool
    include_usage: bool
    token_ids: bool  # of prompt and answers, as vLLM's `return_token_ids`
    names_as_ids: bool  # "token_id:46" in place of a token's text, as vLLM's `return_tokens_as_token_ids`


def read_chat(body: object, models: Sequence[str], sampling: Sampling) -> ChatRequest:
    """Raises `ApiError`."""
    fields = _fields(body, models)
    messages = read_messages(fields.get("messages"))
    tools = _tools(fields.get("tools"))
    choice = fields.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise unsupported(
            f"tool_choice = {shown(choice)} cannot be enforced on a sampled answer, and answers that are not sampled "
            "freely would train another distribution: take 'auto' or 'none', and ask for the call in a message",
            "tool_choice",
        )
    stream_options = fields.get("stream_options") or {}
    return ChatRequest(
        Chat(messages, tools, _options(fields.get("chat_template_kwargs") or {})),
        _wanted(fields, sampling),
        parse_calls=bool(tools) and choice == "auto",
        parallel=_flag(fields, "parallel_tool_calls", True),
        logprobs=_flag(fields, "logprobs", False),
        stream=_flag(fields, "stream", False),
        include_usage=isinstance(stream_options, Mapping) and bool(stream_options.get("include_usage")),
        token_ids=_flag(fields, "return_token_ids", False),
        names_as_ids=_flag(fields, "return_tokens_as_token_ids", False),
    )


def read_tokens(body: object, models: Sequence[str], sampling: Sampling) -> tuple[list[int], Wanted]:
    """The request of the token route: what to go on from. Raises `ApiError`."""
    fields = _fields(body, models)
    ids = fields.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise invalid(f"token_ids is {shown(ids)}, expected a list of token ids", "token_ids")
    if min(ids) < 0 or max(ids) >= 2**31:
        raise invalid(f"token_ids has {shown(min(ids))} and {shown(max(ids))}: no vocabulary has both", "token_ids")
    parameters = fields.get("sampling_params") or {}
    if not isinstance(parameters, Mapping):
        raise invalid(f"sampling_params is {shown(parameters)}, expected an object", "sampling_params")
    _refuse(parameters)
    wanted = _wanted(parameters, sampling)
    if wanted.stop:
        raise unsupported(
            "sampling_params.stop cannot be taken back to tokens: stop at stop_token_ids, or cut the text yourself",
            "sampling_params.stop",
        )
    return ids, wanted


def _fields(body: object, models: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise invalid(f"the body is {shown(body)}, expected a JSON object")
    model = body.get("model")
    if model is not None and model not in models:
        raise ApiError(
            404, "model_not_found", f"The model {shown(model)} does not exist; there is {models[0]!r}.", "model"
        )
    _refuse(body)
    return body


def _refuse(fields: Mapping[str, Any]) -> None:
    for name, harmless in REFUSED.items():
        value = fields.get(name)
        if value is not None and value not in harmless:
            remedy = REMEDIES.get(name, "leave it out")
            raise unsupported(f"{name} = {shown(value)} cannot be had from a sampled student: {remedy}", name)


def _options(options: object) -> dict[str, Any]:
    """What a client gives the template, whose own options these are and nothing else."""
    if not isinstance(options, Mapping):
        raise invalid(f"chat_template_kwargs is {shown(options)}, expected an object", "chat_template_kwargs")
    for name, value in options.items():
        if name in NOT_OPTIONS and value not in REFUSED.get(name, ()):
            raise unsupported(
                f"chat_template_kwargs.{name} = {shown(value)} is no option of a chat template: leave it out",
                "chat_template_kwargs",
            )
    return dict(options)


def _wanted(fields: Mapping[str, Any], sampling: Sampling) -> Wanted:
    limits = [_count(fields, name) for name in ("max_completion_tokens", "max_tokens")]
    max_tokens = min((limit for limit in limits if limit is not None), default=None)
    n = _count(fields, "n") or 1
    if n > MOST_CHOICES:
        raise invalid(f"n = {n}, expected at most {MOST_CHOICES}", "n")
    overridden = {
        name: fields[name]
        for name, own in _settings(sampling).items()
        if fields.get(name) is not None and fields[name] != own
    }
    if overridden.get("top_k") == -1 and sampling.top_k == 0:  # vLLM's way to say that it is off
        del overridden["top_k"]
    if max_tokens is not None and max_tokens > sampling.max_tokens:
        overridden["max_tokens"] = max_tokens
    stop_ids = fields.get("stop_token_ids") or []
    if isinstance(stop_ids, list) and any(id_ not in sampling.stop_ids for id_ in stop_ids):
        overridden["stop_token_ids"] = stop_ids
    return Wanted(n, max_tokens, _stop(fields.get("stop")), overridden)


def _settings(sampling: Sampling) -> dict[str, Any]:
    """What the rollout decides, under the names that clients give it."""
    own = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
    }
    return own | {"seed": None} | NEUTRAL


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise invalid(f"stop is {shown(value)}, expected a text, or a list of texts that are not empty", "stop")
    return tuple(stops)


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise invalid(f"{name} = {shown(value)}, expected an integer of at least 1", name)
    return value


def _flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(f"{name} = {shown(value)}, expected true or false", name)
    return value


def _tools(value: object) -> list[Mapping[str, Any]]:
    tools = value or []
    if not isinstance(tools, list):
        raise invalid(f"tools is {shown(value)}, expected a list", "tools")
    for i, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise invalid(
                f'tools[{i}] is {shown(tool)}, expected {{"type": "function", "function": {{"name": ...}}}}', "tools"
            )
    return tools
