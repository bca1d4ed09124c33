"""Real SGLang and vLLM as teachers: found out, rescaled within the certificate, baked to the last digits.

make test-engines
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck import api
from limbeck.config.base import ModelConfig
from limbeck.config.recipe import parse_recipe
from limbeck.config.teacher import SGLangTeacherConfig, VLLMTeacherConfig
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.contract.probes import continuations
from limbeck.contract.remote import prove_remote
from limbeck.errors import ContractError
from limbeck.models.loading import load_model
from limbeck.records import HiddenScores, TopKScores, request_of
from limbeck.teachers.connect import connect
from limbeck.teachers.remote import Proof, RemoteTeacher

from .conftest import on
from .servers import Server

pytestmark = pytest.mark.engines

SECTIONS = {"sglang": SGLangTeacherConfig, "vllm": VLLMTeacherConfig}
V = 99
TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(4, V, 16 + 4 * n)) for n in range(6)]
SLACK = 1e-4  # nats: an engine's float32 is not transformers'; both are up to 5e-5 away from float64
hot_and_cold = pytest.mark.parametrize("temperature", [0.7, 1.3])


async def scored(server: Server, temperature: float, **options: Any) -> tuple[Proof, list[TopKScores]]:
    """What was proven, and the scores of TEXTS after four tokens of prompt."""
    section = SECTIONS[server.kind](url=server.url, top_logprobs=90, **options)
    client = connect("t", section, V, V)
    try:
        proof = await prove_remote(client, TEXTS, continuations(TEXTS[-1], V), temperature, support=5)
        answers = await RemoteTeacher(client, proof).score([request_of(ids, 4, temperature, 5) for ids in TEXTS])
    finally:
        await client.close()
    scores = [answer for answer in answers if isinstance(answer, TopKScores)]
    assert len(scores) == len(TEXTS)
    assert {one.temperature for one in scores} == {temperature}
    return proof, scores


def truth(model: Path, temperature: float) -> list[np.ndarray]:
    """log_softmax(logits / T) of transformers' own forward pass: [S, V] for each text."""
    lm = load_model(ModelConfig(model=str(model)), torch.device("cpu"))
    with torch.inference_mode():
        rows = [lm.model(torch.tensor([ids])).logits[0, 3:-1].double() for ids in TEXTS]
    return [torch.log_softmax(row / temperature, dim=-1).numpy() for row in rows]


def worst(answers: list[TopKScores], rows: list[np.ndarray]) -> float:
    """Largest error in nats, after each value's own certificate is taken off."""
    over = [-1.0]
    for scores, row, ids in zip(answers, rows, TEXTS, strict=True):
        valid = np.ones(len(row), bool) if scores.valid_mask is None else scores.valid_mask
        assert valid.mean() > 0.8
        certified = np.zeros(len(row)) if scores.errors is None else scores.errors
        of_sampled = np.abs(scores.logprobs_of_sampled - row[np.arange(len(row)), ids[4:]])
        of_top = np.abs(scores.logprobs - np.take_along_axis(row, scores.ids, axis=1)).max(axis=1)
        over.append(float((np.maximum(of_sampled, of_top) - certified)[valid].max(initial=-1.0)))
    return max(over)


def three_steps(server: Server, folder: Path, temperature: float, **teacher: Any) -> api.TrainResult:
    return api.train(
        parse_recipe(
            {
                "output": str(folder), "steps": 3, "student": {"model": "demo:student"},
                "teacher": {"kind": server.kind, "url": server.url, "vocabulary": V, "top_logprobs": 90, **teacher},
                "task": {"kind": "arithmetic", "train": 64, "held_out": 8},
                "rollout": {"temperature": temperature, "max_tokens": 24, "prompts_per_step": 8},
                "eval": {"prompts": 4},
            }
        )
    )  # fmt: skip


stock = on("sglang teacher", "vllm teacher")


@stock
@hot_and_cold
async def test_a_stock_server_is_found_out_and_rescaled(
    server: Server, models: dict[str, Path], temperature: float
) -> None:
    proof, answers = await scored(server, temperature)
    (native,) = [result for result in proof.results if result.probe == "method native"]
    assert "did not acknowledge the scoring temperature" in native.measured
    assert proof.method == "rescale"
    assert worst(answers, truth(models["teacher"], temperature)) <= SLACK


