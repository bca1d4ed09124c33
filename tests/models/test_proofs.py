"""Models that do not do what Limbeck takes them to do are refused, with what is wrong named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from limbeck.config.base import ModelConfig
from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.equivalence import prove_packing
from limbeck.models.loading import load_model
from limbeck.models.proofs import prove_decoding, prove_head
from tests import tiny


def load(folder: str | Path) -> CausalLM:
    return load_model(ModelConfig(model=str(folder)), torch.device("cpu"))


def refusal(folder: str | Path) -> str:
    """The one line with which a model is refused, which names it."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


TWISTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "multiplied": lambda logits: logits * 1.01,
    "soft-capped": lambda logits: 5 * torch.tanh(logits / 5),
    "biased": lambda logits: logits + torch.linspace(0, 0.01, logits.shape[-1]),
    "one token off": lambda logits: torch.cat([logits[..., :-1], logits[..., -1:] + 0.1], dim=-1),
    "not finite": lambda logits: logits * float("nan"),
}


def twist(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    plain = transformers.LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        output.logits = change(output.logits)
        return output

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)


@pytest.mark.parametrize("change", TWISTS)
def test_logits_that_are_not_a_plain_head_are_refused(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    twist(monkeypatch, TWISTS[change])
    message = refusal(tiny.folder_of("llama"))
    assert "LlamaForCausalLM" in message
    assert "nats" in message


def test_a_shift_of_all_logits_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    twist(monkeypatch, lambda logits: logits + 3.0)
    load(tiny.folder_of("llama"))


def test_a_soft_cap_that_the_config_does_not_have_is_refused() -> None:
    lm = tiny.fresh("gemma2")
    prove_head(lm)
    capless = replace(lm.head(), softcap=None)
    lm.head = lambda: capless  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="Gemma2ForCausalLM"):
        prove_head(lm)


@pytest.mark.parametrize("prove", [prove_head, prove_packing])
def test_a_proof_leaves_training_mode_alone(prove: Callable[[CausalLM], None]) -> None:
    lm = tiny.fresh("gpt2")
    for mode in (True, False):
        lm.model.train(mode)
        prove(lm)
        assert lm.model.training is mode
        assert lm.model.base_model.h[0].training is mode


def test_a_model_that_cannot_be_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("The size of tensor a (2) must match\nthe size of tensor b")

    monkeypatch.setattr(transformers.LlamaModel, "forward", broken)
    message = refusal(tiny.folder_of("llama"))
    assert "LlamaForCausalLM" in message
    assert "The size of tensor a (2) must match" in message


def test_a_model_whose_body_cannot_be_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CausalLM, "body", property(lambda lm: lm.model))
    message = refusal(tiny.folder_of("llama"))
    assert "LlamaForCausalLM" in message
    assert "last_hidden_state" in message


def test_a_model_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    """transformers has a causal class for each encoder, which is causal only if its config says so."""
    shape = {**tiny.SHAPE, "intermediate_size": 48, "vocab_size": tiny.VOCABULARY, "pad_token_id": 0}
    tiny.build(transformers.BertConfig(**shape, max_position_embeddings=64)).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    assert "not causal" in refusal(tmp_path)


@pytest.mark.parametrize("spoil", ["neighbours", "not finite", "raises"])
def test_a_model_whose_rows_depend_on_each_other_is_refused(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transformers.LlamaModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = plain(self, *args, **kwargs)
        if spoil == "raises":
            raise ValueError("needs a picture")
        state_BLd = output.last_hidden_state
        added = 0.1 * state_BLd.mean(dim=0, keepdim=True) * (len(state_BLd) > 1)
        output.last_hidden_state = state_BLd + (added if spoil == "neighbours" else float("nan"))
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    expected = {"neighbours": "another row beside it", "not finite": "nan nats", "raises": "needs a picture"}
    assert expected[spoil] in refusal(tiny.folder_of("llama"))


# Decoding, for whoever samples in this process


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_is_decoded_is_what_is_scored(family: str) -> None:
    lm = tiny.fresh(family)
    for mode in (True, False):
        lm.model.train(mode)
        prove_decoding(lm)
        assert lm.model.training is mode


def test_a_model_that_counts_places_for_positions_is_not_sampled_from(tmp_path: Path) -> None:
    """BART's decoder: a prompt beside a longer one is padded to the left, and would begin at a later position."""
    config = transformers.BartConfig(
        vocab_size=tiny.VOCABULARY, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
        encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48, max_position_embeddings=64, pad_token_id=0,
        bos_token_id=None, eos_token_id=1, decoder_start_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    tiny.build(config).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"BartForCausalLM.* nats off .*engine\.kind"):
        prove_decoding(load(tmp_path))


@pytest.mark.parametrize("spoil", ["raises", "off", "not finite"])
def test_a_model_whose_cache_fails_is_not_sampled_from(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.fresh("llama")
    plain = transformers.LlamaModel.forward

    def forward(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        output = plain(self, *args, past_key_values=past_key_values, **kwargs)
        if past_key_values is not None and spoil == "raises":
            raise ValueError("layer 0 has no such state")
        if past_key_values is not None:
            output.last_hidden_state = output.last_hidden_state * (1.1 if spoil == "off" else float("nan"))
        return output

    monkeypatch.setattr(transformers.LlamaModel, "forward", forward)
    with pytest.raises(ModelError, match="no such state" if spoil == "raises" else "nats off"):
        prove_decoding(lm)
    assert not lm.model.training
