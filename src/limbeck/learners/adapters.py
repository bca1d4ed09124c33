"""Low-rank adapters (LoRA) by `peft`: put into a model, merged tensor by tensor, saved and read in peft's own format.

    merged weight = W + (alpha / rank) * B A

The base is never changed: merging makes new tensors, and a checkpoint holds the adapter alone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from limbeck.config.learner import LoraConfig
from limbeck.errors import ModelError, RunError
from limbeck.learners.process_group import Ranks
from limbeck.models.causal_lm import CausalLM, first_line
from limbeck.models.shards import gathered, local, rows_here, whole
from limbeck.records import Adapter

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_NAME = "default"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, eq=False)
class LoraAdapters:
    """The LoRA layers that are in a model."""

    peft_model: PeftModel

    @property
    def record(self) -> Adapter:
        config = self._config
        targets = config.target_modules
        return Adapter(
            base=str(config.base_model_name_or_path),
            rank=config.r,
            alpha=config.lora_alpha,
            target_modules=targets if isinstance(targets, str) else tuple(sorted(targets)),
        )

    @property
    def _config(self) -> Any:
        return self.peft_model.peft_config[ADAPTER_NAME]

    def layers(self) -> dict[str, Any]:
        """peft's layers by the place of the module that each wraps: "model.layers.0.self_attn.q_proj"."""
        from peft.tuners.lora import LoraLayer

        modules = self.peft_model.get_base_model().named_modules()
        return {name: module for name, module in modules if isinstance(module, LoraLayer)}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The adapters' own, under the names they have in the model."""
        return {
            f"{place}.{name}": parameter
            for place, layer in self.layers().items()
            for name, parameter in layer.named_parameters()
            if not name.startswith("base_layer.")
        }

    def base(self) -> Iterator[tuple[str, Tensor, str | None]]:
        """The model's tensors under the names they have without adapters, and where the layer is that adds to them."""
        layers = self.layers()
        for name, tensor in self.peft_model.get_base_model().state_dict().items():
            place = next((place for place in _places(name) if place in layers), None)
            if place is None:
                yield name, tensor, None
            elif (inner := name.removeprefix(f"{place}.")).startswith("base_layer."):
                own = inner.removeprefix("base_layer.")
                yield f"{place}.{own}", tensor, place if own == "weight" else None

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """The same, whole, with what adapters add to them, one at a time."""
        layers = self.layers()
        for name, tensor, place in self.base():
            value = whole(tensor)
            if place is not None:
                adapter = [part for key, part in layers[place].named_children() if key != "base_layer"]
                with torch.no_grad(), gathered(*adapter):
                    value = value + layers[place].get_delta_weight(ADAPTER_NAME)
            yield name, value

    def save(self, folder: Path, ranks: Ranks, dtype: torch.dtype = torch.float32) -> None:
        """The adapter in peft's format: `PeftModel.from_pretrained(base, folder)` reads it."""
        tensors = {name: whole(tensor.detach()).to(dtype).contiguous() for name, tensor in self._stored().items()}
        ranks.together(lambda: self._write(folder, tensors) if ranks.is_first else None)

    def _write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        config = copy.copy(self._config)
        config.inference_mode = True
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(config.target_modules)  # a set would be written in any order
        config.save_pretrained(str(folder))

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote. Raises `RunError` where it is not of these adapters."""
        given = read_adapter_config(folder)
        for key in ("r", "lora_alpha"):
            if given.get(key) != getattr(self._config, key):
                raise RunError(
                    f"{folder / CONFIG_FILE} has {key} = {given.get(key)!r}, but the recipe has "
                    f"{getattr(self._config, key)!r}. Resume with the recipe that the run was started with."
                )
        path, live = folder / WEIGHTS_FILE, self._stored()
        tensors = _read_tensors(path)
        if odd := sorted(live.keys() ^ tensors.keys()):
            where = "the student's adapters lack it" if odd[0] in tensors else "it is missing there"
            raise RunError(f"{path} does not fit learner.lora: {len(odd)} tensors differ, such as {odd[0]!r}: {where}.")
        for name, tensor in live.items():
            if tensor.shape != tensors[name].shape:
                raise RunError(
                    f"{path} has {name!r} of shape {list(tensors[name].shape)}, expected {list(tensor.shape)}. Resume "
                    "with the recipe that the run was started with."
                )
            local(tensor).copy_(tensors[name][rows_here(tensor)])

    def _stored(self) -> dict[str, Tensor]:
        """The live tensors under the names of peft's format."""
        from peft import get_peft_model_state_dict

        stored: dict[str, Tensor] = get_peft_model_state_dict(
            self.peft_model, adapter_name=ADAPTER_NAME, save_embedding_layers=False
        )
        return stored


def add_adapters(lm: CausalLM, lora: LoraConfig) -> LoraAdapters:
    """Put LoRA layers into the model; only they train.

    Raises `ModelError` without `peft`, for modules that are not there, and for adapters on the output head or on
    a matrix that it shares.
    """
    peft = _peft()
    head = lm.head_layer().weight
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0
    )
    try:
        adapters = LoraAdapters(peft.get_peft_model(lm.model, config))
    except ValueError as error:
        raise ModelError(f"learner.lora.target_modules = {lora.target_modules!r} for {lm.name}: {error}") from error
    lm.head()  # not a plain matrix any more if it has an adapter
    for place, layer in adapters.layers().items():
        if why := _unmergeable(layer.base_layer, head):
            raise ModelError(
                f"learner.lora.target_modules = {lora.target_modules!r}: {place!r} of {lm.name} {why}. Leave it out."
            )
    return adapters


def _unmergeable(module: nn.Module, head: Tensor) -> str | None:
    """Why a module's matrix plus an adapter's would not be the adapted module; None where it is."""
    from transformers.pytorch_utils import Conv1D

    if any(parameter is head for parameter in module.parameters()):
        return "shares its matrix with the output head (tied embeddings), which a merged adapter would change as well"
    if type(module).forward not in (nn.Linear.forward, nn.Embedding.forward, Conv1D.forward):
        return f"is a {type(module).__name__}, which does more than multiply by a matrix"
    return None


def open_adapters(lm: CausalLM, folder: Path) -> LoraAdapters:
    """Put the saved adapter of `folder` into its base. Raises `ModelError` and `RunError`."""
    peft = _peft()
    read_adapter_config(folder)
    _read_tensors(folder / WEIGHTS_FILE)
    try:
        return LoraAdapters(peft.PeftModel.from_pretrained(lm.model, str(folder)))
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the adapter in {folder} does not fit {lm.name}: {first_line(error)}") from error


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Raises `RunError` where the folder has none."""
    path = folder / CONFIG_FILE
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"cannot read the adapter's {path}: {first_line(error)}") from error
    return config


def _places(name: str) -> Iterator[str]:
    """The modules above a tensor: "a.b" and "a" for "a.b.weight"."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the adapter's weights {path}: {first_line(error)}") from error
    return tensors


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise ModelError("learner.lora needs peft: pip install 'limbeck[lora]'") from None
    return peft