@stock
async def test_at_temperature_1_a_stock_server_is_taken_as_it_is(server: Server, models: dict[str, Path]) -> None:
    proof, answers = await scored(server, 1.0)
    assert proof.method == "plain"
    assert worst(answers, truth(models["teacher"], 1.0)) <= SLACK


@stock
@hot_and_cold
def test_three_steps_by_a_stock_teacher(server: Server, tmp_path: Path, temperature: float) -> None:
    result = three_steps(server, tmp_path, temperature)
    assert len(result.steps) == 3
    assert all(0 < line["teacher/error_bound/max"] <= 0.02 for line in result.steps)
    assert "method rescale" in (result.folder / "contract.jsonl").read_text()


@on("sglang teacher states")
@hot_and_cold
async def test_hidden_states_give_the_whole_distribution(
    server: Server, models: dict[str, Path], temperature: float
) -> None:
    head = load_model(ModelConfig(model=str(models["teacher"])), torch.device("cpu")).head().detach()
    section = SGLangTeacherConfig(url=server.url, head=str(models["teacher"]))
    client = connect("t", section, V, V)
    proof = await prove_remote(client, TEXTS, continuations(TEXTS[-1], V), temperature, head=head, support="full")
    assert proof.method == "hidden"
    requests = [request_of(ids, 4, temperature, "full") for ids in TEXTS]
    answers = await RemoteTeacher(client, proof).score(requests)
    await client.close()
    for scores, request, row in zip(answers, requests, truth(models["teacher"], temperature), strict=True):
        assert isinstance(scores, HiddenScores)
        sampled = row[np.arange(len(row)), request.scored_ids]
        assert np.abs(logprobs_of_sampled(scores, request, proof.heads) - sampled).max() <= SLACK
        logits_SV = head.logits(scores.states.fetch()).double()
        assert np.abs(torch.log_softmax(logits_SV / temperature, dim=-1).numpy() - row).max() <= SLACK


def baked(temperature: float) -> pytest.MarkDecorator:
    return on(f"sglang baked-{temperature}", f"vllm baked-{temperature}")


class TestBaked:
    """A checkpoint of `limbeck bake` on a stock server."""

    async def exact(self, server: Server, models: dict[str, Path], temperature: float) -> None:
        folder = models[f"baked-{temperature}"]
        proof, answers = await scored(server, temperature, baked=str(folder))
        assert proof.method == "baked"
        assert worst(answers, truth(models["teacher"], temperature)) <= 1e-4

    async def refused_elsewhere(self, server: Server, models: dict[str, Path], temperature: float) -> None:
        with pytest.raises(ContractError, match="baked for temperature"):
            await scored(server, 1.0 + temperature, baked=str(models[f"baked-{temperature}"]))

    def trains(self, server: Server, models: dict[str, Path], temperature: float, folder: Path) -> None:
        result = three_steps(server, folder, temperature, baked=str(models[f"baked-{temperature}"]))
        assert len(result.steps) == 3
        lines = [json.loads(line) for line in (result.folder / "contract.jsonl").read_text().splitlines()]
        (measured,) = [line["measured"] for line in lines if line["probe"] == "method baked"]
        (most,) = re.findall(r"max (\S+) nats off", measured)
        assert float(most) <= 3e-4  # of probe texts far from what the model knows: log-probs down to -32 nats

    @baked(0.7)
    async def test_cold(self, server: Server, models: dict[str, Path]) -> None:
        await self.exact(server, models, 0.7)
        await self.refused_elsewhere(server, models, 0.7)

    @baked(0.7)
    def test_cold_training(self, server: Server, models: dict[str, Path], tmp_path: Path) -> None:
        self.trains(server, models, 0.7, tmp_path)

    @baked(1.3)
    async def test_hot(self, server: Server, models: dict[str, Path]) -> None:
        await self.exact(server, models, 1.3)

    @baked(1.3)
    def test_hot_training(self, server: Server, models: dict[str, Path], tmp_path: Path) -> None:
        self.trains(server, models, 1.3, tmp_path)
