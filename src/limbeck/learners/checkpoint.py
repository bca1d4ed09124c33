"""What resuming a learner takes beside its weights: the optimizer's state, and a proof that the weights belong to it.

    model/                 full weights: an ordinary Hugging Face folder
    adapter/               with LoRA, in its place: the adapter in peft's format
    learner.safetensors    version, optimizer state, the first values of every weight that is not in adapter/

Weights are loaded with the model. A few values of each are kept beside the optimizer's state, so that a state is
never taken up for other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from limbeck.errors import RunError
from limbeck.learners.adapters import LoraAdapters
from limbeck.models.causal_lm import CausalLM, first_line

MODEL_FOLDER, ADAPTER_FOLDER, LEARNER_FILE = "model", "adapter", "learner.safetensors"
OPTIMIZER, FIRST = "optimizer/", "first_values/"  # of names in the state file
FIRST_VALUES = 8

Parameters: TypeAlias = Mapping[str, nn.Parameter]


def weights_of(lm: CausalLM, adapters: LoraAdapters | None) -> dict[str, nn.Parameter]:
    """The parameters that a checkpoint keeps the first values of: all, or those of the base."""
    adapted = {} if adapters is None else adapters.parameters()
    return {name: parameter for name, parameter in lm.model.named_parameters() if name not in adapted}


def save_state(
    path: Path, version: int, optimizer: torch.optim.Optimizer, trained: Parameters, weights: Parameters
) -> None:
    """Optimizer state of the parameters `trained`, and the first values of `weights`."""
    state: dict[str, Tensor] = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{OPTIMIZER}{key}/{name}"] = value.detach().cpu().contiguous()
    state |= {f"{FIRST}{name}": _first_values(parameter) for name, parameter in weights.items()}
    save_file(state, path, metadata={"version": str(version)})


def restore_state(path: Path, optimizer: torch.optim.Optimizer, trained: Parameters, weights: Parameters) -> int:
    """Take up what `save_state` wrote; the version it is of. Raises `RunError` where it is of something else."""
    version, state = _read(path)
    _check_weights(path, state, weights)
    for full_name, value in state.items():
        if not full_name.startswith(OPTIMIZER):
            continue
        key, _, name = full_name.removeprefix(OPTIMIZER).partition("/")
        if name not in trained:
            raise RunError(f"{path} has state for a weight {name!r} that the student does not train")
        parameter = trained[name]
        expected = [] if key == "step" else list(parameter.shape)
        if list(value.shape) != expected:
            raise RunError(f"{path} has {key!r} of {name!r} in shape {list(value.shape)}, expected {expected}")
        if not value.is_floating_point():
            raise RunError(f"{path} has {key!r} of {name!r} in {value.dtype}, expected floating point")
        optimizer.state[parameter][key] = value.to(parameter.device)
    return version


def check_weights(path: Path, weights: Parameters) -> None:
    """Raises `RunError` where the state in `path` belongs to other weights."""
    _check_weights(path, _read(path)[1], weights)


def _check_weights(path: Path, state: Mapping[str, Tensor], weights: Parameters) -> None:
    kept = {name.removeprefix(FIRST): value for name, value in state.items() if name.startswith(FIRST)}
    if odd := sorted(kept.keys() ^ weights.keys()):
        raise RunError(f"{path} is of a student with other weights: {odd[0]!r} is in one of them only")
    for name, value in kept.items():
        if not torch.equal(value, _first_values(weights[name])):
            raise RunError(
                f"{path} belongs to other weights than the student's: {name!r} differs. Load the student from the "
                f"checkpoint's {MODEL_FOLDER}/, or, with learner.lora, from the base that the run began with."
            )


def _first_values(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:FIRST_VALUES].cpu().clone()


def _read(path: Path) -> tuple[int, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the learner's state {path}: {first_line(error)}") from error
    try:
        return int(metadata["version"]), state
    except (KeyError, ValueError):
        raise RunError(f"{path} does not say how many updates it is of: it is not a learner's state") from None
