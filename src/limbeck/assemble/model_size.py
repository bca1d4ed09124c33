"""How large a model is, from its config.json and the headers of its files: nothing of it is loaded.

    size = model_size(recipe.student, recipe.learner.lora)
    size.parameters, size.weights, size.adapters

The model is made on torch's meta device, where tensors have shapes and no memory. So the counts are those of the model
that a run loads, whatever its architecture: tied matrices count once, adapters are put in by `peft` itself.
"""

from __future__ import annotations

import json
import struct
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LoraConfig
from limbeck.errors import ModelError
from limbeck.learners.adapters import add_adapters
from limbeck.models.causal_lm import CausalLM, first_line
from limbeck.models.folder import INDEX, bounded, check_files, read_json
from limbeck.models.llama import LlamaParts, parts_of
from limbeck.models.loading import read_config, resolve
from limbeck.models.spread import blocks_of

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOST_HEADER = 2**27  # bytes of a safetensors header: the format's own limit is 100 MB


@dataclass(frozen=True)
class ModelSize:
    """Counts of a model. `held` and `bytes_each` are bytes of one number: as its weights are held, as a pass computes.

    `in_files` are the bytes of weights that stay as their files hold them (quantised).
    """

    name: str
    held: int
    parameters: int
    block: int  # parameters of the largest block: what is gathered at a time
    outside: int  # parameters of no block: embedding, last norm, head
    rows: int  # of the output head
    width: int
    layers: int
    inner: int  # width of the feed-forward layer
    heads: int
    kv_heads: int
    head_width: int
    shares_prompts: bool  # a prompt goes through the model once for all of its samples
    fused: bool  # by Limbeck's own passes, which keep less: built like Llama, and without adapters
    context: int | None = None
    adapters: int = 0  # parameters of the adapters, which are in none of the counts above
    in_files: int | None = None

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.parameters * self.held if self.in_files is None else self.in_files

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.rows * self.width

    def cache(self, bytes_each: int) -> int:
        """Bytes of the keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_width * bytes_each

    def kept(self, bytes_each: int, checkpointing: bool = False) -> int:
        """Bytes of one token that wait for the backward pass, of all blocks.

        Of a block, Limbeck's pass keeps (`models/ops.py`) two normed inputs (2 d), rotated queries, what attention gave
        and its copy in the order of tokens (3 q), keys and values (2 k), gate and up (2 n). Through transformers there
        are the states around each norm (4 d) and the activated gate and its product (2 n) besides; Korthikanti et al.
        2022, equation 1, counts the like. With checkpointing, what enters each block, and all of one block.
        """
        q, k = self.heads * self.head_width, self.kv_heads * self.head_width
        block = 2 * self.width + 3 * q + 2 * k + 2 * self.inner
        if not self.fused:
            block += 4 * self.width + 2 * self.inner
        return bytes_each * (self.layers * self.width + block if checkpointing else self.layers * block)

    def backward(self, bytes_each: int) -> int:
        """Bytes of one token while the gradient passes a block: gate, up and what they are made from (4 n)."""
        return bytes_each * (4 * self.inner + 2 * self.width)

    def passing(self, bytes_each: int) -> int:
        """Bytes of one token of a pass that keeps nothing: gate and up, the states, their norm and the output."""
        return bytes_each * (2 * self.inner + 3 * self.width)


def model_size(section: ModelConfig, lora: LoraConfig | None = None) -> ModelSize:
    """Of the model that a recipe's table names, with the adapters that `lora` would put into it.

    Raises `ModelError` for a folder that is not there or contradicts itself, for a config.json that cannot be read,
    and for modules that `lora` names and the model has not.
    """
    path = resolve(section.model)
    folder = Path(path)
    if folder.is_dir():
        check_files(folder)
    config = read_config(section.model, path)
    with bounded(section.model, folder):
        size = size_of_config(section.model, config, BYTES[section.dtype], lora)
    return size if getattr(config, "quantization_config", None) is None else _as_in_files(size, folder)


def size_of_config(name: str, config: Any, held: int, lora: LoraConfig | None = None) -> ModelSize:
    """Of the model that transformers makes of `config`. Raises `ModelError` where it makes none."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # ValueError, KeyError, the model class's own
        if isinstance(error, ModelError) or type(error).__name__ == "_TooLargeError":
            raise
        raise ModelError(f"no model can be made of the config.json of {name!r}: {first_line(error)}.") from error
    text = config.get_text_config()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    heads = text.num_attention_heads
    head = model.get_output_embeddings()
    lm = CausalLM(name, model, None, vocabulary=head.weight.shape[0])
    like_llama = isinstance(parts_of(lm), LlamaParts)
    adapters = 0 if lora is None else _adapters(lm, lora)
    return ModelSize(
        name=name,
        held=held,
        parameters=parameters,
        block=max(blocks, default=0),
        outside=parameters - sum(blocks),
        rows=head.weight.shape[0],
        width=text.hidden_size,
        layers=text.num_hidden_layers,
        inner=_inner(text),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
        shares_prompts=like_llama,
        fused=like_llama and lora is None,
        context=lm.context,
        adapters=adapters,
    )


def _adapters(lm: CausalLM, lora: LoraConfig) -> int:
    with torch.device("meta"), warnings.catch_warnings():  # peft asks for a name that is another one in newer versions
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return sum(parameter.numel() for parameter in add_adapters(lm, lora).parameters().values())


def _inner(text: Any) -> int:
    """Width of the feed-forward layer; of a mixture of experts, of those that a token goes through together."""
    active = getattr(text, "num_experts_per_tok", None)
    each = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None)
    inner = each or getattr(text, "n_inner", None) or 4 * text.hidden_size  # GPT-2's default
    return int(inner) * int(active or 1)


def _as_in_files(size: ModelSize, folder: Path) -> ModelSize:
    """Quantised weights stay as they are stored: counted from the headers of the files, where they are here."""
    if not folder.is_dir():
        return size
    total = read_json(folder / INDEX).get("metadata", {}).get("total_size") if (folder / INDEX).exists() else None
    stored = total if isinstance(total, int) else sum(map(_tensor_bytes, sorted(folder.glob("*.safetensors"))))
    return replace(size, in_files=stored) if stored else size


def _tensor_bytes(path: Path) -> int:
    """Bytes of the tensors in a safetensors file, from its header. Raises `ModelError` where it has none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            table = json.loads(file.read(min(length, MOST_HEADER)))
        return sum(entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in table.items()
                   if name != "__metadata__")  # fmt: skip
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}. Copy or download it again.") from error
