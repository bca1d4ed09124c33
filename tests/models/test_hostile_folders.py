"""Model folders whose files are damaged, contradict each other or lie: each refused in one message that says which."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from limbeck import api
from limbeck.config.base import ModelConfig
from limbeck.config.recipe import parse_recipe
from limbeck.contract.bake import bake
from limbeck.contract.check import check_teacher
from limbeck.errors import ModelError
from limbeck.learners.export import export
from limbeck.models.folder import MAX_BYTES
from limbeck.models.loading import load_model, load_tokenizer, resolve
from limbeck.serve.main import serve
from limbeck.serve.settings import ServeSettings
from tests import tiny

CPU = torch.device("cpu")
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Spoil = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama's folder, to spoil."""
    return Path(shutil.copytree(tiny.folder_of("llama"), tmp_path / "spoiled"))


def table(name: str, **changes: Any) -> Spoil:
    """Changes keys of a JSON file."""

    def spoil(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return spoil


def config(**changes: Any) -> Spoil:
    return table("config.json", **changes)


def ends(value: Any) -> Spoil:
    return table("generation_config.json", eos_token_id=value)


def content(name: str, data: bytes) -> Spoil:
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / WHOLE)
        change(tensors)
        save_file(tensors, folder / WHOLE, metadata={"format": "pt"})

    return spoil


def add(name: str, *shape: int) -> Spoil:
    return weights(lambda tensors: tensors.update({name: torch.ones(shape)}))


def sharded(change: Callable[[dict[str, str]], object], keep_whole: bool = False) -> Spoil:
    """One shard with an index, which `change` changes."""

    def spoil(folder: Path) -> None:
        places = dict.fromkeys(load_file(folder / WHOLE), "model-00001-of-00001.safetensors")
        shutil.copy(folder / WHOLE, folder / "model-00001-of-00001.safetensors")
        if not keep_whole:
            (folder / WHOLE).unlink()
        change(places)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return spoil


def nan(name: str) -> Spoil:
    return weights(lambda tensors: tensors[name].view(-1)[-1].fill_(float("nan")))


