"""An ordinary Hugging Face model folder, written from a stream of tensors, one of them in memory at a time."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from limbeck.learners.process_group import Ranks
from limbeck.learners.tensor_file import Spec, write_tensors
from limbeck.models.causal_lm import CausalLM
from limbeck.models.folder import INDEX, WHOLE

SHARD_BYTES = 4 * 2**30
STALE = re.compile(r"model(-\d{5})?(-of-\d{5})?\.safetensors(\.index\.json)?")  # of a model that was here before


def write_model(
    lm: CausalLM,
    shapes: Mapping[str, torch.Size],
    tensors: Iterator[tuple[str, Tensor]],
    folder: Path,
    dtype: torch.dtype,
    ranks: Ranks,
) -> None:
    """`tensors` under their Hugging Face names, with config, generation config and tokenizer.

    `shapes` are theirs, in their order. The first of several ranks writes; the others take part in what it is given.
    Of tied weights the first is written: transformers ties the others again.
    """
    tied = _tied_names(lm)
    specs = {name: Spec(dtype, tuple(shape)) for name, shape in shapes.items() if name not in tied}

    def write() -> None:
        try:
            if ranks.is_first:
                folder.mkdir(parents=True, exist_ok=True)
                _write_shards(specs, ((name, tensor) for name, tensor in tensors if name not in tied), folder)
                _write_config(lm, folder, dtype)
        finally:
            for _ in tensors:  # the others wait for this rank's part in each
                pass

    ranks.together(write)


def _write_config(lm: CausalLM, folder: Path, dtype: torch.dtype) -> None:
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


def _write_shards(specs: Mapping[str, Spec], tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """One file, or several and an index where they are more than `SHARD_BYTES`."""
    for stale in folder.iterdir():
        if STALE.fullmatch(stale.name):
            stale.unlink()
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.bytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        path = folder / (WHOLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        write_tensors(path, shard, islice(tensors, len(shard)), {"format": "pt"})
        weight_map |= dict.fromkeys(shard, path.name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(spec.bytes for spec in specs.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
