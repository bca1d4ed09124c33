"""Our own clients against the scoring server: they prove it, and get the truth from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.config.teacher import LimbeckTeacherConfig, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.head import Head
from limbeck.models.loading import load_model
from limbeck.records import TopKScores, request_of
from limbeck.serve import scorer as scorer_module
from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.connect import connect
from limbeck.teachers.remote import RemoteTeacher
from tests import tiny
from tests.serve.test_app import TEXTS, V, of_tokens, truth

IDS = continuations(TEXTS[-1], V)


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


@asynccontextmanager
async def connected(lm: CausalLM, section: Any, **settings: Any) -> AsyncIterator[RemoteClient]:
    """A client of a server that runs here."""
    app = make_app(Scorer(lm), ServeSettings(**settings), "tiny 123")
    async with app.router.lifespan_context(app):
        client = connect("t", section, V, V)
        client.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        yield client
        await client.close()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    ("section", "method"),
    [
        (LimbeckTeacherConfig(url="http://server"), "native"),
        (SGLangTeacherConfig(url="http://server"), "native"),
        (VLLMTeacherConfig(url="http://server"), "native"),
        (LimbeckTeacherConfig(url="http://server", head="here"), "hidden"),
        (SGLangTeacherConfig(url="http://server", head="here"), "hidden"),
    ],
)
async def test_our_own_clients_prove_it_and_get_the_truth(
    lm: CausalLM, section: Any, method: str, temperature: float
) -> None:
    head = lm.head() if method == "hidden" else None
    support: Any = "full" if head else 7
    async with connected(lm, section) as client:
        proof = await prove_remote(client, TEXTS, IDS, temperature, lm.tokenizer, head, support)
        assert all(result.ok for result in proof.results)
        assert proof.method == method
        requests = [request_of(ids, 4, temperature, support) for ids in TEXTS]
        answers = await RemoteTeacher(client, proof).score(requests)
        for scores, ids, request in zip(answers, TEXTS, requests, strict=True):
            expected = of_tokens(truth(lm, ids, temperature), ids)[3:]
            np.testing.assert_allclose(logprobs_of_sampled(scores, request, proof.heads), expected, atol=5e-5)


async def test_states_under_another_models_head_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    other: Head = load_model(ModelConfig(model=tiny.save(tmp_path, seed=1)), torch.device("cpu")).head()
    async with connected(lm, SGLangTeacherConfig(url="http://server", head="other")) as client:
        with pytest.raises(ContractError, match=r"hidden states under the head of 'other' are .* another model"):
            await prove_remote(client, TEXTS, IDS, 0.7, head=other, support="full")


@pytest.mark.parametrize("kind", [SGLangTeacherConfig, VLLMTeacherConfig, LimbeckTeacherConfig])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_a_server_with_a_temperature_of_its_own_is_asked_by_name(
    lm: CausalLM, kind: Any, temperature: float
) -> None:
    """As the drop-ins meet it: `limbeck serve --temperature 0.7`, which answers unasked at 0.7."""
    async with connected(lm, kind(url="http://server"), temperature=0.7) as client:
        proof = await prove_remote(client, TEXTS, IDS, temperature, support=5)
        assert proof.method == "native"
        (scores,) = await RemoteTeacher(client, proof).score([request_of(TEXTS[0], 4, temperature, 5)])
        assert isinstance(scores, TopKScores)
        assert scores.temperature == temperature
        expected = of_tokens(truth(lm, TEXTS[0], temperature), TEXTS[0])[3:]
        np.testing.assert_allclose(scores.logprobs_of_sampled, expected, atol=5e-5)


@pytest.mark.parametrize(
    "section", [LimbeckTeacherConfig(url="http://server"), SGLangTeacherConfig(url="http://server")]
)
async def test_a_server_that_divides_by_another_temperature_is_refused(
    lm: CausalLM, section: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers name the temperature it divided by, whatever was asked for, so the proof fails by name."""
    real = scorer_module.score_hidden

    def at_one(head: Any, hidden: Any, ids: Any, temperature: float, *args: Any, **more: Any) -> Any:
        return real(head, hidden, ids, 1.0, *args, **more)

    async with connected(lm, section) as client:
        monkeypatch.setattr(scorer_module, "score_hidden", at_one)
        with pytest.raises(ContractError, match=r"scored at temperature 1\.0, expected 0\.7"):
            await prove_remote(client, TEXTS, IDS, 0.7)
