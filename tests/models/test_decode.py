"""Fast decode: the same tokens and log-probs as through transformers, for the models that are built like Llama."""

from __future__ import annotations

import copy
import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from limbeck.config.engine import HFEngineConfig
from limbeck.config.learner import LocalLearnerConfig, LoraConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.engines.hf import InProcessEngine
from limbeck.learners.local import LocalLearner
from limbeck.models import decode_numba, equivalence
from limbeck.models.causal_lm import CausalLM, precision
from limbeck.models.decode import Decoder, FastRows, TransformersRows
from limbeck.models.decode_numba import NumbaRows
from limbeck.models.equivalence import fast_decode
from limbeck.models.prefill import prefill
from limbeck.models.probe import Probe
from limbeck.records import Rollout, Sampling
from tests import tiny
from tests.sampling import sample_rollouts

VARIANTS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "llama": lambda: tiny.config_of("llama"),
    "llama-tied": lambda: tiny.config_of("llama-tied"),
    "llama-one-group": lambda: tiny.config_of("llama", num_key_value_heads=4),
    "llama-one-key-head": lambda: tiny.config_of("llama", num_key_value_heads=1),
    "llama-wide-heads": lambda: tiny.config_of("llama", head_dim=12),
    "llama-biases": lambda: tiny.config_of("llama", attention_bias=True, mlp_bias=True),
    "llama-scaled-rope": lambda: tiny.config_of(
        "llama",
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama-yarn": lambda: tiny.config_of(
        "llama",
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16,
        },
    ),
    "qwen2": lambda: tiny.config_of("qwen2"),
    "qwen3": lambda: tiny.config_of("qwen3"),
    "qwen3-wide-heads": lambda: tiny.config_of("qwen3", head_dim=20),
    "mistral": lambda: tiny.config_of("mistral", sliding_window=None),
}  # fmt: skip
SLOW = {
    "gpt2": "not built like Llama", "gemma2": "not built like Llama", "mistral": "sliding window of 5",
    "granite": "not computed like Llama", "cohere": "not built like Llama", "phi": "not built like Llama",
}  # fmt: skip
PROMPTS = tiny.prompts(9, 2, 14, 1, 9, 5)
STOPS = tuple(range(5, 25))


def model_of(variant: str) -> CausalLM:
    return CausalLM(variant, tiny.build(VARIANTS[variant]()), tiny.character_tokenizer(), tiny.VOCABULARY)


def exact_of(variant: str) -> CausalLM:
    return tiny.in_float64(model_of(variant))


@pytest.mark.parametrize("samples", [(1, 1, 1), (3, 3, 3), (1, 4, 2)], ids=str)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("kind", [FastRows, NumbaRows])
@pytest.mark.parametrize("variant", VARIANTS)
def test_states_are_those_of_the_model_while_rows_leave(
    variant: str, kind: type[FastRows] | type[NumbaRows], padded: bool, samples: tuple[int, ...]
) -> None:
    """float64, 1e-10: six tokens, with rows, and then whole prompts, leaving on the way."""
    lm, steps = exact_of(variant), 6
    parts = fast_decode(lm).parts
    assert parts is not None
    prompts = [prompt.token_ids for prompt in (tiny.prompts(9, 2, 6) if padded else tiny.prompts(5, 5, 5))]
    owner = torch.tensor([p for p, count in enumerate(samples) for _ in range(count)])
    generator = torch.Generator().manual_seed(3)
    with torch.inference_mode():
        (first, fast), (other_first, plain) = (
            decoder.start(prompts, owner, steps) for decoder in (Decoder(lm, parts, kind), Decoder(lm))
        )
        assert isinstance(plain, TransformersRows)
        assert_close(first, other_first, atol=1e-10, rtol=0)
        rows = len(owner)
        for step in range(steps):
            token_B = torch.randint(5, tiny.VOCABULARY, (rows,), generator=generator)
            one, other = fast.forward(token_B), plain.forward(token_B)
            assert_close(one, other, atol=1e-10, rtol=0)
            if step % 2 and rows > 1:
                kept = torch.arange(rows)[1 if step == 1 else 0 :: 1 if step == 1 else 2]
                fast.keep(kept)
                plain.keep(kept)
                rows = len(kept)


