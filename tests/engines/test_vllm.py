"""An untied copy is the same function, and trains and reloads as a model with a head of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from limbeck.engines.vllm import untie_head
from limbeck.errors import ModelError
from tests import tiny


@pytest.mark.parametrize("shards", [False, True])
def test_the_same_logits_from_a_head_of_its_own(shards: bool, tmp_path: Path) -> None:
    tied = tiny.lm_of("llama-tied")
    tied.model.save_pretrained(tmp_path / "tied", max_shard_size="20KB" if shards else "1GB")
    assert len(list((tmp_path / "tied").glob("*.safetensors"))) > (1 if shards else 0)
    (tmp_path / "tied").rename(tmp_path / "untied")
    assert untie_head(tmp_path / "untied")
    untied = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert not untied.config.tie_word_embeddings
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(untied(tokens).logits, tied.model(tokens).logits)
        untied.get_input_embeddings().weight.zero_()
    assert untied.get_output_embeddings().weight.abs().sum() > 0


def test_a_model_with_its_own_head_stays_as_it_is(tmp_path: Path) -> None:
    tiny.lm_of("llama").model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert not untie_head(tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        untie_head(tmp_path)


def test_an_embedding_of_another_name_is_refused(tmp_path: Path) -> None:
    tiny.lm_of("gpt2").model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"embed_tokens\.weight"):
        untie_head(tmp_path)
