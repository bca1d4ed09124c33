"""What the proofs find: fast ways that are not the model's own, wherever in the context, and rows that see others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.testing import assert_close

from limbeck.learners.batch import request_for
from limbeck.models import reach
from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import (
    fast_decode,
    prove_packing,
    share_prompts,
    use_fused_forward,
)
from limbeck.models.layout import Layout, lay_out
from limbeck.records import Rollout
from tests import tiny

LONGROPE = {
    "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}


def lm_of(config: transformers.PretrainedConfig) -> CausalLM:
    return CausalLM("m", tiny.build(config), tiny.character_tokenizer(), tiny.VOCABULARY)


def phi3(**more: object) -> CausalLM:
    control = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    given = {"max_position_embeddings": 64, "original_max_position_embeddings": 16, "rope_parameters": LONGROPE, **more}
    return lm_of(transformers.Phi3Config(**tiny.GATED, vocab_size=tiny.VOCABULARY, **control, **given))


def test_the_context_ends_where_the_frequencies_of_a_batch_would_change() -> None:
    """Case 2: within it, a row's states are its own, and every fast way may be taken."""
    for lm in (phi3(), lm_of(tiny.config_of("llama", rope_parameters=dict(LONGROPE)))):
        assert lm.context == 16
        use_fused_forward(lm)
        rollouts = whole_context(lm, (15, 9, 12))
        assert_logprobs_of_each_alone(lm, rollouts, "padded" if share_prompts(lm) else "tree")


MINISTRAL = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16,
    "max_position_embeddings": 64, "llama_4_scaling_beta": 0.5, "beta_fast": 32.0, "beta_slow": 1.0,
}  # fmt: skip


def ministral(**more: Any) -> CausalLM:
    """Case 1: queries grow with the logarithm of the position, from `original_max_position_embeddings` on."""
    control = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "sliding_window": None}
    shape = {**tiny.GATED, "head_dim": 8, "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 64}
    return lm_of(transformers.Ministral3Config(**shape, **control, **{"rope_parameters": dict(MINISTRAL), **more}))


def phimoe(window: int | None) -> CausalLM:
    """Case 19: its window is in its masks only, not in its attention."""
    control = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": False}
    config = transformers.PhimoeConfig(
        **tiny.GATED, **control, vocab_size=tiny.VOCABULARY, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=window, max_position_embeddings=64, attention_bias=True, lm_head_bias=False,
    )  # fmt: skip
    return lm_of(config)


def ernie() -> CausalLM:
    """Case 22: its config has no `attention_dropout`."""
    shape = {**tiny.GATED, "head_dim": 8, "vocab_size": tiny.VOCABULARY, "max_position_embeddings": 64}
    return lm_of(transformers.Ernie4_5Config(**shape, bos_token_id=None, eos_token_id=1, pad_token_id=0))


def whole_context(lm: CausalLM, lengths: tuple[int, ...] = (63, 20, 41)) -> list[Rollout]:
    """Rollouts of one prompt of eight tokens, the longest as long as the context."""
    generator = torch.Generator().manual_seed(2)
    prompt, found = tiny.prompts(8)[0], []
    for number, length in enumerate(lengths):
        ids = torch.randint(5, tiny.VOCABULARY, (length - 8,), generator=generator).tolist()
        rollout = tiny.rollout([*prompt.token_ids, *ids], [0] * 8 + [1] * len(ids), name=f"r{number}")
        found.append(replace(rollout, prompt=prompt))
    return found


def assert_logprobs_of_each_alone(lm: CausalLM, rollouts: list[Rollout], layout: Layout) -> None:
    """Through whatever way the model takes now."""
    batch = lay_out([request_for(rollout) for rollout in rollouts], layout)
    with torch.inference_mode():
        hidden_Nd = lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree)
        logp_NV = torch.log_softmax(lm.head().logits(hidden_Nd), dim=-1)
    expected_NV = torch.cat([tiny.logprobs(lm.model, r.token_ids)[torch.as_tensor(r.trained)[1:]] for r in rollouts])
    assert_close(logp_NV.double(), expected_NV, atol=1e-3, rtol=0)


