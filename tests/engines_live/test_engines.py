"""Real SGLang and vLLM as engines: they sample with the learner's weights, at its temperature, or the run stops.

make test-engines
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck import api
from limbeck.config.base import ModelConfig
from limbeck.config.recipe import parse_recipe
from limbeck.engines.served import ServedEngine
from limbeck.engines.sglang import SGLangServer
from limbeck.engines.vllm import VLLMServer
from limbeck.engines.weights_folder import WeightsFolder
from limbeck.errors import EngineError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.protocols import Observer
from limbeck.records import Failure, Key, Sampled, SampleRequest, Sampling
from limbeck.wire.http import Pool, PoolSettings
from tests.engines.student import Student

from .conftest import on
from .servers import Server

pytestmark = pytest.mark.engines

V, END = 99, 1
TEXT = [int(i) for i in np.random.default_rng(5).integers(4, V, 60)]
PROMPTS = [np.array(TEXT[n : n + 4 + 2 * n]) for n in range(4)]
hot_and_cold = pytest.mark.parametrize("temperature", [0.7, 1.3])
every_kind = on("sglang student", "vllm untied", "vllm student processed")


def three_steps(
    server: Server, folder: Path, temperature: float, observers: Sequence[Observer] = (), **engine: Any
) -> api.TrainResult:
    return api.train(
        parse_recipe(
            {
                "output": str(folder), "steps": 3,
                "student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"},
                "task": {"kind": "arithmetic", "train": 64, "held_out": 8},
                "rollout": {
                    "temperature": temperature, "max_tokens": 24, "prompts_per_step": 8, "samples_per_prompt": 2,
                },
                "engine": {"kind": server.kind, "url": server.url, "retry_seconds": 900.0, **engine},
                "learner": {"lr": 1e-3},
                "eval": {"prompts": 4, "greedy": True},
            }
        ),
        observers=observers,
    )  # fmt: skip


def proofs(folder: Path) -> dict[str, str]:
    lines = (folder / "contract.jsonl").read_text().splitlines()
    return {line["probe"]: line["measured"] for line in map(json.loads, lines)}


def engine(server: Server, folder: Path, sampling: Sampling) -> ServedEngine:
    return ServedEngine(
        server=SGLangServer("disk") if server.kind == "sglang" else VLLMServer(),
        pool=Pool([server.url], PoolSettings(table="engine")),
        weights=WeightsFolder([folder / "weights"]), text=TEXT, sampling=sampling, vocabulary=V, tolerance=0.02,
    )  # fmt: skip


def student(models: dict[str, Path], moved: float = 0.0) -> CausalLM:
    lm = load_model(ModelConfig(model=str(models["student"])), torch.device("cpu"))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.add_(moved * parameter.std() * torch.randn_like(parameter))
    return lm


def requests(sampling: Sampling, samples: int = 1, top: int = 0) -> list[SampleRequest]:
    keys = [(Key(f"p{n}", sample=k), ids) for n, ids in enumerate(PROMPTS) for k in range(samples)]
    return [SampleRequest(key, ids, sampling, top) for key, ids in keys]


async def sample(one: ServedEngine, unit: Sequence[SampleRequest]) -> list[Sampled]:
    answers = await one.sample(unit)
    assert not [answer for answer in answers if isinstance(answer, Failure)]
    return [answer for answer in answers if isinstance(answer, Sampled)]


def of_next(lm: CausalLM, request: SampleRequest, answer: Sampled) -> np.ndarray:
    """[n, V] log_softmax(logits / T) before each sampled token, by transformers' own forward pass."""
    ids = np.concatenate([request.token_ids, answer.token_ids])
    with torch.inference_mode():
        logits = lm.model(torch.from_numpy(ids)[None]).logits[0, len(request.token_ids) - 1 : -1].double()
    return torch.log_softmax(logits / request.sampling.temperature, dim=-1).numpy()


def truth(lm: CausalLM, request: SampleRequest, answer: Sampled) -> np.ndarray:
    """[n] the same, of the sampled tokens."""
    rows = of_next(lm, request, answer)
    return rows[np.arange(len(rows)), answer.token_ids]


@every_kind
@hot_and_cold
def test_three_steps(server: Server, tmp_path: Path, temperature: float) -> None:
    result = three_steps(server, tmp_path, temperature)
    assert len(result.steps) == 3
    assert all(line["mismatch"] < 1e-3 for line in result.steps)
    found = proofs(result.folder)
    raw = server.kind == "vllm" and not server.options
    assert ("recomputed by the learner" in found["engine: log-probs"]) is raw
    assert not (result.folder / "weights").exists()


@on("sglang student")
def test_three_steps_with_weights_in_the_request(server: Server, tmp_path: Path) -> None:
    result = three_steps(server, tmp_path, 0.7, weights="tensors")
    assert all(line["mismatch"] < 1e-3 for line in result.steps)


