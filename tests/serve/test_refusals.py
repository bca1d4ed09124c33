"""A person who sees only a status in a framework's log finds the reason in the server's."""

from __future__ import annotations

import logging

import pytest

from limbeck.models.causal_lm import CausalLM
from limbeck.serve.logs import MOST, Refusals
from limbeck.wire import binary
from tests import tiny
from tests.serve.test_app import TEXTS, client, hook_body
from tests.serve.test_faults import IDS, SCORING


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "limbeck.serve"]


async def test_each_kind_of_refusal_is_written_once_with_its_reason(
    lm: CausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with client(lm) as http:
        for length in range(65, 70):  # one kind, whatever the numbers
            assert (await http.post("/generate", json=SCORING | {"input_ids": [5] * length})).status_code == 400
        for tokens in TEXTS[:3]:
            assert (await http.post("/generate", json=hook_body(tokens, "zero"))).status_code == 400
        for name in ("a", "b"):
            body = {"model": name, "prompt": IDS, "max_tokens": 1, "prompt_logprobs": 1}
            assert (await http.post("/v1/completions", json=body)).status_code == 400
        assert (await http.post(binary.PATH, content=b"x")).status_code == 400
        for path in ("/a", "/b"):
            assert (await http.get(path)).status_code == 404
        assert (await http.post("/generate", json=SCORING)).status_code == 200
    written = lines(caplog)
    assert len(written) == 5, written
    assert "refused POST /generate of 127.0.0.1 with 400: 65 tokens, more than the 64" in written[0]
    assert "start this server with --temperature T" in written[1]
    assert "'a' is not served here" in written[2]
    assert "with 404" in written[4]


def test_a_client_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    refusals = Refusals()
    for number in range(3 * MOST):
        refusals.write("POST /generate", 400, "x" * number)
    assert len(lines(caplog)) == MOST + 1
    assert "no further ones are written" in lines(caplog)[-1]


def test_what_differs_in_values_alone_is_one_kind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    refusals = Refusals()
    for message in ("top 5 of 'a' at 1e-3", "top 6 of 'b c' at 0.7", 'top 61 of "x" at 1.5e+10'):
        refusals.write("POST /generate", 400, message)
    refusals.write("POST /generate", 429, "top 5 of 'a' at 1e-3")
    assert len(lines(caplog)) == 2
