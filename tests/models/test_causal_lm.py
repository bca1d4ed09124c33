"""What a loaded model says of itself: ends, temperature, context, vocabulary; and training mode without noise."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch.testing import assert_close

from limbeck.config.base import ModelConfig
from limbeck.errors import ModelError
from limbeck.models.causal_lm import (
    CausalLM,
    context_limit,
    first_line,
    shared_vocabulary,
    stop_ids_of,
    turn_off_training_noise,
)
from limbeck.models.loading import load_model
from limbeck.models.text import highest_id, ids_without_token, vocabulary_note
from tests import tiny

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
CONTROL = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}


def load(folder: str | Path) -> CausalLM:
    return load_model(ModelConfig(model=str(folder)), torch.device("cpu"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama's folder, to change."""
    return Path(shutil.copytree(tiny.folder_of("llama"), tmp_path / "changed"))


# Where responses end, and at which temperature


def with_ends(generation: int | list[int] | None, tokenizer: str | None = "<eos>") -> CausalLM:
    """A model whose two places that name an end of sequence name these."""
    lm = tiny.fresh("llama")
    lm.model.generation_config.eos_token_id = generation
    lm.tokenizer.eos_token = tokenizer
    return lm


def test_responses_stop_at_the_ends_of_both_generation_config_and_tokenizer() -> None:
    assert with_ends([7, 9]).stop_ids == (7, 9, 1)
    assert with_ends(8).stop_ids == (8, 1)
    assert with_ends([1, 8]).stop_ids == (1, 8)
    assert with_ends(0, None).stop_ids == (0,)
    assert with_ends(None).stop_ids == (1,) == (with_ends(None).tokenizer.eos_token_id,)
    assert with_ends(None, None).stop_ids == ()


def test_two_places_that_differ_about_the_end_are_named() -> None:
    note = with_ends(8).stop_ids_note
    assert note is not None
    assert "'3' (8)" in note
    assert "'<eos>' (1)" in note
    for agreeing in (with_ends(1), with_ends([8, 1]), with_ends(None), with_ends(8, None)):
        assert agreeing.stop_ids_note is None


def test_an_end_that_cannot_be_sampled_is_left_out_and_named() -> None:
    lm = with_ends([50256, 1])
    assert lm.stop_ids == (1,)
    assert "[50256]" in str(lm.stop_ids_note)


def test_stop_ids_of_a_recipe_are_added_and_do_where_the_model_has_none() -> None:
    assert stop_ids_of(with_ends(8)) == (8, 1)
    assert stop_ids_of(with_ends(8), (5, 1)) == (8, 1, 5)
    assert stop_ids_of(with_ends(None, None), (5,)) == (5,)
    with pytest.raises(ModelError, match=r"no end-of-sequence token.*rollout\.stop_ids"):
        stop_ids_of(with_ends(None, None))


@pytest.mark.parametrize("outside", [-1, tiny.VOCABULARY, 5000])
def test_a_stop_id_of_a_recipe_that_is_no_token_is_refused_by_name(outside: int) -> None:
    with pytest.raises(ModelError, match=rf"rollout\.stop_ids has \[{outside}\], expected ids from 0 to 99"):
        stop_ids_of(with_ends(8), (5, outside))


def test_a_baked_folder_is_known_by_its_temperature(folder: Path) -> None:
    assert load(folder).natural_temperature == 1.0
    edit(folder, limbeck_temperature=0.7)
    assert load(folder).natural_temperature == 0.7
    for nonsense in (0, -1.0, "warm", True, None):
        edit(folder, limbeck_temperature=nonsense)
        lm = load(folder)
        with pytest.raises(ModelError, match="limbeck_temperature"):
            _ = lm.natural_temperature


@every_family
def test_the_context_is_read_from_the_config(family: str) -> None:
    lm = tiny.lm_of(family)
    assert lm.context == tiny.CONTEXT


# The context


LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 5.0, 9.0],
}  # fmt: skip


