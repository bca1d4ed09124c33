"""Models taken apart into body and head, for every family, and what is refused at the door."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.errors import ModelError
from limbeck.learners.batch import request_for
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.layout import Layout, lay_out
from limbeck.models.loading import SHIPPED, load_model, load_tokenizer, resolve
from tests import tiny

CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", tiny.FAMILIES)


def load(folder: str | Path, **more: Any) -> CausalLM:
    return load_model(ModelConfig(model=str(folder), **more), CPU)


def refusal(folder: str | Path, **more: Any) -> str:
    """The one line with which a model is refused: what it is about, and what to do."""
    with pytest.raises(ModelError) as caught:
        load(folder, **more)
    message = str(caught.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama's folder, to break."""
    return Path(shutil.copytree(tiny.folder_of("llama"), tmp_path / "broken"))


# Body and head


@every_family
def test_the_head_on_the_hidden_states_is_the_models_own_logits(family: str) -> None:
    lm = tiny.lm_of(family)
    tokens_BL = torch.tensor([prompt.token_ids for prompt in tiny.prompts(12, 12)])
    with torch.no_grad():
        theirs = lm.model(tokens_BL).logits
        ours = lm.head().logits(lm.hidden(tokens_BL))
    assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@every_family
def test_the_head_shares_the_models_weights(family: str) -> None:
    lm = tiny.lm_of(family)
    assert lm.head().weight_Vd.data_ptr() == lm.model.get_output_embeddings().weight.data_ptr()
    assert lm.head().weight_Vd.requires_grad


def test_what_a_family_does_after_its_last_matrix_is_in_the_head() -> None:
    heads = {name: tiny.lm_of(name).head() for name in tiny.FAMILIES}
    assert {name: head.multiplier for name, head in heads.items() if head.multiplier != 1} == {
        "granite": pytest.approx(1 / 1.5),
        "cohere": pytest.approx(1.7),
    }
    assert [name for name, head in heads.items() if head.bias_V is not None] == ["phi"]
    assert {name: head.softcap for name, head in heads.items() if head.softcap is not None} == {"gemma2": 3.0}


@pytest.mark.parametrize("layout", ["padded", "packed"])
@every_family
def test_rows_of_a_batch_do_not_see_each_other(family: str, layout: Layout) -> None:
    """Sliding windows, learned positions and all: a row's states are those it has alone."""
    lm = tiny.lm_of(family)
    generator = torch.Generator().manual_seed(1)
    rollouts = [
        tiny.rollout(torch.randint(tiny.VOCABULARY, (n,), generator=generator).tolist(), [0] + [1] * (n - 1))
        for n in (9, 2, 17, 1, 12)
    ]
    batch = lay_out([request_for(rollout) for rollout in rollouts], layout)
    with torch.no_grad():
        hidden_Nd = lm.hidden(batch.tokens_BL, batch.positions_BL).flatten(0, 1)[batch.predict_N]
        ours = lm.head().logits(hidden_Nd).log_softmax(-1)
    alone = torch.cat([tiny.logprobs(lm.model, rollout.token_ids) for rollout in rollouts])
    assert_close(ours.double(), alone, atol=1e-4, rtol=0)


def test_a_learner_does_not_pack_a_model_that_cannot_tell_packed_rows_apart(tmp_path: Path) -> None:
    """BLOOM, Falcon, MPT, GPT-OSS: their masks are made without position ids, and they do not share prompts."""
    config = transformers.BloomConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, n_layer=2, n_head=4, eos_token_id=1, pad_token_id=0
    )
    tiny.build(config).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="packed"):
        LocalLearner(load(tmp_path), LocalLearnerConfig(layout="packed"), ReverseKLConfig(), steps=1, seed=0)


def test_a_model_whose_masks_know_no_positions_is_packed_along_a_tree(tmp_path: Path) -> None:
    config = transformers.OPTConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2,
        num_attention_heads=4, ffn_dim=48, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    tiny.build(config).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    lm = load(tmp_path)
    LocalLearner(lm, LocalLearnerConfig(layout="packed"), ReverseKLConfig(), steps=1, seed=0)
    rollouts = [tiny.rollout(list(range(5, 5 + n)), [0] + [1] * (n - 1)) for n in (9, 4, 6)]
    found = []
    for layout in ("packed", "padded"):
        batch = lay_out([request_for(rollout) for rollout in rollouts], layout)
        found.append(lm.states(batch.tokens_BL, batch.positions_BL, batch.predict_N, batch.tree))
    assert_close(*found, atol=1e-5, rtol=1e-5)