CASES: dict[str, tuple[Spoil, str]] = {
    # Weights of the files, and weights of the model
    "fewer layers": (config(num_hidden_layers=1), "hold 9 weights that .*'model.layers.1.input_layernorm.weight'"),
    "more layers": (config(num_hidden_layers=3), "no usable value for 9 weights .missing_keys"),
    "wider": (config(hidden_size=64, head_dim=16), "no usable value for .* .mismatched_keys"),
    "smaller vocabulary": (config(vocab_size=50), "no usable value for .* .mismatched_keys"),
    "a value head": (add("v_head.summary.weight", 1, 32), "hold 1 weights .*'v_head.summary.weight'"),
    "a bias more": (add("model.layers.0.self_attn.q_proj.bias", 32), "hold 1 weights .*q_proj.bias"),
    "a weight less": (weights(lambda t: t.pop("lm_head.weight")), "no usable value for 1 weights .*'lm_head.weight'"),
    "tied, with a head of its own": (config(tie_word_embeddings=True), "tie_word_embeddings.* two that differ"),
    "NaN": (nan("model.norm.weight"), "'model.norm.weight' has NaN or infinite values"),
    # Ends of a sequence
    "a negative end": (ends(-1), "eos_token_id = -1 in its generation_config.json"),
    "a fractional end": (ends(1.5), "eos_token_id = 1.5"),
    "a true end": (ends(True), "eos_token_id = True"),
    "an end in text": (ends("</s>"), "eos_token_id = '</s>'"),
    "an end beyond": (ends([1, 50256]), r"eos_token_id = \[1, 50256\] .* from 0 to 99"),
    "nested ends": (ends([[1]]), r"eos_token_id = \[\[1\]\]"),
    "a huge end": (ends(10**100), "eos_token_id = an integer of 333 bits"),
    # Code
    "a config with code": (config(model_type="mine", auto_map={"AutoConfig": "a.B"}), "which Limbeck never runs"),
    "a tokenizer with code": (
        content("tokenizer_config.json", b'{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["a.T", null]}}'),
        "which Limbeck never runs",
    ),
    # Files that are not what they are called
    "weights cut short": (cut(WHOLE), "model.safetensors cannot be read as safetensors: .*Copy or download it again"),
    "weights of nothing": (content(WHOLE, b""), "model.safetensors cannot be read as safetensors"),
    "a header of petabytes": (content(WHOLE, b"\xff" * 64), "model.safetensors cannot be read as safetensors"),
    "no shard": (
        sharded(lambda p: p.update(x="model-2.safetensors")),
        "names the file 'model-2.safetensors'",
    ),
    "a shard elsewhere": (sharded(lambda p: p.update(x="../spoiled/" + WHOLE)), "names the file '../spoiled/model"),
    "an index of too much": (
        sharded(lambda p: p.update(x="model-00001-of-00001.safetensors")),
        f"'x' is in {INDEX} only, and so 1 tensors",
    ),
    "an index of too little": (
        sharded(lambda p: p.pop("lm_head.weight")),
        "'lm_head.weight' is not in it by",
    ),
    "an index of numbers": (sharded(lambda p: p.update(x=1)), "weight_map is"),
    "an index beside the whole": (sharded(lambda p: None, keep_whole=True), "one of them is of another model"),
    "an index that is a list": (content(INDEX, b"[]"), "one of them is of another model"),
    "a config cut short": (cut("config.json"), "config.json cannot be read as JSON"),
    "a config of a list": (content("config.json", b"[]"), r"config.json holds \[\], expected a table"),
    "a nested config": (content("config.json", b"[" * 10**5), "config.json cannot be read as JSON"),
    "a config in Latin-1": (content("config.json", b'{"a": "\xff"}'), "config.json cannot be read as JSON"),
    "a large config": (content("config.json", b" " * (MAX_BYTES + 1)), "config.json has more than 64 MB"),
    "a generation config cut short": (cut("generation_config.json"), "generation_config.json cannot be read as JSON"),
    "a generation config of a number": (content("generation_config.json", b"7"), "generation_config.json holds 7"),
    "a tokenizer cut short": (cut("tokenizer.json"), "tokenizer.json cannot be read as JSON"),
    "a tokenizer of a list": (content("tokenizer.json", b"[]"), "tokenizer.json holds"),
    "a tokenizer of nothing": (content("tokenizer.json", b"{}"), "cannot load a tokenizer from"),
    "a nested tokenizer": (content("tokenizer.json", b"[" * 10**5), "tokenizer.json cannot be read as JSON"),
    "a tokenizer config cut short": (cut("tokenizer_config.json"), "tokenizer_config.json cannot be read as JSON"),
    "a template with a mistake": (content("chat_template.jinja", b"{% for %}"), "has a syntax error in line 1"),
    # Values of config.json
    "a width in text": (config(hidden_size="many"), "config.json of .*hidden_size"),
    "a width of a fraction": (config(hidden_size=32.5), "config.json of .*hidden_size"),
    "no heads": (config(num_attention_heads=0), "config.json of"),
    "negative layers": (config(num_hidden_layers=-1), "weights"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers = 1000000000, expected at most 10000"),
    "thousands of layers": (config(num_hidden_layers=9999, layer_types=None), "no usable value|more than .* numbers"),
    "a huge width": (config(hidden_size=10**9, head_dim=8), "describes a model of more than .* numbers, but its files"),
    "a huge vocabulary": (config(vocab_size=10**11), "describes a model of more than .* numbers, but its files"),
    "a huge context": (config(max_position_embeddings=10**30), "max_position_embeddings = .*expected at most"),
    "a negative context": (config(max_position_embeddings=-5), "max_position_embeddings = -5"),
    "NaN in it": (config(rms_norm_eps=float("nan")), "rms_norm_eps = nan, expected a finite number"),
    "infinity in it": (config(limbeck_temperature=float("inf")), "limbeck_temperature = inf, expected a finite"),
    "a scale in text": (config(logit_scale="a"), "logit_scale = 'a' in its config.json, expected a finite number"),
    "a cap in text": (config(final_logit_softcapping=[1]), r"final_logit_softcapping = \[1\]"),
    "a type of no use": (config(model_type=["llama"]), "config.json of"),
    "an unknown dtype": (config(dtype="float99"), "config.json of"),
    "rope in text": (config(rope_parameters="x"), "config.json of .*rope_parameters"),
    "a quantisation of nothing": (config(quantization_config=5), "config.json of"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_lies_is_refused_in_one_message(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, message = CASES[name]
    spoil(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("nobody is asked"))
    started = time.monotonic()
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelConfig(model=str(folder)), CPU)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.monotonic() - started < 15
    assert "trust_remote_code" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: None,
        add("model.layers.0.self_attn.rotary_emb.inv_freq", 4),  # files of older versions carry such buffers
        add("model.layers.0.self_attn.masked_bias", 1),
        sharded(lambda places: None),
        ends([1, 3]),
        ends(None),
        config(auto_map={"AutoConfig": "configuration_mine.Mine"}),  # of an architecture that transformers has
        lambda folder: (folder / "generation_config.json").unlink(),
    ],
    ids=["as it was", "inv_freq", "mask", "sharded", "two ends", "no end", "code that is not needed", "no ends"],
)
def test_a_folder_that_is_right_is_loaded(spoil: Spoil, folder: Path) -> None:
    before = tiny.lm_of("llama").model.state_dict()
    spoil(folder)
    after = load_model(ModelConfig(model=str(folder)), CPU).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_masks_that_gpt2_files_carry_are_no_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.folder_of("gpt2"), tmp_path / "gpt2"))
    add("h.0.attn.bias", 1, 1, 8, 8)(folder)
    load_model(ModelConfig(model=str(folder)), CPU)
    config(n_layer=1)(folder)
    with pytest.raises(ModelError, match=r"weights that a GPT2LMHeadModel of its config.json does not have"):
        load_model(ModelConfig(model=str(folder)), CPU)


