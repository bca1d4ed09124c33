"""Chat templates of the kinds that models come with, a small tokenizer, and a student that says what a test wants.

Every token that it samples has a log-prob of its own, by which a test finds it again among what is trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import httpx
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from limbeck.environments.session import Session
from limbeck.gateway import Address, Gateway
from limbeck.records import Episode, Failure, Key, Prompt, Sampled, SampleRequest, Sampling

CHATML_TOOLS = (
    '{% if tools %}<|im_start|>system\n# Tools: <tool_call>{"name": ..., "arguments": ...}</tool_call>\n'
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
)
HERMES_CALLS = (
    '{% for c in m.tool_calls or [] %}{{ \'\n<tool_call>\n\' }}{"name": {{ c.function.name | tojson }}, "arguments": '
    "{{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
)
CHATML = (
    CHATML_TOOLS
    + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    + HERMES_CALLS
    + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "m.content | trim")
QWEN3 = (  # thinking is left out before the last question; an answer at the end gets an empty one
    CHATML_TOOLS
    + "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% if m.role == 'assistant' %}{% set content = m.content %}"
    "{% set thought = '' %}{% if '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>assistant\n"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}<think>\n{{ thought }}\n</think>\n\n{% endif %}"
    "{{ content }}"
    + HERMES_CALLS
    + "<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}"
    "\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (  # a call is an answer of its own, without the text before it
    "<|begin_of_text|>{% if tools %}<|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython <|python_tag|>\n"
    "{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|eot_id|>{% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n{{ m.content | tojson }}<|eot_id|>"
    "{% elif m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "{{ m.tool_calls[0].function.name }}", '
    '"parameters": {{ m.tool_calls[0].function.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (  # tools stand before the last question; ids of calls are nine letters and digits, or it raises
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}<s>{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "[INST] {{ m.content }}[/INST]{% elif m.role == 'system' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {\"content\": {{ m.content | tojson }}, "
    '"call_id": "{{ m.tool_call_id }}"}'
    "[/TOOL_RESULTS]{% elif m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids of calls have nine characters') }}{% endif %}"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
)
PLAIN = (  # no token ends a turn, and tool calls are text
    "{% for t in tools or [] %}Tool <tool_call>: {{ t | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content }}" + HERMES_CALLS + "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
NO_TOOLS = (  # one that knows no tools and no role of theirs
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {  # template, the token that ends a turn, how tools are called
    "chatml": (CHATML, "<|im_end|>", "hermes"),
    "trimmed": (TRIMMED, "<|im_end|>", "hermes"),
    "qwen3": (QWEN3, "<|im_end|>", "hermes"),
    "llama3": (LLAMA3, "<|eot_id|>", "llama3"),
    "mistral": (MISTRAL, "</s>", "mistral"),
    "no_tools": (NO_TOOLS, "<|im_end|>", "hermes"),
    "plain": (PLAIN, "<|endoftext|>", "hermes"),
}
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<|python_tag|>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]",
)  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    },
}


@cache
def _bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [QWEN3, LLAMA3, "the answer is what the tool said, and the question was another one"], trainer
    )
    return tokenizer


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    text, _, _ = TEMPLATES[template]
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=_bpe(), eos_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    wrapped.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    wrapped.chat_template = text
    return wrapped


Say = Callable[[int], str | list[int]]  # what is said in a turn, without its end: a text, or its very tokens


@dataclass
class Student:
    """An engine for one session. `says` decides; a turn ends by its stop token unless `max_tokens` cuts it."""

    tokenizer: PreTrainedTokenizerFast
    stop: int
    says: Say
    requests: list[SampleRequest] = field(default_factory=list)
    sampled: list[tuple[int, float]] = field(default_factory=list)  # token, its log-prob: no two are alike

    async def submit(self, request: SampleRequest) -> Sampled | Failure:
        self.requests.append(request)
        said = self.says(request.key.turn)
        ids = said if isinstance(said, list) else self.encode(said)
        ids = [*ids, self.stop][: request.sampling.max_tokens]
        logprobs = [-1e-4 * (len(self.sampled) + i + 1) for i in range(len(ids))]
        values = np.array(logprobs, dtype=np.float32)
        self.sampled += zip(ids, values.tolist(), strict=True)
        finish: Any = "stop" if ids[-1] == self.stop else "length"
        return Sampled(np.array(ids, dtype=np.int64), values, finish, version=3)

    def encode(self, text: str) -> list[int]:
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def session(self, max_tokens: int = 64) -> Session:
        sampling = Sampling(0.7, max_tokens, stop_ids=(self.stop, 0))
        return Session(Prompt("p", (1, 2)), Key("p"), sampling, self.submit)


@dataclass
class Talk:
    """A session at a gateway, and a client for it."""

    template: str
    student: Student
    generate: Session
    gateway: Gateway
    address: Address
    client: httpx.AsyncClient

    async def post(self, path: str = "chat/completions", **body: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": "student", **body})

    async def ask(self, messages: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        answer = await self.post(messages=list(messages), **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def say(self, messages: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The message of the first answer."""
        return (await self.ask(messages, **more))["choices"][0]["message"]

    def prompt_text(self, request: int = -1) -> str:
        return self.student.tokenizer.decode(self.student.requests[request].token_ids.tolist())

    def rendered(self, messages: Sequence[dict[str, Any]], **more: Any) -> list[int]:
        """A whole chat as the template alone has it."""
        return self.student.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_dict=False, **more
        )


