"""`limbeck serve MODEL` as a process of its own: from its first word to its last answer after SIGTERM."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from limbeck.cli.main import main
from limbeck.config.base import ModelConfig
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from tests import serve_process, tiny
from tests.serve_process import Served

TOKEN = {"authorization": "Bearer sesame"}
CONTEXT = 1024
QUEUE = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that takes a moment for a long text."""
    path = tmp_path_factory.mktemp("served")
    config = tiny.config_of("llama")
    config.num_hidden_layers, config.max_position_embeddings = 6, CONTEXT
    tiny.build(config).save_pretrained(path)
    tiny.character_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def served(folder: str) -> Iterator[Served]:
    options = ("--temperature", "0.7", "--batch-tokens", "2048", "--token-env", "SESAME", "--max-queue", str(QUEUE))
    limits = ("--max-top-k", "20", "--body-mb", "1")
    with serve_process.served(folder, *options, *limits, SESAME="sesame") as process:
        yield process


def score(ids: Any, **more: Any) -> dict[str, Any]:
    """What slime's and miles's reward functions send: a sampling temperature that means nothing."""
    sampling = {"temperature": 0, "max_new_tokens": 0, "skip_special_tokens": False}
    return {"input_ids": ids, "sampling_params": sampling, "return_logprob": True, "logprob_start_len": 0, **more}


def ask(served: Served, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/generate", json=body, headers=TOKEN, timeout=120, **more)


def texts(count: int, length: int) -> list[list[int]]:
    return np.random.default_rng(0).integers(5, tiny.VOCABULARY, (count, length)).tolist()


def of_response(answer: Any, length: int) -> list[float]:
    """As those reward functions read the answer."""
    return [entry[0] for entry in answer["meta_info"]["input_token_logprobs"][1:]][-length:]


def truth(lm: CausalLM, ids: list[int], temperature: float) -> np.ndarray:
    with torch.inference_mode():
        logits = lm.model(torch.tensor([ids])).logits[0, :-1].float()
    return torch.log_softmax(logits / temperature, -1).numpy()[np.arange(len(ids) - 1), ids[1:]]


def test_it_says_where_it_is_and_who_it_is(served: Served, folder: str) -> None:
    assert served.printed[0] == f"loading {folder}\n"
    assert "temperature 0.7 unless a request names another" in served.printed[-1]
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{served.url}/metrics").status_code == 401
    assert "limbeck_queue_sequences 0.0" in httpx.get(f"{served.url}/metrics", headers=TOKEN).text
    (model,) = httpx.get(f"{served.url}/v1/models", headers=TOKEN).json()["data"]
    assert model["max_model_len"] == CONTEXT
    assert folder in model["root"]


def test_slimes_and_miless_request_gets_q_at_the_rollout_temperature(served: Served, folder: str) -> None:
    lm = load_model(ModelConfig(model=folder), torch.device("cpu"))
    for ids in texts(3, 40):
        answer = ask(served, score(ids)).raise_for_status().json()
        np.testing.assert_allclose(of_response(answer, 12), truth(lm, ids, 0.7)[-12:], atol=5e-5)
        assert np.abs(np.array(of_response(answer, 12)) - truth(lm, ids, 1.0)[-12:]).max() > 0.1


def test_limits_are_reported(served: Served) -> None:
    assert httpx.post(f"{served.url}/generate", json=score([5, 6])).status_code == 401
    for body, status, message in (
        (score([5] * (CONTEXT + 1)), 400, f"more than the {CONTEXT}"),
        (score([5, 6], top_logprobs_num=21), 400, "up to 20"),
        (score([5, 6], pad="x" * 2**20), 413, "longer than 1 MB"),
        (score([[5, 6]] * (QUEUE + 1)), 400, "send fewer"),
    ):
        answer = ask(served, body)
        assert answer.status_code == status
        assert message in answer.json()["error"]["message"]
    give_up = time.monotonic() + 20
    while not any("refused POST /generate of 127.0.0.1 with 413" in line for line in served.printed):
        assert time.monotonic() < give_up, served.printed
        time.sleep(0.01)


def test_the_contract_is_proven_from_the_command_line(
    served: Served, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SESAME", "sesame")
    for kind in ("limbeck", "sglang", "vllm"):
        command = ["check", "--teacher", f"{kind}={served.url}", "--temperature", "1.3", "--tokenizer", folder]
        done = CliRunner().invoke(main, [*command, "--token-env", "SESAME", "--vocabulary", str(tiny.VOCABULARY)])
        assert done.exit_code == 0, done.output
        assert "temperature by: native" in done.stdout
    for kind in ("limbeck", "sglang"):
        command = ["check", "--teacher", f"{kind}={served.url}", "--temperature", "1.3", "--head", folder]
        done = CliRunner().invoke(main, [*command, "--token-env", "SESAME"])
        assert done.exit_code == 0, done.output
        assert "temperature by: hidden" in done.stdout
    done = CliRunner().invoke(main, [*command, "--token-env", "OTHER"])
    assert done.exit_code == 1
    assert "OTHER" in done.stderr


def test_a_port_that_is_taken_is_refused_before_anything_is_loaded(served: Served) -> None:
    done = CliRunner().invoke(main, ["serve", "no/such/model", "--port", served.url.rpartition(":")[2]])
    assert done.exit_code == 1
    assert "another --port" in done.stderr


def test_the_old_name_of_an_option_gives_the_new_one() -> None:
    for old, new in {
        ("--alone",): "--alone is now called --batch-invariant.",
        ("--queue", "9"): "--queue is now called --max-queue.",
        ("--batch", "9"): "--batch is now called --batch-tokens, a number of tokens.",
    }.items():
        done = CliRunner().invoke(main, ["serve", "no/such/model", *old])
        assert done.exit_code == 2
        assert new in done.stderr


def queued(served: Served) -> float:
    text = httpx.get(f"{served.url}/metrics", headers=TOKEN).text
    return float(re.findall(r"(?m)^limbeck_queue_sequences (\S+)", text)[0])


def test_a_full_queue_says_when_to_come_back_and_sigterm_finishes_what_was_taken(served: Served, folder: str) -> None:
    """The last test: the server is gone after it."""
    lm = load_model(ModelConfig(model=folder), torch.device("cpu"))
    long = texts(QUEUE, CONTEXT)
    with ThreadPoolExecutor(1) as threads:
        under_way = threads.submit(ask, served, score(long[:40]))
        give_up = time.monotonic() + 60
        while queued(served) < 40 and time.monotonic() < give_up:
            time.sleep(0.02)
        full = ask(served, score(texts(QUEUE - 39, 8)))
        assert full.status_code == 429
        assert float(full.headers["retry-after"]) >= 1
        served.process.send_signal(signal.SIGTERM)
        answers = under_way.result(120).raise_for_status().json()
    assert len(answers) == 40
    np.testing.assert_allclose(of_response(answers[-1], 5), truth(lm, long[39], 0.7)[-5:], atol=5e-5)
    assert served.process.wait(60) in (0, -signal.SIGTERM)
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", int(served.url.rpartition(":")[2])), 1):
        pass
    assert not any("Traceback" in line for line in served.printed), "".join(served.printed)
