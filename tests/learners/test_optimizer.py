"""A student in bfloat16: float32 masters, small learning rates, micro-batches, and a resume to the bit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LocalLearnerConfig, LoraConfig
from limbeck.learners.local import LocalLearner
from limbeck.learners.optimizer import MASTER, MasterAdamW, make_optimizer
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from tests.helpers import learner_of, random_samples, tiny_lm

LENGTHS = [5, 1, 9, 3]
SECTION = LocalLearnerConfig(lr=1e-3, weight_decay=0.1)


def narrow_lm(seed: int = 1) -> CausalLM:
    """As it would be loaded: rotary frequencies stay in float32."""
    lm = tiny_lm(seed)
    for parameter in lm.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return lm


def learner(lm: CausalLM, **section: object) -> LocalLearner:
    return learner_of(lm, tiny_lm(2), **{"lr": 1e-2, **section})  # type: ignore[arg-type]


def update(one: LocalLearner, steps: int) -> LocalLearner:
    for _ in range(steps):
        asyncio.run(one.update(random_samples(tiny_lm(2), LENGTHS)))
    return one


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=generator).bfloat16().to(dtype)) for s in ((4, 3), (5,))]


def test_masters_are_updated_as_float32_weights_are_and_weights_are_their_rounding() -> None:
    narrow, wide = parameters(torch.bfloat16), parameters(torch.float32)
    ours, theirs = make_optimizer(narrow, SECTION), make_optimizer(wide, SECTION)
    assert isinstance(theirs, torch.optim.AdamW)
    assert not theirs.narrow
    for step in range(4):
        for one, other in zip(narrow, wide, strict=True):
            other.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step)).bfloat16().float()
            one.grad = other.grad.bfloat16()
        ours.collect()
        for optimizer in (ours, theirs):
            torch.nn.utils.clip_grad_norm_(optimizer.targets(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
        for one, other in zip(narrow, wide, strict=True):
            assert torch.equal(ours.state[one][MASTER], other)
            assert torch.equal(one, other.bfloat16())
            assert ours.state[one]["exp_avg"].dtype == torch.float32
            assert one.grad is None


def test_updates_far_below_a_weights_precision_add_up() -> None:
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = MasterAdamW([{"params": [weight]}], lr=1e-5, betas=(0.9, 0.95))
    for _ in range(500):  # each a hundredth of what bfloat16 tells apart below 1
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
        optimizer.step()
        optimizer.zero_grad()
    assert (weight - 0.995).abs().max() < 2e-3


def test_gradients_of_many_micro_batches_are_summed_in_float32() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    optimizer = make_optimizer([weight], SECTION)
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.collect()
    (target,) = optimizer.targets()
    assert target.grad is not None
    assert target.grad.tolist() == [1000.0] * 3
    optimizer.zero_grad()
    assert target.grad is None


def test_a_weight_without_a_gradient_stays() -> None:
    narrow = parameters(torch.bfloat16)
    optimizer = make_optimizer(narrow, SECTION)
    narrow[0].grad = torch.ones_like(narrow[0])
    optimizer.collect()
    optimizer.step()
    assert torch.equal(narrow[1], parameters(torch.bfloat16)[1])
    assert not torch.equal(narrow[0], parameters(torch.bfloat16)[0])


def test_it_learns_at_a_rate_that_moves_no_weight_in_one_step() -> None:
    lm, teacher = narrow_lm(), tiny_lm(2)
    samples = random_samples(teacher, LENGTHS)
    one = learner_of(lm, teacher, lr=1e-4)
    before = asyncio.run(one.measure(samples)).means["reverse_kl/exact"].value
    for _ in range(40):
        asyncio.run(one.update(samples))
    assert asyncio.run(one.measure(samples)).means["reverse_kl/exact"].value < 0.99 * before
    assert {p.dtype for p in lm.model.parameters()} == {torch.bfloat16}


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path: Path) -> None:
    straight = learner(narrow_lm(), lr=1e-4)
    update(straight, 2).save(tmp_path)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    section = ModelConfig(model=str(tmp_path / "model"), dtype="bfloat16")
    resumed = learner(load_model(section, torch.device("cpu")), lr=1e-4)
    resumed.restore(tmp_path)
    update(straight, 2)
    update(resumed, 2)
    for name, parameter in straight.parameters.items():
        other = resumed.parameters[name]
        assert torch.equal(parameter, other), name
        assert torch.equal(straight.optimizer.state[parameter][MASTER], resumed.optimizer.state[other][MASTER]), name


def test_adapters_of_a_bfloat16_base_are_float32() -> None:
    pytest.importorskip("peft")
    lm = narrow_lm()
    base = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    one = update(learner(lm, lora=LoraConfig(rank=2)), 2)
    assert {p.dtype for p in one.parameters.values()} == {torch.float32}
    assert not one.optimizer.narrow
    assert any(p.abs().max() > 0 for name, p in one.parameters.items() if "lora_B" in name)
    frozen = [p for p in lm.model.parameters() if not p.requires_grad]
    assert len(frozen) == len(base)
    assert all(torch.equal(p, before) for p, before in zip(frozen, base.values(), strict=True))
