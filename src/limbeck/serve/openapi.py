"""What `limbeck serve` takes and gives, as an OpenAPI description: GET /openapi.json.

Fields of SGLang's and vLLM's that this server ignores are not in it; sending them is no mistake.
"""

from __future__ import annotations

from typing import Any

from limbeck.serve.limits import Limits
from limbeck.serve.questions import LONGEST_NAME
from limbeck.serve.settings import COLDEST, HOTTEST
from limbeck.wire import binary, binding
from limbeck.wire.states import KINDS

Json = dict[str, Any]

COUNT: Json = {"type": "integer", "minimum": 0}
FLAG: Json = {"type": "boolean"}
NAME: Json = {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME}
SCORING: Json = {"type": "number", "minimum": COLDEST, "maximum": HOTTEST, "description": "what logits are divided by"}
SAMPLING: Json = {"type": "number", "minimum": 0, "maximum": HOTTEST, "description": "where no other is given"}
ENTRY: Json = {"type": "array", "minItems": 3, "maxItems": 3, "description": "log-prob or null, token id, null"}
ENTRIES: Json = {"type": "array", "items": ENTRY}
LISTS: Json = {"type": "array", "items": {"anyOf": [ENTRIES, {"type": "null"}]}}

WRONG = {
    "400": "the request cannot be read, or asks for what is not here or beyond a limit; with Limbeck-Problem: request "
    "it was damaged on the way",
    "401": "the bearer token is missing or wrong",
    "403": "a web page asks",
    "408": "the body came too slowly",
    "411": "the body comes in chunks: it must have a Content-Length",
    "413": "the body is too long",
    "415": "the content type is another",
    "429": "no room now: Retry-After says when",
    "431": "the head is too long",
    "500": "a fault of the server's",
    "503": "the server is shutting down",
}


def describe(limits: Limits) -> Json:
    """The description of a server with these limits, OpenAPI 3.1."""
    asked = _Asked(limits)
    return {
        "openapi": "3.1.0",
        "info": {"title": "limbeck serve", "version": "1", "description": __doc__},
        "paths": {
            "/generate": {"post": _scored("Score, in SGLang's schema", asked.generate(), _GENERATED)},
            "/v1/completions": {"post": _scored("Score, in vLLM's schema", asked.completions(), _COMPLETED)},
            "/tokenize": {"post": _scored("Token ids of a text", _TOKENIZE, _TOKENIZED)},
            binary.PATH: {"post": _binary(asked.binary())},
            "/get_model_info": {"get": _fact("The model and its fingerprint")},
            "/v1/models": {"get": _fact("The model and its fingerprint, as vLLM has it")},
            "/health": {"get": _fact("Whether the server runs", public=True)},
            "/metrics": {"get": _fact("Prometheus series", media="text/plain")},
            "/openapi.json": {"get": _fact("This description")},
        },
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "schemas": {
                "Problem": _object(
                    {"error": _object({"message": NAME | {"maxLength": 1000}, "code": COUNT}, True)}, True
                )
            },
        },
        "security": [{}, {"bearer": []}],
    }


def _object(properties: Json, all_of_them: bool = False, required: tuple[str, ...] = ()) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties if all_of_them else required)}