def phi3(folder: Path, **more: Any) -> CausalLM:
    control = {"vocab_size": tiny.VOCABULARY, **CONTROL}
    config = transformers.Phi3Config(**tiny.GATED, **control, max_position_embeddings=tiny.CONTEXT, **more)
    tiny.build(config).save_pretrained(folder)
    tiny.character_tokenizer().save_pretrained(folder)
    return load(folder)


def test_the_context_ends_where_neighbours_in_a_batch_begin_to_matter(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """longrope: one set of frequencies up to a length, another above, chosen by the longest sequence of the batch."""
    with caplog.at_level("INFO", logger="limbeck"):
        lm = phi3(tmp_path, rope_parameters=LONGROPE, original_max_position_embeddings=16)
    assert lm.context == 16
    assert "at most 16 tokens" in caplog.text
    rows_BL = torch.tensor([prompt.token_ids for prompt in tiny.prompts(16, 16)])
    with torch.no_grad():
        together = lm.hidden(torch.cat([rows_BL, rows_BL])[:3])
        alone = lm.hidden(rows_BL[:1, :4])
        longer = lm.hidden(rows_BL.flatten()[None, :17])
    assert_close(together[:1, :4], alone)
    assert (longer[:, :4] - alone).abs().max() > 1e-2  # the fault itself, else this test tests nothing


def test_frequencies_that_are_the_same_at_every_length_leave_the_context_alone(tmp_path: Path) -> None:
    assert phi3(tmp_path).context == tiny.CONTEXT


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [
        (LONGROPE, 16),
        ({"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}, 16),
        ({"type": "longrope", "long_factor": [1.0]}, 24),  # as older configs say it
        ({"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}, None),
        ({"rope_type": "yarn", "original_max_position_embeddings": 16}, None),
        (None, None),
    ],
)
def test_where_frequencies_change(parameters: dict[str, Any] | None, limit: int | None) -> None:
    config = SimpleNamespace(rope_parameters=parameters, original_max_position_embeddings=24)
    found = context_limit(config)
    assert (found and found.tokens) == limit
    assert context_limit(SimpleNamespace()) is None


def test_doge_attends_to_what_follows_above_the_tokens_it_keeps() -> None:
    found = context_limit(SimpleNamespace(keep_window_size=2048))
    assert found is not None
    assert found.tokens == 2048
    assert "that follow" in found.above


def test_a_context_that_is_no_length_is_none() -> None:
    lm = tiny.fresh("llama")
    lm.model.config.max_position_embeddings = -1  # XLNet's
    assert lm.context is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such file.\nand more"), "no such file"),
        (ValueError("wrong config:\n    width must be even\nand more"), "wrong config: width must be even"),
        (ValueError("install it:"), "install it:"),
        (KeyError(), "KeyError"),
    ],
)  # fmt: skip
def test_the_first_line_of_an_error_ends_after_what_it_announces(error: Exception, line: str) -> None:
    assert first_line(error) == line


# The vocabulary


def test_rows_of_the_head_above_the_largest_id_are_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load(folder).model
    model.resize_token_embeddings(128)
    model.save_pretrained(folder)
    with caplog.at_level("INFO", logger="limbeck"):
        lm = load(folder)
    assert (lm.head_rows, lm.vocabulary, lm.head().vocabulary) == (128, tiny.VOCABULARY, tiny.VOCABULARY)
    assert "28 of the 128 rows" in caplog.text


def test_models_are_compared_over_the_rows_all_of_them_have() -> None:
    student, teacher = tiny.fresh("llama"), tiny.fresh("qwen2")
    teacher.vocabulary = 90
    assert shared_vocabulary([student, teacher]) == 90
    assert (student.vocabulary, teacher.vocabulary) == (100, 90)  # nothing is changed by comparing


def test_ids_without_a_token_are_counted_and_named() -> None:
    tokenizer = tiny.character_tokenizer()
    assert highest_id(tokenizer) == 99
    assert vocabulary_note("tiny", tokenizer, 100) is None
    holes = tiny.character_tokenizer(tiny.ALPHABET[:97])
    assert ids_without_token(holes, 100) == [97, 98, 99]
    note = str(vocabulary_note("tiny", holes, 100))
    assert "3 of the ids below 100" in note
    assert "97" in note


# Training mode


NOISY: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tiny.config_of("gpt2", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1),
    "phimoe": lambda: transformers.PhimoeConfig(
        **tiny.GATED, num_local_experts=4, attention_dropout=0.1, router_jitter_noise=0.3, input_jitter_noise=0.3,
        vocab_size=tiny.VOCABULARY, max_position_embeddings=tiny.CONTEXT, **CONTROL,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, dropout=0.1,
        layerdrop=0.5, num_attention_heads=4, ffn_dim=48, max_position_embeddings=64, eos_token_id=1, pad_token_id=0,
    ),
    "falcon": lambda: transformers.FalconConfig(  # its layers read their dropout off the config
        vocab_size=tiny.VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, hidden_dropout=0.1,
        attention_dropout=0.1, **CONTROL,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **tiny.GATED, num_local_experts=4, router_jitter_noise=0.3, vocab_size=tiny.VOCABULARY,
        max_position_embeddings=tiny.CONTEXT, **CONTROL,
    ),
}  # fmt: skip


@pytest.fixture(params=NOISY)
def noisy(request: pytest.FixtureRequest, tmp_path: Path) -> CausalLM:
    """A model that computes something else in training mode, and every time something else."""
    tiny.build(NOISY[request.param]()).save_pretrained(tmp_path)
    tiny.character_tokenizer().save_pretrained(tmp_path)
    return load(tmp_path)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_mode_without_noise_computes_what_evaluation_mode_does(noisy: CausalLM, checkpointing: bool) -> None:
    tokens_BL = torch.tensor([prompt.token_ids for prompt in tiny.prompts(12, 12)])

    def states_and_gradients(training: bool) -> list[torch.Tensor]:
        noisy.model.train(training)
        hidden = noisy.hidden(tokens_BL)
        parameters = [parameter for parameter in noisy.model.base_model.parameters() if parameter.requires_grad]
        grads = torch.autograd.grad(hidden.sin().sum(), parameters, allow_unused=True)
        return [hidden, *(grad for grad in grads if grad is not None)]

    evaluated = states_and_gradients(training=False)
    assert (states_and_gradients(training=True)[0] - evaluated[0]).abs().max() > 1e-2  # noise there is
    turn_off_training_noise(noisy)
    if checkpointing:
        noisy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for training in (True, False, True):
        for ours, theirs in zip(states_and_gradients(training), evaluated, strict=True):
            assert_close(ours, theirs, atol=0, rtol=0)


def test_layers_are_still_checkpointed_without_noise() -> None:
    lm = tiny.fresh("gpt2")
    turn_off_training_noise(lm)
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    runs = []
    lm.model.base_model.h[0].ln_1.register_forward_hook(lambda *_: runs.append(1))
    lm.model.train()
    lm.hidden(torch.tensor([[5, 6, 7]])).sum().backward()
    assert len(runs) == 2  # forward, and once more for the backward pass
    lm.model.eval()
    lm.hidden(torch.tensor([[5, 6, 7]])).sum().backward()
    assert len(runs) == 3


def test_a_copy_of_a_model_without_noise_has_a_mode_of_its_own() -> None:
    lm = tiny.fresh("gpt2")
    lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    turn_off_training_noise(lm)
    copied = copy.deepcopy(lm.model)
    copied.train()
    assert copied.training
    assert copied.base_model.h[0].training
    assert not copied.base_model.h[0].mlp.training
    assert not lm.model.training
    modes = []
    copied.base_model.h[0].ln_1.register_forward_hook(lambda *_: modes.append(copied.base_model.h[0].training))
    copied(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert modes == [False, False], "run, and computed again, in evaluation mode"
    assert copied.base_model.h[0].training