def test_numba_leaves_torchs_threads_and_the_environment_as_they_are() -> None:
    """In a process of its own, in which numba has not started: it would set torch's threads to all cores."""
    program = """
import os, torch
torch.set_num_threads(1)
from limbeck.config.engine import HFEngineConfig
from limbeck.engines.hf import InProcessEngine
from limbeck.models.decode_numba import NumbaRows
from tests import tiny
before = dict(os.environ)
assert InProcessEngine(tiny.fresh("llama"), HFEngineConfig()).decoder.rows_of is NumbaRows
print(torch.get_num_threads(), dict(os.environ) == before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
async def test_the_same_samples_for_the_same_seeds(
    variant: str, numba: bool, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, sampling = model_of(variant), Sampling(0.9, 14, stop_ids=STOPS, seed=3)
    monkeypatch.setattr(equivalence, "find_spec", lambda name: numba or None)
    engine = InProcessEngine(lm, HFEngineConfig(max_rows=11))
    assert engine.decoder.rows_of is (NumbaRows if numba else FastRows)
    fast = await sample_rollouts(engine, PROMPTS, sampling, samples)
    engine.decoder = Decoder(lm)
    plain = await sample_rollouts(engine, PROMPTS, sampling, samples)
    for one, other in zip(fast, plain, strict=True):
        assert isinstance(one, Rollout)
        assert isinstance(other, Rollout)
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert_close(one.logprobs, other.logprobs, atol=1e-4, rtol=0)
    assert len({len(item.token_ids) for item in fast if isinstance(item, Rollout)}) > 2


@pytest.mark.parametrize("family", SLOW)
async def test_models_it_cannot_read_are_named_and_decoded_by_transformers(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny.fresh(family)
    assert SLOW[family] in str(fast_decode(lm).why)
    with caplog.at_level(logging.INFO, logger="limbeck"):
        engine = InProcessEngine(lm, HFEngineConfig())
    assert engine.decoder.parts is None
    assert SLOW[family] in str(engine.decoder.why)
    assert SLOW[family] in caplog.text


@pytest.mark.parametrize("family", ["gpt2", "mistral", "granite"])
def test_long_prompts_of_several_lengths_are_prefilled_without_a_mask(family: str) -> None:
    """float64: as together under a mask, cache and states, though each length goes by itself."""
    lm = tiny.exact(family)
    prompts = [list(range(5, 5 + length)) for length in (9, 3, 9, 1)]
    with torch.inference_mode():
        together, apart = (prefill(lm, prompts, mask_places=places) for places in (10**9, 0))
        assert_close(apart.hidden_Pd, together.hidden_Pd, atol=1e-10, rtol=0)
        which, tokens = torch.tensor([0, 0, 1, 2, 3]), torch.tensor([7, 8, 9, 10, 11])
        rows = [TransformersRows(lm, start, which, 2) for start in (together, apart)]
        for _ in range(2):
            one, other = (row.forward(tokens) for row in rows)
            assert_close(one, other, atol=1e-10, rtol=0)


def test_what_numba_does_otherwise_is_not_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lm = tiny.fresh("llama")
    assert fast_decode(lm).rows_of is NumbaRows
    plain = decode_numba.rms_norm

    def other_norm(x_dB: Any, weight_d: Any, eps: float, out_dB: Any) -> None:
        plain(x_dB, 1.01 * weight_d, eps, out_dB)

    monkeypatch.setattr(decode_numba, "rms_norm", other_norm)
    assert fast_decode(lm).rows_of is FastRows
    assert "decodes without numba: log-probs differ by" in caplog.text


def test_without_numba_the_reader_is_told_how_to_be_faster(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(equivalence, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="limbeck"):
        assert fast_decode(tiny.fresh("llama")).rows_of is FastRows
    assert "pip install 'limbeck[cpu]'" in caplog.text


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_in_bfloat16_rows_are_as_near_to_the_truth_as_transformers_is(
    autocast: torch.dtype | None, variant: str
) -> None:
    lm = model_of(variant)
    if autocast is None:
        for parameter in lm.model.parameters():
            parameter.data = parameter.data.bfloat16()
    decoder, probe = fast_decode(lm, autocast), Probe.of(lm)
    assert probe is not None
    assert (decoder.rows_of, decoder.narrow) == (FastRows, autocast)
    with torch.inference_mode():
        found = [probe.decode(decoder, once) for once in (False, True)]
        with precision(lm, autocast):
            theirs = [probe.decode(Decoder(lm), once)[1] for once in (False, True)]
        true_Md = probe.of_rows(tiny.in_float64(lm).hidden(probe.rows_BL, probe.rows_positions_BL))
    for (read_K, ours_Kd), theirs_Kd in zip(found, theirs, strict=True):
        assert (ours_Kd - true_Md[read_K]).norm() < 1.5 * (theirs_Kd - true_Md[read_K]).norm()


async def test_adapters_are_decoded_by_transformers() -> None:
    pytest.importorskip("peft")
    lm = tiny.fresh("llama")
    LocalLearner(lm, LocalLearnerConfig(lora=LoraConfig(rank=2)), ReverseKLConfig(), 1, 0)
    assert "q_proj is a" in str(InProcessEngine(lm, HFEngineConfig()).decoder.why)


def spoilt() -> list[tuple[str, Callable[[CausalLM, pytest.MonkeyPatch], None]]]:
    """Ways in which a model that looks like Llama is not."""

    def scaled_embedding(lm: CausalLM, patch: pytest.MonkeyPatch) -> None:
        lm.model.base_model.embed_tokens.register_forward_hook(lambda module, args, out: 1.0 * out)
        lm.model.base_model.layers[0].register_forward_pre_hook(lambda module, args: (2.0 * args[0], *args[1:]))

    def other_norm(lm: CausalLM, patch: pytest.MonkeyPatch) -> None:
        norm = lm.model.base_model.layers[1].input_layernorm
        patch.setattr(norm, "forward", lambda x: torch.nn.functional.rms_norm(x, x.shape[-1:], norm.weight + 1))

    def residual(lm: CausalLM, patch: pytest.MonkeyPatch) -> None:
        lm.model.base_model.layers[1].mlp.register_forward_hook(lambda module, args, out: 0.5 * out)

    return [("embedding", scaled_embedding), ("norm", other_norm), ("residual", residual)]


@pytest.mark.parametrize(("name", "spoil"), spoilt(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_model_that_only_looks_like_llama_is_told_apart(
    name: str, spoil: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny.fresh("llama")
    spoil(lm, monkeypatch)
    assert "not computed like Llama" in str(fast_decode(lm).why)


def test_a_model_whose_parts_do_not_fit_is_told_apart() -> None:
    """StableLM has the same names, and rotates a quarter of each head."""
    config = transformers.StableLmConfig(**tiny.GATED, vocab_size=tiny.VOCABULARY, max_position_embeddings=64)
    lm = CausalLM("stablelm", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)
    assert "StableLmForCausalLM is not" in str(fast_decode(lm).why)


def test_weights_that_are_not_finite_are_not_decoded_fast() -> None:
    lm = tiny.fresh("llama")
    with torch.no_grad():
        lm.model.base_model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    assert fast_decode(lm).why is not None


async def test_an_update_in_place_is_seen_at_once() -> None:
    lm = tiny.fresh("llama")
    engine, sampling = InProcessEngine(lm, HFEngineConfig()), Sampling(1.0, 8)
    before = [
        item.token_ids for item in await sample_rollouts(engine, PROMPTS, sampling, 2) if isinstance(item, Rollout)
    ]
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.1)
    after = await sample_rollouts(engine, PROMPTS, sampling, 2)
    fresh = await sample_rollouts(InProcessEngine(copy.deepcopy(lm), HFEngineConfig()), PROMPTS, sampling, 2)
    for one, other in zip(after, fresh, strict=True):
        assert isinstance(one, Rollout)
        assert isinstance(other, Rollout)
        assert one.token_ids.tolist() == other.token_ids.tolist()
    changed = [item.token_ids for item in after if isinstance(item, Rollout)]
    assert any(not np.array_equal(a, b) for a, b in itertools.zip_longest(before, changed))


async def test_a_prompts_keys_are_kept_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows hold their own tokens only: 4 prompts of 9 tokens, whatever the samples."""
    monkeypatch.setattr(equivalence, "find_spec", lambda name: None)
    seen: list[tuple[Any, ...]] = []
    attend = FastRows._attend

    def watched(self: FastRows, number: int, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        seen.append((tuple(keys.shape), tuple(self.prompts[number][0].shape)))
        return attend(self, number, query, keys, values, scaling)

    engine = InProcessEngine(tiny.lm_of("llama"), HFEngineConfig())
    monkeypatch.setattr(FastRows, "_attend", watched)
    await sample_rollouts(engine, tiny.prompts(9, 9, 9, 9), Sampling(1.0, 4), 8)
    assert [rows for rows, _ in seen[::2]] == [(32, 2, t, 8) for t in (1, 2, 3)]
    assert {prompts for _, prompts in seen} == {(4, 2, 9, 8)}