@every_family
def test_a_narrowed_vocabulary_is_the_first_rows_of_the_head(family: str) -> None:
    lm = tiny.fresh(family)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(2))
    whole = lm.head().logits(hidden)
    lm.vocabulary = 90
    head = lm.head()
    assert head.vocabulary == 90
    assert_close(head.logits(hidden), whole[:, :90])


# How a model is held


def test_attention_with_soft_caps_is_eager_unless_asked_otherwise() -> None:
    assert tiny.lm_of("gemma2").model.config._attn_implementation == "eager"
    assert tiny.lm_of("llama").model.config._attn_implementation == "sdpa"
    assert load(tiny.folder_of("llama"), attention="eager").model.config._attn_implementation == "eager"


@every_family
def test_weights_are_held_in_the_dtype_asked_for(family: str) -> None:
    lm = load(tiny.folder_of(family), dtype="bfloat16")
    assert {parameter.dtype for parameter in lm.model.parameters()} == {torch.bfloat16}


@every_family
def test_loading_leaves_the_model_as_it_was_read(family: str) -> None:
    lm = load(tiny.folder_of(family))
    stored = load_file(Path(tiny.folder_of(family)) / "model.safetensors")
    parameters = dict(lm.model.named_parameters())
    assert set(parameters) == set(stored)
    for name, parameter in parameters.items():
        assert_close(parameter.detach(), stored[name], atol=0, rtol=0)
        assert parameter.requires_grad


# Where a model comes from


