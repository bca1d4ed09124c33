"""Models to serve, and one server at a time: tests of one server stand together and share it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.contract.bake import bake
from limbeck.engines.vllm import untie_head
from limbeck.models.loading import SHIPPED, load_model

from .servers import Server, python_of, running

OPTIONS = {"processed": ("--logprobs-mode", "processed_logprobs"), "states": ("--enable-return-hidden-states",)}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By name: the shipped teacher and student in float32, the teacher baked, the student untied.

    Their head_dim is 32: vLLM's CPU attention takes nothing smaller.
    """
    folder = tmp_path_factory.mktemp("models")
    for name in ("teacher", "student"):
        lm = load_model(ModelConfig(model=str(SHIPPED / name)), torch.device("cpu"))
        lm.model.save_pretrained(folder / name)
        lm.tokenizer.save_pretrained(folder / name)
    for temperature in (0.7, 1.3):
        bake(str(folder / "teacher"), temperature, folder / f"baked-{temperature}")
    shutil.copytree(folder / "student", folder / "untied")
    assert untie_head(folder / "untied")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A running server; its parameter is "KIND MODEL" or "KIND MODEL OPTION"."""
    kind, model, *options = request.param.split()
    if not python_of(kind).exists():
        pytest.fail(f"no {kind} in {python_of(kind).parents[2]}: run `make test-engines`")
    log = tmp_path_factory.mktemp("log") / f"{kind}.log"
    with running(kind, models[model], log, [word for name in options for word in OPTIONS[name]]) as one:
        yield one


def on(*servers: str) -> pytest.MarkDecorator:
    """Run a test on each of these servers."""
    return pytest.mark.parametrize("server", servers, indirect=True, scope="module")
