"""What clients send: what is refused and how, what is overridden, and the shapes of answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

from limbeck.gateway import Gateway
from limbeck.records import Context, Failure, Sampled, Sampling
from tests.gateway.students import CHATML, TOOL, arguments_of, call_text, check_exact, talk, tokenizer_of, user

PICTURE = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
SOUND = [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]
HI = [user("Hi")]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"messages": [user(PICTURE)]}, 400, "unsupported"),
        ({"messages": [user(SOUND)]}, 400, "unsupported"),
        ({"messages": HI, "model": "gpt-4o"}, 404, "model_not_found"),
        ({"messages": HI, "tools": [TOOL], "tool_choice": "required"}, 400, "unsupported"),
        ({"messages": HI, "tools": [TOOL], "tool_choice": {"type": "function"}}, 400, "unsupported"),
        ({"messages": HI, "response_format": {"type": "json_object"}}, 400, "unsupported"),
        ({"messages": HI, "logprobs": True, "top_logprobs": 3}, 400, "unsupported"),
        ({"messages": HI, "functions": [{"name": "f"}]}, 400, "unsupported"),
        ({"messages": []}, 400, "invalid_request"),
        ({"messages": "Hi"}, 400, "invalid_request"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, 400, "invalid_request"),
        ({"messages": [user("\ud83d")]}, 400, "invalid_request"),
        ({"messages": [user(3)]}, 400, "invalid_request"),
        ({"messages": HI, "n": 0}, 400, "invalid_request"),
        ({"messages": HI, "max_tokens": -1}, 400, "invalid_request"),
        ({"messages": HI, "stop": [""]}, 400, "invalid_request"),
        ({"messages": HI, "stream": "yes"}, 400, "invalid_request"),
        ({"messages": HI, "tools": [{"name": "f"}]}, 400, "invalid_request"),
        ({}, 400, "invalid_request"),
    ],
)
async def test_what_cannot_be_had_is_refused_in_openais_shape_and_is_a_failure_of_that_session(
    body: Any, status: int, code: str
) -> None:
    t = talk("chatml", lambda turn: "a")
    other = t.gateway.open(t.student.session(), "q")
    content = json.dumps({"model": "student"} | body)
    answer = await t.client.post("chat/completions", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-should-retry"] == "false"
    report = t.gateway.close(t.address.id)
    assert dict(report.errors) == {code: 1}
    assert report.failure is not None
    assert (report.failure.id, report.failure.kind, report.failure.message) == ("p", code, error["message"])
    assert t.gateway.close(other.id).failure is None
    assert not t.student.sampled


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_refused(content: bytes) -> None:
    t = talk("chatml", lambda turn: "a")
    answer = await t.client.post("chat/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


async def test_a_key_at_another_address_is_a_failure_of_the_session_whose_key_it_is() -> None:
    t = talk("chatml", lambda turn: "a")
    other = t.gateway.open(t.student.session(), "q")
    body = {"messages": HI}
    for key in ("wrong", other.api_key):
        answer = await t.client.post("chat/completions", json=body, headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert t.gateway.strangers == {"invalid_api_key": 1}
    asked, sent = t.gateway.close(t.address.id), t.gateway.close(other.id)
    assert (asked.failure, asked.errors) == (None, {})
    assert sent.failure is not None
    assert (sent.failure.id, sent.failure.kind) == ("q", "invalid_api_key")


async def test_a_client_that_leaves_while_it_sends_may_ask_again() -> None:
    t = talk("chatml", lambda turn: "a")
    sent = iter([{"type": "http.request", "body": b'{"mess', "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(sent)

    async def send(message: Any) -> None:
        pass

    path = f"/sessions/{t.address.id}/v1/chat/completions"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
             "headers": [], "root_path": "", "scheme": "http", "server": ("h", 80), "http_version": "1.1"}  # fmt: skip
    await t.gateway.app(scope, receive, send)
    assert (await t.say(HI))["content"] == "a"
    report = t.gateway.close(t.address.id)
    assert (report.failure, report.turns, dict(report.errors)) == (None, 1, {"client_disconnected": 1})


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/sessions/00/v1/chat/completions"])
async def test_an_address_or_key_of_nobody_is_refused_and_counted(path: str) -> None:
    t = talk("chatml", lambda turn: "a")
    root = httpx.AsyncClient(transport=httpx.ASGITransport(app=t.gateway.app), base_url="http://h")
    answer = await root.post(path, json={"messages": HI})
    assert answer.status_code == 401
    assert t.gateway.strangers == {"invalid_api_key": 1}
    assert t.gateway.close(t.address.id).failure is None


async def test_a_session_is_found_by_its_key_or_by_its_address_and_is_gone_when_it_ended() -> None:
    t = talk("chatml", lambda turn: "a")
    root = httpx.AsyncClient(transport=httpx.ASGITransport(app=t.gateway.app), base_url="http://h")
    by_key = {"authorization": f"bearer  {t.address.api_key}"}  # the scheme in any case
    path = f"/sessions/{t.address.id}/v1/chat/completions"
    assert (await root.post("/v1/chat/completions", json={"messages": HI}, headers=by_key)).status_code == 200
    assert (await root.post(path, json={"messages": HI})).status_code == 200
    t.gateway.close(t.address.id)
    assert (await root.post("/v1/chat/completions", json={"messages": HI}, headers=by_key)).status_code == 410
    assert (await root.post(path, json={"messages": HI})).status_code == 410


async def test_models_and_unknown_addresses() -> None:
    t = talk("chatml", lambda turn: "a", context=99, model="demo")
    (card,) = (await t.client.get("models")).json()["data"]
    assert (card["id"], card["max_model_len"]) == ("demo", 99)
    assert (await t.client.get("models/demo")).json() == card
    assert (await t.client.get("models/other")).status_code == 404
    answer = await t.client.post("responses", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    answer = await t.client.get("chat/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "unknown_url")
    report = t.gateway.close(t.address.id)
    assert (report.failure, report.errors) == (None, {}), "an agent that looks for another route may go on"


@pytest.mark.parametrize(
    "options",
    [{"chat_template": "HACK"}, {"tokenize": True}, {"padding": True}, {"messages": []}, {"tools": [TOOL]},
     {"add_generation_prompt": False}, {"return_dict": True}, {"conversation": 1}, {"max_length": 2}],
)  # fmt: skip
async def test_what_is_not_the_templates_own_is_no_option_of_it(options: Any) -> None:
    t = talk("chatml", lambda turn: "a")
    answer = await t.post(messages=HI, chat_template_kwargs=options)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported")
    assert next(iter(options)) in error["message"]


async def test_an_option_that_says_what_is_so_anyway_is_taken() -> None:
    t = talk("chatml", lambda turn: "a")
    options = {"add_generation_prompt": True, "continue_final_message": False, "enable_thinking": False}
    await t.ask(HI, chat_template_kwargs=options)


async def test_the_rollouts_own_sampling_stands_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    t = talk("chatml", lambda turn: "a")
    asked = {"temperature": 0.2, "seed": 3, "presence_penalty": 0.0, "top_p": 1.0, "top_k": -1}
    for _ in range(3):
        await t.ask(HI, **asked)
    await t.ask(HI, temperature=0.7)
    assert all(request.sampling == t.generate.sampling for request in t.student.requests)
    assert dict(t.gateway.close(t.address.id).overridden) == {"temperature": 3, "seed": 3}
    (line,) = [record.getMessage() for record in caplog.records]
    assert "temperature = 0.2" in line
    assert "seed = 3" in line


async def test_max_tokens_is_lowered_and_never_raised() -> None:
    asked: list[int | None] = []

    class Generate:
        sampling = Sampling(1.0, 50, stop_ids=(2,))

        async def __call__(self, context: Context) -> Sampled:
            asked.append(context.max_tokens)
            return Sampled(np.array([2]), np.zeros(1, np.float32), "stop", 0, turn=len(asked) - 1)

    gateway = Gateway(tokenizer_of("chatml"), context=60)
    address = gateway.open(Generate())  # type: ignore[arg-type]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    for more in ({}, {"max_tokens": 7}, {"max_completion_tokens": 5, "max_tokens": 9}, {"max_tokens": 999}):
        answer = await client.post("chat/completions", json={"messages": HI, **more})
        assert answer.status_code == 200
    used = answer.json()["usage"]["prompt_tokens"]
    assert asked == [
        min(50, 60 - used) if 60 - used < 50 else None,
        7,
        5,
        min(50, 60 - used) if 60 - used < 50 else None,
    ]
    assert gateway.close(address.id).overridden["max_tokens"] == 1


async def test_what_does_not_fit_the_context_is_refused_as_openai_does_and_the_agent_may_go_on() -> None:
    t = talk("chatml", lambda turn: "a", context=100)
    for text in ("word " * 200, "x" * 10_000_000):
        answer = await t.post(messages=[user(text)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert "maximum context length is 100 tokens" in answer.json()["error"]["message"]
    await t.ask(HI)
    report = t.gateway.close(t.address.id)
    assert report.errors["context_length_exceeded"] == 2
    assert report.failure is None
    assert dict(report.segments) == {"start": 1}


async def test_a_failure_of_the_student_is_that_sessions_failure() -> None:
    answers = [Failure("p", "run", "max_turns", "no more"), Failure("p", "sample", "timeout", "late")]

    class Generate:
        sampling = Sampling(1.0, 5)

        async def __call__(self, context: Context) -> Any:
            return answers.pop(0)

    gateway = Gateway(tokenizer_of("chatml"))
    address = gateway.open(Generate())  # type: ignore[arg-type]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    limit = await client.post("chat/completions", json={"messages": HI})
    assert (limit.status_code, limit.json()["error"]["code"]) == (400, "max_turns")
    late = await client.post("chat/completions", json={"messages": HI})
    assert (late.status_code, late.json()["error"]["code"]) == (500, "timeout")
    report = gateway.close(address.id)
    assert report.failure == Failure("p", "sample", "timeout", "late")


async def test_what_generate_raises_is_kept_for_whoever_opened_the_session() -> None:
    class Generate:
        sampling = Sampling(1.0, 5)

        async def __call__(self, context: Context) -> Any:
            raise RuntimeError("the engine is gone")

    gateway = Gateway(tokenizer_of("chatml"))
    address = gateway.open(Generate())  # type: ignore[arg-type]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    answer = await client.post("chat/completions", json={"messages": HI})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "sampling_failed")
    assert isinstance(gateway.close(address.id).raised, RuntimeError)


async def test_a_session_that_ends_while_a_turn_is_sampled_answers_that_it_ended() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    class Generate:
        sampling = Sampling(1.0, 5)

        async def __call__(self, context: Context) -> Any:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    gateway = Gateway(tokenizer_of("chatml"))
    address = gateway.open(Generate())  # type: ignore[arg-type]
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    request = asyncio.create_task(client.post("chat/completions", json={"messages": HI}))
    await started.wait()
    report = gateway.close(address.id)
    assert (await request).status_code == 410
    assert ended.is_set()
    assert report.failure is None


async def test_tools_without_a_known_format_are_refused() -> None:
    t = talk("chatml", lambda turn: "a")
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = CHATML.replace("tool_call", "call")
    gateway = Gateway(tokenizer)
    address = gateway.open(t.student.session())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    answer = await client.post("chat/completions", json={"messages": HI, "tools": [TOOL]})
    assert answer.status_code == 400
    assert "tool_format" in answer.json()["error"]["message"]


async def test_a_template_that_fails_costs_that_rollout_and_prints_no_traceback(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("limbeck.models.chat.SECONDS", 0.05)
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% if m.content == 'loop' %}{% for i in range(99999) %}"
        "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}{% endfor %}"
    )
    student = talk("chatml", lambda turn: "a").student
    async with Gateway(tokenizer) as gateway:
        address = gateway.open(student.session())
        async with httpx.AsyncClient(base_url=address.base_url + "/", trust_env=False) as client:
            answer = await client.post("chat/completions", json={"messages": [user("loop")]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert "does not end" in answer.json()["error"]["message"]
        failure = gateway.close(address.id).failure
        assert failure is not None
    assert not caplog.records


async def test_a_template_that_wants_a_system_message_is_asked_with_one() -> None:
    t = talk("chatml", lambda turn: call_text("chatml", 1))
    tokenizer = tokenizer_of("chatml")
    tokenizer.chat_template = "{% if messages[0].role != 'system' %}{{ raise_exception('system') }}{% endif %}" + CHATML
    gateway = Gateway(tokenizer)
    address = gateway.open(t.student.session())
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app=gateway.app), base_url=address.base_url + "/")
    assert (await client.post("chat/completions", json={"messages": HI, "tools": [TOOL]})).status_code == 400
    messages = [{"role": "system", "content": "Be brief."}, *HI]
    answer = (await client.post("chat/completions", json={"messages": messages, "tools": [TOOL]})).json()
    assert arguments_of(answer["choices"][0]["message"]) == {"a": 1}


async def test_the_shape_of_an_answer() -> None:
    t = talk("chatml", lambda turn: "Well." + call_text("chatml", 5))
    answer = await t.ask(HI, tools=[TOOL], logprobs=True, return_token_ids=True, return_tokens_as_token_ids=True)
    (choice,) = answer["choices"]
    assert (answer["object"], choice["index"], choice["finish_reason"]) == ("chat.completion", 0, "tool_calls")
    assert choice["message"]["content"] == "Well."
    assert arguments_of(choice["message"]) == {"a": 5}
    assert answer["prompt_token_ids"] == t.student.requests[0].token_ids.tolist()
    assert [
        (id_, one["logprob"]) for id_, one in zip(choice["token_ids"], choice["logprobs"]["content"], strict=True)
    ] == (t.student.sampled)
    assert [one["token"] for one in choice["logprobs"]["content"]] == [f"token_id:{id_}" for id_ in choice["token_ids"]]


async def test_the_events_of_a_stream() -> None:
    t = talk("chatml", lambda turn: "Well." + call_text("chatml", 5))
    answer = await t.post(messages=HI, tools=[TOOL], stream=True, stream_options={"include_usage": True}, n=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line for line in answer.text.split("\n\n") if line]
    assert done == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    *chunks, last = chunks
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == len(t.student.sampled)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert {chunk["id"] for chunk in chunks} == {last["id"]}
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [one["finish_reason"] for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
    assert reasons == ["tool_calls", "tool_calls"]


async def test_token_ids_go_on_from_the_longest_sequence_that_was_said() -> None:
    t = talk("chatml", lambda turn: [400 + turn] * 3)
    url = t.address.base_url.removesuffix("/v1") + "/inference/v1/generate"

    async def ask(ids: list[int], **parameters: Any) -> list[list[int]]:
        body = {"model": "student", "token_ids": ids, "sampling_params": {"logprobs": 1, **parameters}}
        answer = (await t.client.post(url, json=body)).json()
        for choice in answer["choices"]:
            names = [one["token"] for one in choice["logprobs"]["content"]]
            assert names == [f"token_id:{id_}" for id_ in choice["token_ids"]]
        return [choice["token_ids"] for choice in answer["choices"]]

    (first,) = await ask([5, 6, 7])
    second, third = await ask([5, 6, 7, *first, 9], n=2)
    await ask([5, 6, 7, *first, 9])
    await ask([5, 6, 7, *first, 9, *third, 9])
    await ask([5, 6, 7, *first[:-1], 9])
    assert second != third
    report = t.gateway.close(t.address.id)
    assert (report.spliced, report.siblings) == (2, 2)
    assert dict(report.segments) == {"start": 1, "new_conversation": 1}
    check_exact(t.student, t.generate.episode())


@pytest.mark.parametrize("ids", [[], [-1], [True], ["a"], [10**30], [5000], "abc", None])
async def test_ids_of_no_vocabulary_are_refused(ids: Any) -> None:
    t = talk("chatml", lambda turn: "a")
    answer = await t.post("inference/v1/generate", token_ids=ids)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert not t.student.requests


async def test_an_open_server_answers_and_a_taken_port_is_refused() -> None:
    from limbeck.errors import RecipeError

    student = talk("chatml", lambda turn: "a").student
    async with Gateway(tokenizer_of("chatml")) as gateway:
        address = gateway.open(student.session())
        async with httpx.AsyncClient(base_url=address.base_url + "/", trust_env=False) as client:
            assert (await client.post("chat/completions", json={"messages": HI})).status_code == 200
        port = int(gateway.url.rpartition(":")[2])
        with pytest.raises(RecipeError, match="cannot listen"):
            await Gateway(tokenizer_of("chatml"), port=port).__aenter__()