def test_a_tied_head_in_the_files_is_fine_where_it_is_the_embedding(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.folder_of("llama-tied"), tmp_path / "tied"))
    weights(lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))(folder)
    lm = load_model(ModelConfig(model=str(folder)), CPU)
    assert lm.head().weight_Vd is lm.model.get_input_embeddings().weight


def test_weights_in_the_old_format_are_compared_too(folder: Path) -> None:
    tensors = load_file(folder / WHOLE)
    (folder / WHOLE).unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    load_model(ModelConfig(model=str(folder)), CPU)
    config(num_hidden_layers=1)(folder)
    with pytest.raises(ModelError, match="would not be read"):
        load_model(ModelConfig(model=str(folder)), CPU)
    cut("pytorch_model.bin")(folder)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(ModelConfig(model=str(folder)), CPU)


@pytest.mark.parametrize("name", ["a\0b", "./" + "x" * 300, "/" + "x/" * 3000, "~nobody-of-this-name/model", ""])
def test_what_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ModelError):
        resolve(name)


def test_a_panic_of_the_tokenizers_library_is_one_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    def panics(*args: Any, **kwargs: Any) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", panics)
    with pytest.raises(ModelError, match=r"cannot load a tokenizer from .*index out of bounds"):
        load_tokenizer(str(folder))


DOORS: dict[str, Callable[[Path, Path], object]] = {
    "student": lambda folder, tmp: api.check(recipe(tmp, student={"model": str(folder)})),
    "local teacher": lambda folder, tmp: api.check(recipe(tmp, teacher={"model": str(folder)})),
    "reference": lambda folder, tmp: api.check(
        recipe(tmp, objective={"reference": {"model": str(folder), "weight": 1.0}})
    ),
    "head": lambda folder, tmp: check_teacher("limbeck=http://127.0.0.1:9", head=str(folder)),
    "train": lambda folder, tmp: api.train(recipe(tmp, student={"model": str(folder)})),
    "eval": lambda folder, tmp: api.evaluate(recipe(tmp), model=folder),
    "serve": lambda folder, tmp: serve(str(folder), ServeSettings(), port=0),
    "bake": lambda folder, tmp: bake(str(folder), 0.7, tmp / "baked"),
    "export": lambda folder, tmp: export(tmp, tmp / "out"),
}


def recipe(tmp: Path, **tables: Any) -> Any:
    llama = {"model": tiny.folder_of("llama")}
    rows = tmp / "rows.jsonl"
    rows.write_text('{"prompt": "a"}\n' * 3)
    task = {"kind": "file", "path": str(rows), "held_out": 1}
    base = {"student": llama, "teacher": llama, "task": task, "output": str(tmp / "runs"), "device": "cpu"}
    return parse_recipe({**base, "rollout": {"max_tokens": 4}, **tables})


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["fewer layers", "a fractional end", "a config cut short", "weights cut short"])
def test_every_door_refuses_such_a_folder(door: str, name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"  # where a run keeps its own
    shutil.copytree(tiny.folder_of("llama"), folder)
    CASES[name][0](folder)
    with pytest.raises(ModelError, match=CASES[name][1]):
        DOORS[door](folder, tmp_path)


def test_one_weight_under_two_names_is_refused(folder: Path) -> None:
    """transformers would read one of them, without a word."""
    tensors = load_file(folder / WHOLE)
    name = next(name for name in tensors if name.endswith("mlp.down_proj.weight"))
    save_file({**tensors, name.removeprefix("model."): tensors[name] * 2}, folder / WHOLE, {"format": "pt"})
    with pytest.raises(ModelError, match="one weight under two names"):
        load_model(ModelConfig(model=str(folder)), CPU)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(ModelError, match=name):
        load_model(ModelConfig(model=str(folder)), CPU)