def test_names_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(tiny.folder_of("llama")).parent)
    assert resolve(tiny.folder_of("llama")) == tiny.folder_of("llama")
    assert resolve(Path(tiny.folder_of("llama")).name) == Path(tiny.folder_of("llama")).name
    assert resolve("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"  # the hub's to find
    assert resolve("distilgpt2") == "distilgpt2"


def test_a_folder_that_is_not_there_or_is_no_model_is_refused(folder: Path, tmp_path: Path) -> None:
    assert "no model folder" in refusal(tmp_path / "nowhere")
    assert "no model folder" in refusal("models/of/mine")
    assert "no model folder" in refusal("./student")
    assert "no model folder" in refusal(folder / "model.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refusal(tmp_path / "empty")


def test_a_shipped_model_that_does_not_exist_is_refused_with_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.models.loading.SHIPPED", Path(tiny.folder_of("qwen2")).parent)
    name = Path(tiny.folder_of("qwen2")).name
    assert f"demo:{name}" in refusal("demo:nothing")
    assert resolve(f"demo:{name}") == tiny.folder_of("qwen2")
    assert SHIPPED.name == "demo"


def test_a_hub_name_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise OSError("We couldn't connect to the hub\nand so on for many lines")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    assert "couldn't connect to the hub" in refusal("someone/something")


@pytest.mark.parametrize("beside", ["a model", "nothing"])
def test_an_adapter_in_a_model_folder_is_refused_by_name(folder: Path, beside: str) -> None:
    """transformers would put its layers into the model, and training would end in a traceback."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if beside == "nothing":
        (folder / "config.json").unlink()
    message = refusal(folder)
    assert "adapter_config.json" in message
    assert "merge_and_unload" in message


def test_an_adapter_of_a_hub_repository_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transformers.AutoModelForCausalLM.from_pretrained

    def with_adapter(*args: Any, **kwargs: Any) -> Any:
        model, loading = plain(*args, **kwargs)
        model._hf_peft_config_loaded = True
        return model, loading

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", with_adapter)
    assert "adapter_config.json" in refusal(folder)


# Tokenizers


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2", "cohere", "phi"])
def test_a_folder_without_a_tokenizer_is_refused(family: str, tmp_path: Path) -> None:
    """transformers makes an empty one up for some families: a handful of control tokens and no text."""
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(Path(tiny.folder_of(family)) / name, tmp_path)
    assert "tokenizer.save_pretrained" in refusal(tmp_path)


def test_a_tokenizer_that_cannot_be_read_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer" in refusal(folder)


def test_a_tokenizer_is_loaded_by_itself() -> None:
    assert load_tokenizer(tiny.folder_of("llama"))("ab").input_ids == tiny.character_tokenizer()("ab").input_ids


# Weights


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = {name: value.clone() for name, value in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, value: float) -> None:
    rewrite(folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].fill_(value))
    assert "'model.layers.1.mlp.up_proj.weight'" in refusal(folder)


def test_a_head_with_fewer_rows_than_the_tokenizer_has_ids_is_refused(folder: Path) -> None:
    tiny.character_tokenizer((*tiny.ALPHABET, "é", "ü")).save_pretrained(folder)
    message = refusal(folder)
    assert "ids up to 101" in message
    assert "100 rows" in message


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"])
def test_a_weight_the_checkpoint_lacks_is_refused_by_name(folder: Path, name: str) -> None:
    """transformers would start it at random, with no more than a log line."""
    rewrite(folder, lambda weights: weights.__delitem__(name))
    message = refusal(folder)
    assert f"'{name}'" in message
    assert "random" in message


def test_a_weight_of_another_shape_is_refused_by_name(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(16)}))
    assert "model.norm.weight" in refusal(folder)


def test_a_config_of_more_layers_than_the_checkpoint_is_refused(folder: Path) -> None:
    edit(folder, num_hidden_layers=3)
    assert "'model.layers.2." in refusal(folder)


def test_a_tied_head_needs_no_weight_of_its_own() -> None:
    assert "lm_head.weight" not in load_file(Path(tiny.folder_of("llama-tied")) / "model.safetensors")
    lm = tiny.lm_of("llama-tied")
    assert lm.head().weight_Vd is lm.model.get_input_embeddings().weight


@pytest.mark.parametrize(
    "spoil",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: bytes(100), lambda b: b"not a checkpoint" * 99],
    ids=["truncated", "empty", "zeros", "garbage"],
)
def test_a_checkpoint_that_cannot_be_read_is_refused(folder: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    assert "model.safetensors cannot be read as safetensors" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(folder)


# Configs and architectures


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_config_that_cannot_be_used_is_refused(folder: Path) -> None:
    edit(folder, model_type="no-such-type")
    assert "no-such-type" in refusal(folder)
    edit(folder, model_type="vit")
    assert "ViTConfig" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json" in refusal(folder)


HYBRID = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48}
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "MambaForCausalLM": ("mamba", {"state_size": 4}),
    "Lfm2ForCausalLM": ("lfm2", HYBRID),
    "RwkvForCausalLM": ("rwkv", {"attention_hidden_size": 32}),
}


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_architecture_is_refused_by_name(name: str, tmp_path: Path) -> None:
    kind, options = RECURRENT[name]
    shape = {**tiny.GATED, "vocab_size": tiny.VOCABULARY, "eos_token_id": 1, "pad_token_id": 0}
    tiny.build(transformers.AutoConfig.for_model(kind, **shape, **options)).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    message = refusal(tmp_path)
    assert name in message
    assert "recurrent" in message


def test_a_model_without_an_output_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.LlamaForCausalLM, "get_output_embeddings", lambda self: None)
    assert "output head" in refusal(tiny.folder_of("llama"))


def test_a_head_that_is_no_plain_matrix_is_refused() -> None:
    class Adapted(nn.Linear):
        """As an adapter on the head would be."""

    lm = tiny.fresh("llama")
    lm.model.lm_head = Adapted(32, tiny.VOCABULARY, bias=False)
    with pytest.raises(ModelError, match="Adapted"):
        lm.head()


@pytest.mark.parametrize("padding", ["", "1", "12345678"])
def test_the_bits_do_not_depend_on_where_the_files_header_ends(tmp_path: Path, padding: str) -> None:
    """Weights from a file are where weights from another process are: products with one row round by their place."""
    folder = Path(tiny.save(tmp_path / "model", "llama-tied"))
    weights = load_file(folder / "model.safetensors")
    save_file(weights, folder / "model.safetensors", {"format": "pt", "padding": padding})
    lm = load_model(ModelConfig(model=str(folder)), torch.device("cpu"))
    assert not [name for name, parameter in lm.model.named_parameters() if parameter.data_ptr() % 64]
    head, hidden_1d = lm.head(), torch.randn(1, 32)
    copy = replace(head, weight_Vd=head.weight_Vd.detach().clone())
    assert torch.equal(head.logits(hidden_1d), copy.logits(hidden_1d))
    assert lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight  # still tied
