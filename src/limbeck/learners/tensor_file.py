"""A safetensors file, written a tensor at a time. The header comes first, so their shapes have to be known before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """What a header says of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write_tensors(
    path: Path, specs: Mapping[str, Spec], tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]
) -> None:
    """`tensors` are those of `specs`, in any order and in any dtype. Raises `OSError`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    starts, end = {}, 0
    for name, spec in sorted(specs.items(), key=lambda item: -item[1].dtype.itemsize):  # each lies at its own multiple
        starts[name], end = end, end + spec.bytes
        offsets = [starts[name], end]
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            assert tuple(tensor.shape) == specs[name].shape, name
            file.seek(8 + len(text) + starts.pop(name))
            flat = tensor.detach().to(specs[name].dtype).contiguous().cpu().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
    assert not starts, f"{path} lacks {next(iter(starts))}"