@every_kind
@hot_and_cold
async def test_tokens_and_logprobs(server: Server, models: dict[str, Path], tmp_path: Path, temperature: float) -> None:
    """Of weights that are not those it was started with: complete responses, each with its stop token, log mu at T."""
    lm = student(models, moved=0.1)
    sampling = Sampling(temperature, 8, (END, 4, 5), seed=1)
    unit = requests(sampling, 8)
    one = engine(server, tmp_path, sampling)
    await one.load(Student(lm, 1).publish())
    answers = await sample(one, unit)
    for request, answer in zip(unit, answers, strict=True):
        ids = answer.token_ids
        assert answer.version == 1
        assert answer.finish == ("stop" if ids[-1] in sampling.stop_ids else "length")
        assert not np.isin(ids[:-1], sampling.stop_ids).any()
        assert len(ids) == sampling.max_tokens or answer.finish == "stop"
        np.testing.assert_allclose(answer.logprobs, truth(lm, request, answer), atol=1e-4)
    assert {a.finish for a in answers} == {"stop", "length"}
    assert len({tuple(a.token_ids) for a in answers}) > 16
    # Sampled at T: the mean of -log p_T(y) is the entropy at T, within five standard errors.
    difference, variance = _surprise(lm, unit, answers)
    assert abs(difference) < 5 * variance**0.5
    if server.kind == "vllm":  # its randomness is the request's
        again = await sample(one, unit[:2])
        assert [tuple(a.token_ids) for a in again] == [tuple(a.token_ids) for a in answers[:2]]
    await one.close()


@every_kind
async def test_top_tokens_are_the_students_whatever_was_sampled(
    server: Server, models: dict[str, Path], tmp_path: Path
) -> None:
    """The K most likely, and nothing else: vLLM adds the sampled token where it is none of them."""
    lm, hot = student(models), Sampling(2.0, 8, (END,), seed=3)
    one = engine(server, tmp_path, hot)
    await one.load(Student(lm).publish())
    unit, inside = requests(hot, 4, top=5), []
    for request, answer in zip(unit, await sample(one, unit), strict=True):
        rows = of_next(lm, request, answer)
        best = np.sort(rows, axis=1)[:, ::-1][:, :5]
        assert answer.top_ids is not None
        np.testing.assert_allclose(np.take_along_axis(rows, answer.top_ids, axis=1), best, atol=1e-4)
        inside += (answer.top_ids == answer.token_ids[:, None]).any(axis=1).tolist()
    assert set(inside) == {True, False}
    await one.close()


@every_kind
async def test_truncated_distributions_and_the_most_likely_answer(
    server: Server, models: dict[str, Path], tmp_path: Path
) -> None:
    lm = student(models)
    plain = Sampling(1.3, 12, (END,), seed=2)
    one = engine(server, tmp_path, plain)
    await one.load(Student(lm).publish())
    for sampling in (replace(plain, top_k=3), replace(plain, top_p=0.7), replace(plain, min_p=0.2)):
        unit = requests(sampling, 4)
        for request, answer in zip(unit, await sample(one, unit), strict=True):
            np.testing.assert_allclose(answer.logprobs, truth(lm, request, answer), atol=1e-4)  # of the whole one
            rank = (of_next(lm, request, answer) > truth(lm, request, answer)[:, None]).sum(axis=1)
            assert sampling.top_k == 0 or (rank < sampling.top_k).all()
    unit = requests(replace(plain, greedy=True))
    for request, answer in zip(unit, await sample(one, unit), strict=True):
        assert (of_next(lm, request, answer).argmax(axis=1) == answer.token_ids).all()
    await one.close()


@on("sglang student", "vllm student processed")
def test_a_server_that_is_killed_and_comes_back_gets_the_weights_again(server: Server, tmp_path: Path) -> None:
    def restart() -> None:
        server.stop()
        server.start()  # the run waits for it

    result = three_steps(server, tmp_path, 0.7, observers=[AtStep3(restart)])
    assert len(result.steps) == 3
    assert all(line["mismatch"] < 1e-3 for line in result.steps)


@on("vllm student processed")
def test_a_lost_output_head_is_noticed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this build makes of a folder as the learner writes it: old head, new body, and not a word."""
    monkeypatch.setattr("limbeck.engines.vllm.untie_head", lambda folder: False)
    with pytest.raises(EngineError, match=r"update \d but (does not hold them|did not change)"):
        three_steps(server, tmp_path, 0.7)


class AtStep3:
    """Does something as the third step's sampling begins."""

    def __init__(self, do: Callable[[], None]) -> None:
        self.do = do

    def phase(self, step: int, name: str) -> None:
        if (step, name) == (3, "sample"):
            self.do()

    def started(self, step: int, steps: int) -> None: ...

    def stepped(self, line: Any) -> None: ...

    def evaluated(self, line: Any) -> None: ...

    def closed(self) -> None: ...


def _surprise(lm: CausalLM, unit: Sequence[SampleRequest], answers: Sequence[Sampled]) -> tuple[float, float]:
    """Sum over sampled tokens of -log p_T(y) - H_T, which has mean 0 where y is drawn from p_T, and its variance."""
    total, variance = 0.0, 0.0
    for request, answer in zip(unit, answers, strict=True):
        logp = of_next(lm, request, answer)
        entropy = -(np.exp(logp) * logp).sum(axis=1)
        total += float((-logp[np.arange(len(logp)), answer.token_ids] - entropy).sum())
        variance += float(((np.exp(logp) * logp**2).sum(axis=1) - entropy**2).sum())
    return total, variance
