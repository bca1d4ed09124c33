"""Hidden states that are rounded for the wire: what the server measures is true, and the learner trains on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from limbeck.config.base import ModelConfig
from limbeck.config.teacher import LimbeckTeacherConfig, SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.config.values import HiddenDtype
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, TeacherError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.records import HiddenScores, request_of
from limbeck.serve import scorer as scorer_module
from limbeck.serve.limits import Asked
from limbeck.serve.scorer import LIKELY, Scorer
from limbeck.teachers.remote import RemoteTeacher
from tests import tiny
from tests.serve.test_app import TEXTS, V, truth
from tests.serve.test_clients import IDS, connected

ROUNDED: list[HiddenDtype] = ["bfloat16", "int8"]
WIDE: dict[str, Any] = {"url": "http://server", "head": "here", "max_rescale_error": 5.0}


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return tiny.fresh("llama")


def log_q(lm: CausalLM, states: torch.Tensor, temperature: float) -> np.ndarray:
    return torch.log_softmax(lm.head().logits(states) / temperature, dim=-1).numpy()


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("temperature", [0.5, 1.3])
async def test_the_errors_are_those_of_the_states_that_arrive(
    lm: CausalLM, dtype: HiddenDtype, temperature: float
) -> None:
    async with connected(lm, LimbeckTeacherConfig(**WIDE, hidden_dtype=dtype)) as client:
        proof = await prove_remote(client, TEXTS, IDS, temperature, lm.tokenizer, lm.head(), "full")
        assert proof.method == "hidden"
        answers = await RemoteTeacher(client, proof).score([request_of(t, 4, temperature, "full") for t in TEXTS])
    for scores, ids in zip(answers, TEXTS, strict=True):
        assert isinstance(scores, HiddenScores)
        assert scores.errors is not None
        assert scores.valid_mask is not None
        exact, sampled = truth(lm, ids, temperature)[3:], np.array(ids[4:])
        difference = np.abs(log_q(lm, scores.states.fetch(), temperature) - exact)
        likely = np.take_along_axis(difference, np.argsort(-exact, axis=1)[:, :LIKELY], axis=1).max(axis=1)
        expected = np.maximum(likely, difference[np.arange(len(sampled)), sampled])
        np.testing.assert_allclose(scores.errors, expected, atol=1e-4)
        assert scores.error_bound == scores.errors.max() > 1e-3  # it was rounded


async def test_positions_are_chosen_by_their_prefix_alone(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prefix with every token as the sampled one: the errors differ, and what is masked does not."""
    monkeypatch.setattr(scorer_module, "LIKELY", 3)  # so that some sampled tokens are worse than the likely ones
    prefix = TEXTS[3]
    section = LimbeckTeacherConfig(**WIDE | {"max_rescale_error": 1e9}, hidden_dtype="int8")
    asked = [request_of((*prefix, token), len(prefix), 0.7, "full") for token in range(V)]
    async with connected(lm, section) as client:
        proof = await prove_remote(client, TEXTS, IDS, 0.7, lm.tokenizer, lm.head(), "full")
        replies = [await client.ask(request, acknowledges=True) for request in asked]
        errors = np.array([reply.errors for reply in replies])
        (limit,) = {float(reply.prefix_errors[0]) for reply in replies if reply.prefix_errors is not None}
        assert errors.max() > limit == errors.min()
        for edge, expected in ((0.999, False), (1.001, True)):
            client.section = section.model_copy(update={"max_rescale_error": limit * edge, "max_rescale_dropped": 1.0})
            for scores in await RemoteTeacher(client, proof).score(asked):
                assert isinstance(scores, HiddenScores)
                assert scores.valid_mask is not None
                assert scores.valid_mask.tolist() == [expected]
                assert np.isfinite(scores.states.fetch().numpy()).all() == expected


async def test_too_many_uncertain_positions_stop_the_run_with_the_ways_out(lm: CausalLM) -> None:
    section = LimbeckTeacherConfig(url="http://server", head="here", hidden_dtype="int8", max_rescale_error=1e-6)
    async with connected(lm, section) as client:
        with pytest.raises(TeacherError, match=r"hidden_dtype = 'int8'.*'bfloat16' or 'float32'.*max_rescale_error"):
            await prove_remote(client, TEXTS, IDS, 0.7, lm.tokenizer, lm.head(), "full")


async def test_rounded_states_under_another_models_head_are_refused(lm: CausalLM, tmp_path: Path) -> None:
    """What the server measures excuses no more than it says."""
    other = load_model(ModelConfig(model=tiny.save(tmp_path, seed=1)), torch.device("cpu")).head()
    async with connected(lm, LimbeckTeacherConfig(**WIDE, hidden_dtype="int8")) as client:
        with pytest.raises(ContractError, match="another model"):
            await prove_remote(client, TEXTS, IDS, 0.7, head=other, support="full")


def test_a_model_that_computes_in_bfloat16_loses_nothing_by_it(tmp_path: Path) -> None:
    lm = load_model(ModelConfig(model=tiny.folder_of("llama"), dtype="bfloat16"), torch.device("cpu"))
    request = request_of(TEXTS[2], 4, 0.7, "full")
    plain, rounded, small = Scorer(lm).score([Asked(request, hidden_dtype=d) for d in ("float32", *ROUNDED)])
    assert rounded.rounded is not None
    assert small.rounded is not None
    np.testing.assert_array_equal(rounded.rounded.encoded.decode(), plain.hidden)
    assert not rounded.rounded.errors.any()
    assert small.rounded.errors.all()


@pytest.mark.parametrize(
    ("section", "options", "words"),
    [
        (SGLangTeacherConfig, {"head": "here", "hidden_dtype": "int8"}, "SGLang sends hidden states as JSON"),
        (LimbeckTeacherConfig, {"hidden_dtype": "bfloat16"}, r"no hidden states are asked for: set teacher\.head"),
        (VLLMTeacherConfig, {"hidden_dtype": "int8"}, "hidden_dtype"),
        (LimbeckTeacherConfig, {"head": "here", "hidden_dtype": "int4"}, "'float32', 'bfloat16' or 'int8'"),
    ],
)
def test_a_dtype_that_cannot_be_had_is_refused_by_name(section: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        section(url="http://server", **options)