def talk(template: str, says: Say, max_tokens: int = 64, **gateway: Any) -> Talk:
    tokenizer = tokenizer_of(template)
    student = Student(tokenizer, tokenizer.convert_tokens_to_ids(TEMPLATES[template][1]), says)
    generate = student.session(max_tokens)
    served = Gateway(tokenizer, **gateway)
    address = served.open(generate, "p")
    transport = httpx.ASGITransport(app=served.app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {address.api_key}"}
    return Talk(
        template, student, generate, served, address,
        httpx.AsyncClient(transport=transport, base_url=address.base_url + "/", headers=headers),
    )  # fmt: skip


def check_exact(student: Student, episode: Episode) -> None:
    """What was sampled is what is trained: as often, and each after the very tokens that it was sampled after."""
    trained: list[tuple[int, float]] = []
    asked = {request.key: request.token_ids.tolist() for request in student.requests}
    for rollout in episode.rollouts:
        trained += zip(rollout.response_ids.tolist(), rollout.logprobs.tolist(), strict=True)
        for turn in rollout.turns:
            if turn.role == "student":
                assert turn.key is not None
                assert rollout.token_ids[: turn.start].tolist() == asked[turn.key]
    assert sorted(trained) == sorted(student.sampled)


def split_at_random(tokenizer: PreTrainedTokenizerFast, text: str, rng: random.Random) -> list[int]:
    """A text in other tokens than the tokenizer would take, as a student that samples does."""
    ids: list[int] = []
    while text:
        count = rng.randint(1, 4)
        piece, text = text[:count], text[count:]
        ids += [int(i) for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    return ids


def call_text(template: str, a: int, rng: random.Random | None = None) -> str:
    """A call as the student of a template writes it: now and then in another way than the template would."""
    space = " " * (rng.randint(0, 2) if rng else 1)
    arguments = f'{{"a":{space}{a}}}'
    if TEMPLATES[template][2] == "llama3":
        return f'{{"name": "add",{space}"parameters": {arguments}}}'
    if TEMPLATES[template][2] == "mistral":
        return f'[TOOL_CALLS] [{{"name": "add",{space}"arguments": {arguments}}}]'
    return f'\n<tool_call>\n{{"name": "add",{space}"arguments": {arguments}}}\n</tool_call>'


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def tool_result(message: dict[str, Any], text: str) -> list[dict[str, Any]]:
    """One answer to each call of a message."""
    return [{"role": "tool", "tool_call_id": call["id"], "content": text} for call in message["tool_calls"]]


def arguments_of(message: dict[str, Any]) -> Any:
    return json.loads(message["tool_calls"][0]["function"]["arguments"])


def as_the_template_wants(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Arguments as a table, and no null."""
    found = []
    for message in messages:
        calls = [
            call | {"function": call["function"] | {"arguments": json.loads(call["function"]["arguments"])}}
            for call in message.get("tool_calls", [])
        ]
        found.append(message | {"content": message["content"] or ""} | ({"tool_calls": calls} if calls else {}))
    return found


def read_stream(text: str) -> list[dict[str, Any]]:
    """The choices of a stream, put together as a client does it."""
    *events, done = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert done == "[DONE]"
    found: dict[int, dict[str, Any]] = {}
    for event in map(json.loads, events):
        for choice in event["choices"]:
            message = found.setdefault(choice["index"], {"role": "assistant", "content": None})
            delta = choice["delta"]
            if delta.get("content") is not None:
                message["content"] = (message["content"] or "") + delta["content"]
            for call in delta.get("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    calls.append(call | {"function": dict(call["function"])})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
    return [found[index] for index in sorted(found)]
