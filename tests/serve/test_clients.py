"""Our own clients against the scoring server: they prove it, and get the truth from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.config.teacher import LimbeckTeacherConfig, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.serve.app import make_app
from limbeck.serve.scorer import Scorer
from limbeck.serve.settings import ServeSettings
from limbeck.teachers.connect import connect
from limbeck.teachers.remote import RemoteTeacher
from tests import tiny
from tests.serve.test_app import TEXTS, V, of_tokens, truth


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


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
    teacher = remote_teacher("t", section, V, V, 0 if head else 7, head)
    app = make_app(Scorer(lm), ServeSettings(), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        verdicts = await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), temperature, lm.tokenizer)
        assert all(v.ok for v in verdicts)
        assert teacher.method == method
        rollouts = [probe_rollout(ids[:4], ids[4:], temperature) for ids in TEXTS]
        for scores, ids, rollout in zip(await teacher.score(rollouts), TEXTS, rollouts, strict=True):
            expected = of_tokens(truth(lm, ids, temperature), ids)[3:]
            np.testing.assert_allclose(logprobs_of_sampled(scores, rollout), expected, atol=2e-5)
        await teacher.close()


async def test_states_under_another_models_head_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    other = load_model(ModelConfig(model=tiny.save(tmp_path, seed=1)), torch.device("cpu")).head()
    teacher = remote_teacher("t", SGLangTeacherConfig(url="http://server", head="other"), V, V, 0, other)
    app = make_app(Scorer(lm), ServeSettings(), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        with pytest.raises(ContractError, match=r"hidden states under the head of 'other' are .* another model"):
            await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), 0.7, lm.tokenizer)
        await teacher.close()


@pytest.mark.parametrize("kind", [SGLangTeacherConfig, VLLMTeacherConfig, LimbeckTeacherConfig])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
async def test_a_server_with_a_temperature_of_its_own_is_asked_by_name(
    lm: CausalLM, kind: Any, temperature: float
) -> None:
    """As the drop-ins meet it: `limbeck serve --temperature 0.7`, which answers unasked at 0.7."""
    teacher = remote_teacher("t", kind(url="http://server"), V, V, 5)
    app = make_app(Scorer(lm), ServeSettings(temperature=0.7), "tiny 123")
    async with app.router.lifespan_context(app):
        teacher.pool._client = httpx.AsyncClient(transport=httpx.ASGITransport(app))
        await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), temperature)
        assert teacher.method == "native"
        (scores,) = await teacher.score([probe_rollout(TEXTS[0][:4], TEXTS[0][4:], temperature)])
        expected = of_tokens(truth(lm, TEXTS[0], temperature), TEXTS[0])[3:]
        np.testing.assert_allclose(scores.logprobs_of_sampled, expected, atol=2e-5)
        await teacher.close()
