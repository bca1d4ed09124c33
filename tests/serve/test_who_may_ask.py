"""A page of another site reads nothing of the scoring server and makes no work for it; the token is in no answer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from limbeck.errors import RecipeError
from limbeck.models.causal_lm import CausalLM
from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.wire.hosts import hosts_of
from tests import tiny
from tests.serve.test_app import client
from tests.serve.test_faults import COMPLETION, SCORING, message_of


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


async def browser(lm: CausalLM, hosts: Any = None, token: bool = False, **headers: str) -> list[int]:
    """Statuses of each route for a request with such headers."""
    app = make_app(Scorer(lm), ServeSettings(token_env="SERVER_TOKEN" if token else None), "tiny 123", hosts)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        url = "http://127.0.0.1:30000"
        answers = [await http.get(url + path, headers=headers) for path in ("/health", "/metrics", "/v1/models")]
        for path, body in (("/generate", SCORING), ("/v1/completions", COMPLETION)):
            answers.append(await http.post(url + path, json=body, headers=headers))
        return [answer.status_code for answer in answers]


async def test_a_foreign_name_reads_nothing_without_a_token(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(await browser(lm, hosts_of("127.0.0.1"))) == {200}
    assert set(await browser(lm, hosts_of("127.0.0.1"), host="evil.example:30000")) == {400}
    assert set(await browser(lm, hosts_of("127.0.0.1", ["good.example"]), host="Good.Example:30000")) == {200}
    monkeypatch.setenv("SERVER_TOKEN", "sesame")
    named = await browser(lm, hosts_of("127.0.0.1"), token=True, host="teacher.svc", authorization="Bearer sesame")
    assert set(named) == {200}  # a page that was made to resolve to here has no token
    assert set((await browser(lm, hosts_of("127.0.0.1"), token=True, host="teacher.svc"))[1:]) == {401}


async def test_a_web_page_makes_no_work(lm: CausalLM) -> None:
    """A page of another site can send text, forms and no type without asking first, and always says whose it is."""
    assert set(await browser(lm, origin="http://evil.example")) == {403}
    async with client(lm) as http:
        for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "json"):
            answer = await http.post("/generate", content=json.dumps(SCORING), headers={"content-type": media})
            assert answer.status_code == 415
            assert "expected application/json" in message_of(answer)
        for media in ("application/json", "Application/JSON; charset=utf-8"):
            answer = await http.post("/generate", content=json.dumps(SCORING), headers={"content-type": media})
            assert answer.status_code == 200


async def test_the_token_is_in_no_answer_and_one_that_no_header_carries_is_refused(
    lm: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVER_TOKEN", "s3cr3t\n")
    with pytest.raises(RecipeError) as refused:
        make_app(Scorer(lm), ServeSettings(token_env="SERVER_TOKEN"), "x")
    assert "s3cr3t" not in str(refused.value)
    monkeypatch.setenv("SERVER_TOKEN", "s3cr3t")
    async with client(lm, token_env="SERVER_TOKEN") as http:
        for path in ("/generate", "/x", "/health", "/metrics"):
            for token in ("s3cr3", "s3cr3t2", "S3CR3T", ""):
                answer = await http.get(path, headers={"authorization": f"Bearer {token}"})
                assert "s3cr3t" not in answer.text + str(answer.headers)