class _Asked:
    """Bodies of requests."""

    def __init__(self, limits: Limits) -> None:
        self.id: Json = {"type": "integer", "minimum": 0, "maximum": limits.vocabulary - 1}
        self.ids: Json = {"type": "array", "items": self.id, "minItems": 1, "maxItems": limits.longest}
        self.most, self.models = limits.settings.max_queue, list(limits.names)
        text: Json = {"type": "string", "minLength": 1, "maxLength": limits.longest_text}
        many: Json = {"type": "array", "items": {"anyOf": [text, self.ids]}, "minItems": 1, "maxItems": self.most}
        self.prompt: Json = {"anyOf": [text, self.ids, many]}
        self.top: Json = COUNT | {"maximum": min(limits.vocabulary, limits.settings.max_top_k)}

    def generate(self) -> Json:
        sampling = {"max_new_tokens": {"type": "integer", "maximum": 0}, "temperature": SAMPLING}
        either = {"anyOf": [{"required": ["input_ids"]}, {"required": ["text"]}]}
        return either | _object(
            {
                "input_ids": self.prompt, "text": self.prompt, "logprob_start_len": {"type": "integer", "minimum": -1},
                "sampling_params": _object(sampling, required=("max_new_tokens",)), "return_logprob": FLAG,
                "top_logprobs_num": self.top, "token_ids_logprob": {"type": "array", "items": self.id},
                "return_hidden_states": FLAG, "input_logprob_temperature": SCORING,
                "rid": {"anyOf": [NAME, {"type": "array", "items": NAME, "minItems": 1, "maxItems": self.most}]},
                "return_prompt_token_ids": FLAG,
            },
            required=("sampling_params",),
        )  # fmt: skip

    def completions(self) -> Json:
        return _object(
            {
                "prompt": self.prompt, "max_tokens": {"type": "integer", "maximum": 1}, "prompt_logprobs": self.top,
                "temperature": SAMPLING, "prompt_logprobs_temperature": SCORING, "model": {"enum": self.models},
                "request_id": NAME, "return_token_ids": FLAG,
            },
            required=("prompt", "max_tokens", "prompt_logprobs"),
        )  # fmt: skip

    def binary(self) -> Json:
        array = {"type": "string", "format": "binary"}
        row = {"ids": array, "start": {"type": "integer", "minimum": 1}, "support_ids": array}
        rows = {"type": "array", "items": _object(row, True), "minItems": 1, "maxItems": self.most}
        return _object(
            {"format": {"const": binary.FORMAT}, "temperature": SCORING, "top_k": self.top, "hidden": FLAG,
             "hidden_dtype": {"enum": list(KINDS)}, "sequences": rows},
            required=("format", "sequences"),
        )  # fmt: skip


_IDS: Json = {"type": "array", "items": COUNT}
_ONE = _object(
    {
        "text": {"const": ""}, "prompt_token_ids": _IDS,
        "meta_info": _object(
            {
                "id": {"type": "string"}, "prompt_tokens": COUNT, "input_logprob_temperature": SCORING,
                "input_token_logprobs": ENTRIES, "input_top_logprobs": LISTS, "input_token_ids_logprobs": LISTS,
                "hidden_states": {"type": "array"},
            },
            required=("id", "prompt_tokens", "input_logprob_temperature", "input_token_logprobs"),
        ),
    },
    required=("text", "meta_info"),
)  # fmt: skip
_GENERATED = {"anyOf": [_ONE, {"type": "array", "items": _ONE}]}
_COMPLETED = _object(
    {
        "id": {"type": "string"}, "model": {"type": "string"}, "prompt_logprobs_temperature": SCORING,
        "choices": {"type": "array", "items": _object(
            {"index": COUNT, "prompt_logprobs": {"type": "array"}, "prompt_token_ids": _IDS},
            required=("index", "prompt_logprobs"),
        )},
    },
    required=("id", "model", "prompt_logprobs_temperature", "choices"),
)  # fmt: skip
_TOKENIZE = _object({"prompt": {"type": "string"}, "add_special_tokens": FLAG}, required=("prompt",))
_TOKENIZED = _object({"tokens": _IDS, "count": COUNT, "max_model_len": {}}, all_of_them=True)


def _scored(summary: str, request: Json, answer: Json) -> Json:
    body = {"required": True, "content": {"application/json": {"schema": request}}}
    answers = _answers({"application/json": {"schema": answer}})
    return {"summary": summary, "parameters": _PARAMETERS, "requestBody": body, "responses": answers}


def _binary(request: Json) -> Json:
    body = {"required": True, "content": {binary.MEDIA_TYPE: {"schema": request}}, "description": binary.__doc__}
    answers = _answers({binary.MEDIA_TYPE: {}})
    return {"summary": "Score, in msgpack", "parameters": _PARAMETERS, "requestBody": body, "responses": answers}


def _fact(summary: str, media: str = "application/json", public: bool = False) -> Json:
    operation: Json = {"summary": summary, "parameters": _PARAMETERS, "responses": _answers({media: {}})}
    return operation | ({"security": []} if public else {})


def _answers(content: Json) -> Json:
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    wrong = {status: {"description": text, "content": problem} for status, text in WRONG.items()}
    return {"200": {"description": "the answer", "content": content}, **wrong}


_DIGEST: Json = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_PARAMETERS: list[Json] = [
    {
        "name": binding.NONCE,
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    },
    {"name": binding.REQUEST, "in": "header", "required": False, "schema": _DIGEST, "description": binding.__doc__},
]