@pytest.mark.parametrize("build", [ministral, ernie, lambda: phimoe(30), lambda: phimoe(None)])
def test_every_position_of_the_context_is_the_models_own_whatever_way_is_taken(build: Callable[[], CausalLM]) -> None:
    lm = build()
    use_fused_forward(lm)
    layout: Layout = "padded" if share_prompts(lm) else "tree"
    assert_logprobs_of_each_alone(lm, whole_context(lm), layout)


@pytest.mark.parametrize("build", [ministral, ernie, lambda: phimoe(30)])
def test_every_decoded_position_is_the_models_own(build: Callable[[], CausalLM]) -> None:
    lm = build()
    (longest, *_), prefix = whole_context(lm), 12
    ids = torch.as_tensor(longest.token_ids)
    expected_LV = tiny.logprobs(lm.model, ids)
    with torch.inference_mode():
        hidden_Bd, rows = fast_decode(lm).start([ids[:prefix].tolist()], torch.tensor([0, 0]), 64)
        for place in range(prefix, len(ids)):
            logp_BV = torch.log_softmax(lm.head().logits(hidden_Bd), dim=-1)
            assert_close(logp_BV[1].double(), expected_LV[place - 1], atol=1e-3, rtol=0)
            hidden_Bd = rows.forward(ids[place].expand(2))


def test_queries_that_grow_beyond_the_first_positions_are_found() -> None:
    lm = ministral()
    assert "log-probs differ by" in str(use_fused_forward(lm))
    assert lm.passes is None
    assert "log-probs differ by" in str(fast_decode(lm).why)
    plain = ministral(rope_parameters={**MINISTRAL, "llama_4_scaling_beta": 0.0})
    assert use_fused_forward(plain) is None
    assert fast_decode(plain).why is None


def test_a_window_that_is_in_the_mask_only_is_found() -> None:
    assert "sliding window of 30" in str(share_prompts(phimoe(30)))
    assert share_prompts(phimoe(None)) is None
    assert share_prompts(phimoe(64)) is None, "a window of the whole context hides nothing"


def test_a_window_is_found_in_the_mask_whatever_the_config_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = phimoe(30)
    monkeypatch.setattr(reach, "text_config", lambda model: SimpleNamespace(_attn_implementation="sdpa"))
    assert "hides some of 64 tokens from the last" in str(share_prompts(lm))


def test_a_config_without_dropout_is_one_without_dropout() -> None:
    lm = ernie()
    assert not hasattr(lm.model.config, "attention_dropout")
    assert "not computed like Llama" in str(use_fused_forward(lm))  # it rotates neighbours, not halves


@pytest.mark.parametrize("scale", [2, 1.3])
@pytest.mark.parametrize("from_", [30, 60])
def test_what_a_model_does_from_some_position_on_is_found(from_: int, scale: float) -> None:
    """In the middle of the context, and at its very end only."""
    lm = tiny.fresh("llama")
    for layer in lm.model.base_model.layers:
        plain = layer.self_attn.forward

        def louder(*args: Any, plain: Any = plain, position_ids: Tensor, **given: Any) -> Any:
            out, weights = plain(*args, position_ids=position_ids, **given)
            return torch.where(position_ids[..., None] >= from_, scale * out, out), weights

        layer.self_attn.forward = louder
    assert "log-probs differ" in str(use_fused_forward(lm))
    assert "log-probs differ" in str(fast_decode(lm).why)
    assert share_prompts(tiny.fresh("llama")) is None


def test_packed_rows_are_proven_everywhere_too() -> None:
    for family in ("llama", "mistral", "gemma2"):
        prove_packing(tiny.fresh(family))


def test_the_proofs_leave_the_model_as_it_was() -> None:
    lm = tiny.fresh("llama")
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    lm.model.train()
    assert use_fused_forward(lm) is None
    assert fast_decode(lm).why is None
    assert lm.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in lm.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())
