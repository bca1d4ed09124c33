"""On-policy, the student that trains is the student that sampled: whatever is random in training mode is off."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PretrainedConfig

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.records import Scored
from tests import tiny
from tests.helpers import dense_scores, learner_of, random_rollout

LORA = LoraConfig(rank=2, target_modules=r".*(q_proj|v_proj|c_attn|fc1|fc2)")
CONTROL = {"vocab_size": tiny.VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
MOE = {**tiny.GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": tiny.CONTEXT}
NOISY: dict[str, PretrainedConfig] = {
    "gpt2": transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **CONTROL),  # its default dropout
    "llama": tiny.config_of("llama", attention_dropout=0.3),
    "opt": transformers.OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=32, dropout=0.3, attention_dropout=0.2, layerdrop=0.5, **CONTROL,
    ),  # in functions of the layer's own, and whole layers left out
    "phimoe": transformers.PhimoeConfig(**MOE, **CONTROL, router_jitter_noise=0.3, input_jitter_noise=0.3),
    "mixtral": transformers.MixtralConfig(**MOE, **CONTROL, router_jitter_noise=0.3),
}  # fmt: skip


@pytest.fixture(params=NOISY)
def lm(request: pytest.FixtureRequest, tmp_path: Path) -> CausalLM:
    tiny.build(NOISY[request.param]).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    return load_model(ModelConfig(model=str(tmp_path)), torch.device("cpu"))


def own_samples(lm: CausalLM) -> list[Scored]:
    """Rollouts that the student itself scores as teacher, in evaluation mode."""
    lm.model.eval()
    rng = np.random.default_rng(0)
    rollouts = [random_rollout(rng, index, length) for index, length in enumerate([5, 1, 9, 3])]
    return [Scored(rollout, dense_scores(lm, rollout)) for rollout in rollouts]


@pytest.mark.parametrize("config", [{}, {"gradient_checkpointing": True}, {"lora": LORA}])
def test_a_student_that_is_its_own_teacher_has_no_kl_and_no_gradient(lm: CausalLM, config: dict[str, Any]) -> None:
    samples = own_samples(lm)
    learner = learner_of(lm, lm, lr=0.0 + 1e-9, **config)
    measured = asyncio.run(learner.measure(samples))
    for _ in range(2):
        report = asyncio.run(learner.update(samples))
        assert abs(report.means["reverse_kl/exact"].value or 0) < 1e-6
        assert abs(report.means["reverse_kl/sampled"].value or 0) < 1e-5
        assert report.maxima["grad_norm"] < 1e-4
    assert report.means["entropy/student"].value == pytest.approx(measured.means["entropy/student"].value, abs=1e-5)


def test_updates_draw_no_random_numbers(lm: CausalLM) -> None:
    samples = own_samples(lm)
    learner = learner_of(lm, lm)
    state = torch.get_rng_state()
    asyncio.run(learner.update(samples))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointed_layers_are_computed_again(family: str, checkpointing: bool) -> None:
    """Or the memory that it is for is not saved: transformers checkpoints in training mode alone."""
    lm = tiny.fresh(family)
    samples = own_samples(lm)
    learner = learner_of(lm, lm, gradient_checkpointing=checkpointing, layout="padded")
    lm.passes = None
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    block = next(module for module in lm.model.modules() if type(module).__name__.endswith("MLP"))
    block.register_forward_pre_hook(count)
    asyncio.run(learner.update(samples))
    assert calls == (2 if checkpointing else 1)
