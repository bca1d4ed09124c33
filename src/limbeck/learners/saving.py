"""An ordinary Hugging Face model folder, written from a stream of tensors: one shard of new ones at most in memory."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from limbeck.models.causal_lm import CausalLM
from limbeck.models.folder import INDEX, WHOLE

SHARD_BYTES = 4 * 2**30
STALE = re.compile(r"model(-\d{5})?(-of-\d{5})?\.safetensors(\.index\.json)?")  # of a model that was here before


def write_model(lm: CausalLM, tensors: Iterable[tuple[str, Tensor]], folder: Path, dtype: torch.dtype) -> None:
    """`tensors` under their Hugging Face names, with config, generation config and tokenizer.

    Of tied weights the first is written: transformers ties the others again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tied = _tied_names(lm)
    _write_shards(((name, tensor) for name, tensor in tensors if name not in tied), folder, SHARD_BYTES)
    config = copy.copy(lm.model.config)
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(lm.model).__name__]
    config.save_pretrained(folder)
    if lm.model.can_generate() and lm.model.generation_config is not None:
        lm.model.generation_config.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)


def _tied_names(lm: CausalLM) -> set[str]:
    """Names of weights that have another name before."""
    seen: set[int] = set()
    tied: set[str] = set()
    for name, parameter in lm.model.state_dict(keep_vars=True).items():
        if id(parameter) in seen:
            tied.add(name)
        seen.add(id(parameter))
    return tied


def _write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, shard_bytes: int) -> None:
    """One file, or several and an index where they are more than `shard_bytes`."""
    for stale in folder.iterdir():
        if STALE.fullmatch(stale.name):
            stale.unlink()
    shards: list[tuple[Path, list[str]]] = []
    pending: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal size
        path = folder / f"model-{len(shards) + 1:05d}.safetensors"
        save_file({name: _alone(tensor) for name, tensor in pending.items()}, path, {"format": "pt"})
        shards.append((path, list(pending)))
        pending.clear()
        size = 0

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > shard_bytes:
            flush()
        pending[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / WHOLE)
        return
    weight_map: dict[str, str] = {}
    for number, (path, names) in enumerate(shards, 1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: safetensors takes no two views of one storage."""
    tensor = tensor.detach().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
