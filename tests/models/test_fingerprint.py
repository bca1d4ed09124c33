"""Other weights have another fingerprint: one bit is enough, wherever it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from limbeck.errors import ModelError
from limbeck.models.fingerprint import fingerprint, weight_files
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
