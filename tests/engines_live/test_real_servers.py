"""Real SGLang and vLLM as teachers: found out, rescaled within the certificate, baked to the last digits.

    make test-engines

One server at a time; everything asked of it while it runs stands in one test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck import api
from limbeck.config import parse_recipe
from limbeck.config_section import ModelSection
from limbeck.config_teachers import SGLangTeacher, VLLMTeacher
from limbeck.models import SHIPPED, load_model
from limbeck.records import TopKScores
from limbeck.teachers.connect import remote_teacher
from limbeck.teachers.contract import continuations, probe_rollout
from limbeck.teachers.proof import prove_remote
from limbeck.temperature.bake import bake

from .servers import python_of, running

pytestmark = pytest.mark.engines

SECTIONS = {"sglang": SGLangTeacher, "vllm": VLLMTeacher}
MODEL = SHIPPED / "teacher"  # a head_dim of 32: vLLM's CPU attention takes nothing smaller
V = 99


@pytest.fixture(params=["sglang", "vllm"])
def kind(request: pytest.FixtureRequest) -> str:
    if not python_of(request.param).exists():
        pytest.fail(f"no {request.param} in {python_of(request.param).parents[1]}: run `make test-engines`")
    return str(request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped teacher in float32, as engines want it."""
    folder = tmp_path_factory.mktemp("plain")
    lm = load_model(ModelSection(model=str(MODEL)), torch.device("cpu"))
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


TEXTS = [tuple(int(i) for i in np.random.default_rng(n).integers(4, V, 16 + 4 * n)) for n in range(6)]


async def scored(kind: str, url: str, temperature: float, **options: Any) -> tuple[str, list[TopKScores]]:
    """The method that proved itself, and the scores of TEXTS after four tokens of prompt."""
    section = SECTIONS[kind](url=url, top_logprobs=60, max_rescale_dropped=0.5, **options)
    teacher = remote_teacher("t", section, V, V, 5)
    await prove_remote(teacher, TEXTS, continuations(TEXTS[-1], V), temperature)
    marked = await teacher.score([probe_rollout(ids[:4], ids[4:], temperature) for ids in TEXTS])
    await teacher.close()
    return teacher.method, [m for m in marked if isinstance(m, TopKScores)]


def truth(model: Path, temperature: float) -> list[np.ndarray]:
    lm = load_model(ModelSection(model=str(model)), torch.device("cpu"))
    with torch.inference_mode():
        rows = [lm.model(torch.tensor([ids])).logits[0, 3:-1].double() for ids in TEXTS]
    return [torch.log_softmax(row / temperature, dim=-1).numpy() for row in rows]


def worst(marked: list[TopKScores], rows: list[np.ndarray], slack: float) -> float:
    """Largest error, after each value's own certificate and the engine's `slack` are taken off."""
    over = [-1.0]
    for scores, row, ids in zip(marked, rows, TEXTS, strict=True):
        known = np.ones(len(row), bool) if scores.known is None else scores.known
        allowed = slack + (np.zeros(len(row)) if scores.errors is None else scores.errors)
        apart = np.abs(scores.logprobs_of_sampled - row[np.arange(len(row)), ids[4:]])
        tops = np.abs(scores.logprobs - np.take_along_axis(row, scores.ids, axis=1)).max(axis=1)
        over.append(float((np.maximum(apart, tops) - allowed)[known].max(initial=-1.0)))
    return max(over)


async def test_a_stock_server_is_found_out_and_rescaled(kind: str, plain: Path, tmp_path: Path) -> None:
    with running(kind, plain, tmp_path / "log") as url:
        for temperature in (0.7, 1.3):
            method, marked = await scored(kind, url, temperature)
            assert method == "rescale"
            # An engine's float32 is not transformers': its own log-probs are up to 5e-5 nats away.
            assert worst(marked, truth(plain, temperature), 2e-4) <= 0
        method, marked = await scored(kind, url, 1.0)
        assert method == "plain"
        assert worst(marked, truth(plain, 1.0), 2e-4) <= 0
        result = api.train(recipe(kind, url, tmp_path))
    assert len(result.steps) == 3
    assert all(line["teacher/error_bound/max"] <= 0.02 for line in result.steps)


async def test_a_baked_checkpoint_is_exact(kind: str, plain: Path, tmp_path: Path) -> None:
    bake(str(plain), 0.7, tmp_path / "baked")
    with running(kind, tmp_path / "baked", tmp_path / "log") as url:
        method, marked = await scored(kind, url, 0.7, baked=str(tmp_path / "baked"))
        assert method == "baked"
        assert worst(marked, truth(plain, 0.7), 1e-4) <= 0


def recipe(kind: str, url: str, folder: Path) -> Any:
    return parse_recipe(
        {
            "output": str(folder), "steps": 3, "student": {"model": "demo:student"},
            "teacher": {"kind": kind, "url": url, "vocabulary": V, "top_logprobs": 60},
            "task": {"kind": "arithmetic", "train": 64, "held_out": 8},
            "rollout": {"temperature": 0.7, "max_tokens": 24, "prompts_per_step": 8},
            "eval": {"prompts": 4},
        }
    )  # fmt: skip
