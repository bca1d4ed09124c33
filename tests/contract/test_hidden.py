"""A server that sends hidden states is proven with the head that is here; a baked folder is known at every door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.config.teacher import SGLangTeacherConfig
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.contract.bake_probe import ProbeFile
from limbeck.contract.natural import natural_temperature_of, refuse_baked
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError, ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.records import HiddenScores, ScoreRequest, request_of
from limbeck.teachers.client import RemoteClient
from limbeck.teachers.local import LocalTeacher
from limbeck.teachers.remote import Proof, RemoteTeacher
from limbeck.wire.http import Pool, PoolSettings
from limbeck.wire.score import Reply, WireError, wants_states
from tests import tiny

V = tiny.VOCABULARY
TEXTS = [prompt.token_ids for prompt in tiny.prompts(9, 12)]


class ModelDialect:
    """A server that holds `lm`, scores at temperature 1 and sends hidden states where they are wanted."""

    kind, acknowledges = "model", False

    def __init__(self, lm: CausalLM, name: str = "a model") -> None:
        self.teacher, self.name = LocalTeacher("server", lm), name

    async def ask(self, pool: Any, request: ScoreRequest, url: str | None = None, *, acknowledges: bool) -> Reply:
        if len(request.token_ids) > tiny.CONTEXT:
            raise WireError("refused", "answered 400: too long")
        (scores,) = await self.teacher.score([request])
        assert isinstance(scores, HiddenScores)
        if wants_states(request):
            return Reply(np.zeros(0, np.float32), hidden=scores.states.fetch().numpy())
        at_one = request_of(request.token_ids, request.start, 1.0)
        logprobs_S = logprobs_of_sampled(scores, at_one, self.teacher.heads).astype(np.float32)
        tops = torch.log_softmax(self.teacher.head.logits(scores.states.fetch()), -1).topk(20)
        return Reply(logprobs_S, tops.indices.numpy(), tops.values.numpy())

    async def identity(self, pool: Any, url: str) -> str:
        return self.name

    async def tokenize(self, pool: Any, text: str) -> list[int]:
        raise NotImplementedError


async def prove(served: CausalLM, here: str, name: str = "a model", **options: Any) -> Proof:
    section = SGLangTeacherConfig(url="http://server", head=here, **options)
    client = RemoteClient("t", section, ModelDialect(served, name), Pool(section.urls, PoolSettings()), V, V)
    head = load_model(ModelConfig(model=here), torch.device("cpu")).head().detach()
    return await prove_remote(client, TEXTS, continuations(TEXTS[-1], V), 0.7, head=head)


def baked(folder: Path, temperature: Any = 0.7) -> str:
    """A folder whose config says that it was baked; its weights are the plain ones."""
    path = tiny.save(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "limbeck_temperature": temperature}))
    return path


async def test_states_under_the_head_that_is_here_are_the_servers_own_answer() -> None:
    proof = await prove(tiny.fresh(), tiny.folder_of("llama"))
    assert proof.method == "hidden"
    (fingerprint,) = proof.heads
    assert fingerprint == LocalTeacher("t", tiny.fresh()).fingerprint
    assert proof.baseline is not None
    assert wants_states(proof.baseline.request)


async def test_the_states_of_a_proven_server_are_those_of_the_model() -> None:
    section = SGLangTeacherConfig(url="http://server")
    client = RemoteClient("t", section, ModelDialect(tiny.fresh()), Pool(section.urls, PoolSettings()), V, V)
    local = LocalTeacher("t", tiny.fresh())
    teacher = RemoteTeacher(client, Proof("hidden", local.info, heads=local.heads))
    request = request_of(TEXTS[0], 3, 0.7)  # whatever is asked for, states are more
    (theirs,), (ours,) = await teacher.score([request]), await local.score([request])
    assert isinstance(theirs, HiddenScores)
    assert isinstance(ours, HiddenScores)
    assert (theirs.head, theirs.natural_temperature, theirs.states.shape) == (ours.head, 1.0, ours.states.shape)
    torch.testing.assert_close(theirs.states.fetch(), ours.states.fetch())


async def test_the_head_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="holds another model"):
        await prove(tiny.fresh(), tiny.save(tmp_path / "other", seed=1))


async def test_a_baked_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"teacher\.head = .* was baked for temperature 0\.7"):
        await prove(tiny.fresh(), baked(tmp_path / "baked"))


async def test_a_server_that_holds_a_baked_folder_is_refused_where_that_is_known(tmp_path: Path) -> None:
    """Its states times the plain head are its own answer: the comparison alone would pass it."""
    ProbeFile(0.7, "m", V, ("norm",), {}, []).write(tmp_path)
    with pytest.raises(ContractError, match=r"holds a checkpoint baked for temperature 0\.7"):
        await prove(tiny.fresh(), tiny.folder_of("llama"), baked=str(tmp_path))


@pytest.mark.parametrize("temperature_method", ["auto", "native", "rescale"])
async def test_a_server_of_a_baked_folder_is_known_by_the_folders_config(
    tmp_path: Path, temperature_method: str
) -> None:
    """Also where the probe file was not copied with it."""
    name = f"m {baked(tmp_path / 'baked')}"
    with pytest.raises(ContractError, match=r"holds a checkpoint baked for temperature 0\.7"):
        await prove(tiny.fresh(), tiny.folder_of("llama"), name, temperature_method=temperature_method)


def test_the_temperature_of_a_folder(tmp_path: Path) -> None:
    assert natural_temperature_of(tiny.folder_of("llama")) == 1.0
    assert natural_temperature_of("no-folder/on-the-hub") == 1.0
    assert natural_temperature_of(baked(tmp_path / "baked")) == 0.7
    for number, wrong in enumerate((0, -1, "0.7", True, None)):
        with pytest.raises(ModelError, match=r"limbeck_temperature is .*expected a finite number above 0"):
            natural_temperature_of(baked(tmp_path / str(number), wrong))


def test_a_baked_model_is_refused_with_the_way_out() -> None:
    refuse_baked("teacher.model", "m", 1.0)
    with pytest.raises(
        ContractError, match=r"teacher\.model = 'm' was baked for temperature 0\.5.*baked from"
    ) as caught:
        refuse_baked("teacher.model", "m", 0.5)
    assert caught.value.results[0].remedy
