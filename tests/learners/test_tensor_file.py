"""A safetensors file written a tensor at a time is what safetensors itself reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from limbeck.learners.tensor_file import Spec, write_tensors


def test_it_is_read_back_whatever_the_order_and_dtypes(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.randn(3, 5).bfloat16(),
        "step": torch.tensor(3.0),
        "ids": torch.arange(7),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(4, 6).t(),
        "wide": torch.randn(2, dtype=torch.float64),
        "mask": torch.tensor([True, False, True]),
    }
    specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    write_tensors(tmp_path / "file", specs, iter(tensors.items()), {"version": "3"})
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"version": "3"}


def test_what_is_missing_is_not_left_out_in_silence(tmp_path: Path) -> None:
    specs = {"one": Spec(torch.float32, (2,)), "other": Spec(torch.float32, (2,))}
    with pytest.raises(AssertionError, match="lacks other"):
        write_tensors(tmp_path / "file", specs, [("one", torch.zeros(2))], {})
