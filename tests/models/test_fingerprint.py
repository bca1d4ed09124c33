"""Other weights have another fingerprint: one bit is enough, wherever it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.config.base import ModelConfig
from limbeck.errors import ModelError
from limbeck.models.fingerprint import fingerprint, weight_files
from limbeck.serve import main
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tiny.folder_of("llama"), tmp_path / "model")
    return tmp_path / "model"


def test_a_copy_has_the_same_and_another_dtype_another(folder: Path) -> None:
    first = fingerprint(tiny.folder_of("llama"), "float32")
    assert len(first) == 32
    assert int(first, 16)
    assert fingerprint(str(folder), "float32") == first != fingerprint(str(folder), "bfloat16")


@pytest.mark.parametrize("share", [0.0, 0.31, 0.5, 0.77, 1.0])
def test_one_flipped_bit_is_found_wherever_it_is(folder: Path, share: float) -> None:
    first = fingerprint(str(folder), "float32")
    (file,) = weight_files(folder)
    data = bytearray(file.read_bytes())
    data[round(share * (len(data) - 1))] ^= 1
    file.write_bytes(data)
    assert fingerprint(str(folder), "float32") != first


def test_what_changes_the_scores_in_the_config_counts_and_what_wrote_it_does_not(folder: Path) -> None:
    first, file = fingerprint(str(folder), "float32"), folder / "config.json"
    config = json.loads(file.read_text())
    volatile = {"transformers_version": "9.9", "_name_or_path": "elsewhere", "dtype": "float16"}
    file.write_text(json.dumps(dict(reversed((config | volatile).items())), indent=7))
    assert fingerprint(str(folder), "float32") == first
    file.write_text(json.dumps(config | {"rope_theta": 1.5}))
    assert fingerprint(str(folder), "float32") != first


def test_every_shard_counts_and_so_do_their_names(folder: Path) -> None:
    whole = folder / "model.safetensors"
    data = whole.read_bytes()
    whole.unlink()
    (folder / "model-00001-of-00002.safetensors").write_bytes(data[:100])
    (folder / "model-00002-of-00002.safetensors").write_bytes(data[100:])
    first = fingerprint(str(folder), "float32")
    (folder / "model-00002-of-00002.safetensors").write_bytes(data[100:] + b"x")
    second = fingerprint(str(folder), "float32")
    (folder / "model-00001-of-00002.safetensors").write_bytes(data[:101])
    (folder / "model-00002-of-00002.safetensors").write_bytes(data[101:])
    assert len({first, second, fingerprint(str(folder), "float32")}) == 3


def test_weights_of_another_format_are_read_where_there_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    first = fingerprint(str(folder), "float32")
    (folder / "pytorch_model.bin").write_bytes(b"other")
    assert fingerprint(str(folder), "float32") != first
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match="no weights in"):
        fingerprint(str(folder), "float32")


def test_an_index_counts_and_names_the_files_that_do(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(data)
        (folder / f"other-{number}.safetensors").write_bytes(data + b"x")
    index = folder / "model.safetensors.index.json"

    def of(*names: str) -> str:
        index.write_text(json.dumps({"weight_map": {str(place): name for place, name in enumerate(names)}}))
        return fingerprint(str(folder), "float32")

    mine = of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    assert mine != of("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")
    others = of("other-1.safetensors", "other-2.safetensors")
    assert others != mine
    (folder / "other-2.safetensors").write_bytes(data + b"y")
    assert fingerprint(str(folder), "float32") != others
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert of("other-1.safetensors") == fingerprint(str(folder), "float32")
    with pytest.raises(ModelError, match="cannot be read"):
        of("missing.safetensors")
    index.write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        fingerprint(str(folder), "float32")


def test_files_that_are_replaced_while_they_are_loaded_are_not_served(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, load = ModelConfig(model=str(folder), dtype="float32"), main.load_model
    _, weights = main.load_with_fingerprint(section, torch.device("cpu"))
    assert weights == fingerprint(str(folder), "float32")

    def replaced(*args: Any) -> Any:
        lm = load(*args)
        shutil.copyfile(folder / "model.safetensors", folder / "new")
        (folder / "new").rename(folder / "model.safetensors")
        return lm

    monkeypatch.setattr(main, "load_model", replaced)
    with pytest.raises(ModelError, match="changed while it was loaded: start again"):
        main.load_with_fingerprint(section, torch.device("cpu"))
