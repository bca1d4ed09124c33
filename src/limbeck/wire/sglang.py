"""SGLang's `/generate`, asked to score: `max_new_tokens` 0 and `return_logprob`.

    {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
     "return_logprob": true, "logprob_start_len": 1, "top_logprobs_num": 2}

    {"text": "", "meta_info": {"prompt_tokens": 3,
       "input_token_logprobs": [[null, 6, null], [-0.51, 7, null]],
       "input_top_logprobs": [null, [[-0.51, 7, null], [-1.2, 9, null]]]}}

Tokens of one's own choice, the same at every position, go in as `token_ids_logprob` and come back in
`input_token_ids_logprobs`, in their order.

`rid` comes back as `meta_info.id`, and with `return_prompt_token_ids` newer builds repeat all ids that they had as
`prompt_token_ids`; others still tell their number, and the token before the first scored one. See `binding.Echo`.

The first entry is a placeholder: with `logprob_start_len` s, values begin at token s + 1, so a response
that begins at p is asked for with s = p - 1. Stock servers answer at temperature 1 whatever
`sampling_params` says; `input_logprob_temperature` is the field of builds that can do better, and they
acknowledge it in `meta_info`.

The last token of the vocabulary is echoed as 0 (the server clips one id too many; its log-prob is right).

With `return_hidden_states` (a server started with `--enable-return-hidden-states`) the answer also has the
final states, after the last norm, of the tokens it computed: one block of rows for the prompt.

    "meta_info": {..., "hidden_states": [[[0.11, -2.3, ...], [0.72, 0.05, ...]]]}

Row i is the state *at* token i and predicts token i + 1, so the last row predicts nothing that was sent.
Rows may be missing in front, where the server had a prefix in its cache; it keeps none beyond
`logprob_start_len`. One token is generated and thrown away: the server cuts the blocks to the number of
generated tokens, so with none it sends an empty list (0.5.23). Of a prompt that it computed in chunks it
keeps the last chunk's rows alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from limbeck.records import Floats, Ints, SampleRequest, ScoreRequest
from limbeck.seeding import served_seed
from limbeck.wire.binding import Echo
from limbeck.wire.sample import SampleReply, make_sample_reply
from limbeck.wire.score import (
    Reply,
    WireError,
    asked_ids,
    given_to_all,
    integer,
    kept,
    make_reply,
    member,
    optional,
    safe_text,
    sequence,
    top_k,
    wants_states,
)

PATH = "/generate"
IDENTITY_PATH = "/get_model_info"


def write(request: ScoreRequest, model: str | None = None, acknowledges: bool = False) -> dict[str, Any]:
    """The request body. Raises `WireError` for given ids that differ from position to position."""
    states = wants_states(request)
    body: dict[str, Any] = {
        "input_ids": request.token_ids.tolist(),
        "sampling_params": {
            "max_new_tokens": int(states),
            "temperature": request.temperature if acknowledges else 1.0,
        },
        "return_logprob": True,
        "logprob_start_len": request.start - 1,
        "top_logprobs_num": top_k(request),
    }
    if acknowledges:
        body["input_logprob_temperature"] = request.temperature
    if given := given_to_all(request):
        body["token_ids_logprob"] = given
    if states:
        body["return_hidden_states"] = True
    return body


def ties(nonce: str) -> dict[str, Any]:
    """The fields of any request whose answers show that they belong to it."""
    return {"rid": nonce, "return_prompt_token_ids": True}


def read(answer: Any, request: ScoreRequest, acknowledges: bool = False, echo: Echo | None = None) -> Reply:
    """Raises `WireError` for anything that is not a complete answer to this request."""
    echo, meta = echo or Echo(), member(answer, "meta_info")
    _check_ties(answer, request.token_ids, echo)
    echo.temperature(optional(meta, "input_logprob_temperature", "meta_info"))
    entries = [_triple(entry) for entry in sequence(member(meta, "input_token_logprobs", "meta_info"), "log-probs")]
    expected = len(asked_ids(request)) + 1
    if len(entries) != expected:
        raise WireError(
            "short", f"meta_info.input_token_logprobs has {len(entries)} entries, expected {expected}: a placeholder "
            f"and {expected - 1} positions",
        )  # fmt: skip
    if entries[0][0] is not None:
        raise WireError("malformed", "the first of meta_info.input_token_logprobs has a value, expected a placeholder")
    before = int(request.token_ids[request.start - 1])
    whole = optional(answer, "prompt_token_ids") is not None  # and compared
    if entries[0][1] != before and not (whole and entries[0][1] == 0 and before == request.token_ids.max()):
        raise WireError(
            "unbound",
            f"the token before the first scored one was {entries[0][1]!r} at the server, but {before} was sent",
        )
    tops = None
    if top_k(request):
        tops = _lists(meta, "input_top_logprobs", expected)
    elif given_to_all(request):
        tops = _lists(meta, "input_token_ids_logprobs", expected)
    reply = make_reply(
        request,
        ids=_unclipped([i for _, i in entries[1:]], request, whole),
        logprobs=[value for value, _ in entries[1:]],
        tops=tops,
        temperature=meta.get("input_logprob_temperature"),
        acknowledges=acknowledges,
    )
    return replace(reply, hidden=_states(meta, request)) if wants_states(request) else reply


def _check_ties(answer: Any, sent: Ints, echo: Echo) -> None:
    """Whether the server had this request, as far as it tells. Raises `WireError`."""
    meta = member(answer, "meta_info")
    echo.request_id(optional(meta, "id", "meta_info"))
    count = optional(meta, "prompt_tokens", "meta_info")
    if count is not None and count != len(sent):
        raise WireError("unbound", f"the server had {count!r} tokens, but {len(sent)} were sent")
    echo.prompt_ids(optional(answer, "prompt_token_ids"), sent.tolist())


def _lists(meta: Any, name: str, expected: int) -> list[list[tuple[Any, Any]]]:
    """[n][K] of (id, log-prob), without the placeholder in front."""
    rows = sequence(member(meta, name, "meta_info"), name)
    if len(rows) != expected or rows[0] is not None:
        raise WireError("short", f"meta_info.{name} has {len(rows)} rows, expected null and {expected - 1}")
    return [[(i, value) for value, i in map(_triple, sequence(row, name))] for row in rows[1:]]


def _states(meta: Any, request: ScoreRequest) -> Floats:
    """[S, d] the states that predict the scored tokens, from the last n + 1 rows without the last."""
    rows: list[Any] = []
    for block in sequence(member(meta, "hidden_states", "meta_info"), "hidden_states"):
        block = sequence(block, "a block of hidden_states")
        rows.extend(block if block and isinstance(block[0], list) else [block])
    needed = len(asked_ids(request)) + 1
    if not needed <= len(rows) <= len(request.token_ids):
        raise WireError(
            "short",
            f"hidden_states has {len(rows)} rows for {len(request.token_ids)} tokens, of which {needed} are needed. A "
            "server that computes a prompt in chunks keeps the last one's: start it with --chunked-prefill-size -1",
        )
    width = len(sequence(rows[0], "a row of hidden_states"))
    if any(len(sequence(row, "a row of hidden_states")) != width for row in rows):
        raise WireError("malformed", "the rows of hidden_states have different lengths")
    if not all(type(value) in (int, float) for row in rows[-needed:-1] for value in row):
        raise WireError("malformed", "hidden_states holds something else than numbers")
    with np.errstate(over="ignore"):  # becomes infinite, and is refused
        states = np.array(rows[-needed:-1], dtype=np.float64).reshape(needed - 1, width).astype(np.float32)
    if not np.isfinite(states).all():
        raise WireError("not_finite", "the answer has hidden states that are not finite in float32")
    return states[kept(request)]


def _unclipped(echoed: list[Any], request: ScoreRequest, whole: bool) -> list[Any]:
    """The echo, with 0 taken for the largest id there is in the request, which may be the last of the vocabulary.

    Only where the server repeated all ids elsewhere: else a largest id that became 0 on the way would pass for it.
    """
    if not whole:
        return echoed
    largest = int(request.token_ids.max())
    sent = asked_ids(request).tolist()
    if len(echoed) != len(sent) or any(i == largest for i in echoed):
        return echoed
    return [s if e == 0 and s == largest else e for e, s in zip(echoed, sent, strict=True)]


def _triple(entry: Any) -> tuple[Any, Any]:
    """(log-prob, id) of `[log-prob, id, text]`."""
    entry = sequence(entry, "an entry of the log-probs")
    if len(entry) != 3:
        raise WireError("malformed", f"an entry of the log-probs is {entry!r}, expected [log-prob, id, text]")
    return entry[0], entry[1]


def read_identity(answer: Any) -> str:
    """The served model, from `/get_model_info`."""
    return safe_text(member(answer, "model_path"))


def write_tokenize(text: str, model: str | None = None) -> tuple[str, dict[str, Any]]:
    """(path, body) of a request for how the server splits `text`."""
    return "/tokenize", {"prompt": text, "add_special_tokens": True}


def write_text(text: str, model: str | None = None) -> dict[str, Any]:
    """The body of a request to score `text` itself: its echo shows how older builds split it, without such a route."""
    sampling = {"max_new_tokens": 0, "temperature": 1.0}
    asked = {"return_logprob": True, "logprob_start_len": 0, "return_prompt_token_ids": True}
    return {"text": text, "sampling_params": sampling, **asked}


def read_text(answer: Any) -> list[int]:
    """Token ids of the text. Where they are not repeated whole, the largest of the vocabulary comes as 0."""
    ids = optional(answer, "prompt_token_ids")
    if ids is None:
        echoed = sequence(member(member(answer, "meta_info"), "input_token_logprobs", "meta_info"), "log-probs")
        ids = [_triple(entry)[1] for entry in echoed]
    return [integer(i, "token id") for i in sequence(ids, "prompt_token_ids")]


def read_tokenize(answer: Any) -> list[int]:
    """Token ids of `text`."""
    return [integer(i, "token id") for i in sequence(member(answer, "tokens"), "tokens")]


def write_sample(request: SampleRequest, model: str | None = None) -> dict[str, Any]:
    """The request body for one response.

    `ignore_eos` stays off: SGLang takes it to mean the stop tokens too. Everything that would bend the
    distribution is set, so that no default of the server's does. `sampling_seed` counts with
    `--enable-deterministic-inference` only.
    """
    sampling = request.sampling
    return {
        "input_ids": request.token_ids.tolist(),
        "sampling_params": {
            "max_new_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0 if sampling.greedy else sampling.top_p,
            "top_k": 1 if sampling.greedy else sampling.top_k or -1,
            "min_p": 0.0 if sampling.greedy else sampling.min_p,
            "stop_token_ids": list(sampling.stop_ids),
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "skip_special_tokens": False,
            "sampling_seed": served_seed(sampling.seed, request.key),
        },
        "return_logprob": True,
        "top_logprobs_num": request.top,
    }


def read_sample(answer: Any, request: SampleRequest, vocabulary: int, echo: Echo | None = None) -> SampleReply:
    """Raises `WireError` for anything that is not a complete response."""
    meta = member(answer, "meta_info")
    _check_ties(answer, request.token_ids, echo or Echo())
    ids = sequence(member(answer, "output_ids"), "output_ids")
    entries = [_triple(entry) for entry in sequence(member(meta, "output_token_logprobs", "meta_info"), "log-probs")]
    if [i for _, i in entries] != list(ids):
        raise WireError("malformed", "meta_info.output_token_logprobs is not about the tokens of output_ids")
    reason = member(member(meta, "finish_reason", "meta_info"), "type", "finish_reason")
    version = optional(meta, "weight_version", "meta_info")
    changes = sequence(optional(meta, "weight_versions", "meta_info") or [], "weight_versions")
    spans = {safe_text(member(span, "version", "a weight version")) for span in changes}
    if version is not None and spans - {str(version)}:
        raise WireError("server", f"the weights changed while a response was sampled: {sorted(spans)}")
    tops = None
    if request.top:
        rows = sequence(member(meta, "output_top_logprobs", "meta_info"), "top log-probs")
        tops = [[(i, value) for value, i in map(_triple, sequence(row, "top log-probs"))] for row in rows]
    version = None if version is None else str(version)
    return make_sample_reply(request, vocabulary, ids, [value for value, _ in entries], reason, version, tops)
