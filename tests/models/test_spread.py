"""A model whose layers lie on several devices: here on stand-ins, as there is only one."""

from __future__ import annotations

import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.errors import ModelError
from limbeck.models import spread as module
from limbeck.models.loading import load_model
from limbeck.models.spread import devices_for, spread
from limbeck.records import request_of
from limbeck.teachers.local import LocalTeacher
from tests import tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "phi"])
async def test_it_scores_as_on_one_device(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In transformers' own pass, for the faster one does not know of devices; prompts are shared all the same."""
    moved = []
    real = module._moved
    monkeypatch.setattr(module, "_moved", lambda values, device: moved.append(device) or real(values, device))
    one, other = tiny.fresh(family), tiny.fresh(family)
    spread(other, [CPU, CPU])
    assert other.is_spread
    teachers = [LocalTeacher("t", lm) for lm in (one, other)]
    assert other.passes is None
    assert teachers[0].layout == teachers[1].layout
    moved.clear()
    requests = [request_of([5, 6, 7, *range(10, 10 + n)], 3, 0.7, "full", str(n)) for n in (3, 5, 4)]
    for ours, theirs in zip(await teachers[0].score(requests), await teachers[1].score(requests), strict=True):
        torch.testing.assert_close(ours.states.fetch(), theirs.states.fetch(), atol=2e-5, rtol=1e-5)
    assert len(moved) == 5  # args and kwargs of two layers, and what the last one gave
    assert all(name.startswith("cpu") for name in {str(p.device) for p in other.model.parameters()})


def test_each_device_has_as_many_layers_in_order() -> None:
    lm = tiny.fresh("llama")
    spread(lm, [CPU, torch.device("meta")])
    assert [next(block.parameters()).device.type for block in module.blocks_of(lm.model)] == ["cpu", "meta"]
    assert lm.device == CPU
    assert lm.head_layer().weight.device == CPU
    hidden_BLd = lm.model.model.layers[0](
        torch.randn(1, 3, 32),
        position_embeddings=lm.model.model.rotary_emb(torch.randn(1, 3, 32), torch.arange(3)[None]),
    )
    assert hidden_BLd.device == CPU


def test_too_few_devices_or_layers_are_refused() -> None:
    section = ModelConfig(model=tiny.folder_of("llama"))
    with pytest.raises(ModelError, match=r"devices = 2, but this process has 1 of kind 'cpu'.*teacher\.devices"):
        load_model(section, CPU, devices=2)
    with pytest.raises(ModelError, match="has 2 layers, too few for devices = 3"):
        spread(tiny.fresh("llama"), [CPU] * 3)
    assert devices_for("t", CPU, 1) == [CPU]
