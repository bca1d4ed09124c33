"""What resuming a learner takes beside its weights: the optimizer's state, and a proof that the weights belong to it.

    model/                 full weights: an ordinary Hugging Face folder
    adapter/               with LoRA, in its place: the adapter in peft's format
    learner.safetensors    version, optimizer state, the first values of every weight that is not in adapter/

Weights are loaded with the model. A few values of each are kept beside the optimizer's state, so that a state is
never taken up for other weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from limbeck.errors import RunError
from limbeck.learners.adapters import LoraAdapters
from limbeck.learners.optimizer import MASTER
from limbeck.learners.process_group import Ranks
from limbeck.learners.tensor_file import Spec, write_tensors
from limbeck.models.causal_lm import CausalLM, first_line
from limbeck.models.shards import like, local, rows_here, whole
from limbeck.models.widening import NARROW

MODEL_FOLDER, ADAPTER_FOLDER, LEARNER_FILE = "model", "adapter", "learner.safetensors"
OPTIMIZER, FIRST = "optimizer/", "first_values/"  # of names in the state file
FIRST_VALUES = 8

Parameters: TypeAlias = Mapping[str, nn.Parameter]


def weights_of(lm: CausalLM, adapters: LoraAdapters | None) -> dict[str, nn.Parameter]:
    """The parameters that a checkpoint keeps the first values of: all, or those of the base."""
    adapted = {} if adapters is None else adapters.parameters()
    return {name: parameter for name, parameter in lm.model.named_parameters() if name not in adapted}


def save_state(
    path: Path,
    version: int,
    optimizer: torch.optim.Optimizer,
    trained: Parameters,
    weights: Parameters,
    ranks: Ranks | None = None,
) -> None:
    """Optimizer state of the parameters `trained`, and the first values of `weights`; by the first of several ranks."""
    ranks = ranks or Ranks()
    parts = {
        f"{OPTIMIZER}{key}/{name}": value
        for name, parameter in trained.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    first = {f"{FIRST}{name}": value for name, value in _first_values(weights, ranks).items()}
    specs = {name: Spec(tensor.dtype, tuple(tensor.shape)) for name, tensor in (parts | first).items()}
    stream = ((name, whole(tensor)) for name, tensor in (parts | first).items())

    def write() -> None:
        try:
            if ranks.is_first:
                write_tensors(path, specs, stream, {"version": str(version)})
        finally:
            for _ in stream:  # the others wait for this rank's part in each
                pass

    ranks.together(write)


def restore_state(
    path: Path, optimizer: torch.optim.Optimizer, trained: Parameters, weights: Parameters, ranks: Ranks | None = None
) -> int:
    """Take up what `save_state` wrote; the version it is of. Raises `RunError` where it is of something else.

    However many ranks wrote it, each of these reads its rows.
    """
    with _opened(path) as file:
        version = _version(path, file)
        _check_weights(path, file, weights, ranks or Ranks())
        for full_name in file.keys():  # noqa: SIM118 (not a mapping)
            if full_name.startswith(OPTIMIZER):
                key, _, name = full_name.removeprefix(OPTIMIZER).partition("/")
                if name not in trained:
                    raise RunError(f"{path} has state for a weight {name!r} that the student does not train")
                optimizer.state[trained[name]][key] = _read_state(path, file, full_name, key, name, trained[name])
    for name, parameter in trained.items():
        if (state := optimizer.state.get(parameter)) and (MASTER in state) != (parameter.dtype in NARROW):
            raise RunError(
                f"{path} has {'a' if MASTER in state else 'no'} float32 master of {name!r}, which is trained in "
                f"{parameter.dtype} here. Resume with the student.dtype that the run was started with."
            )
    return version


def _read_state(path: Path, file: Any, full_name: str, key: str, name: str, parameter: nn.Parameter) -> Tensor:
    """One tensor of the optimizer's state, or this rank's rows of it."""
    given = file.get_slice(full_name)
    expected = [] if key == "step" else list(parameter.shape)
    if list(given.get_shape()) != expected:
        raise RunError(f"{path} has {key!r} of {name!r} in shape {list(given.get_shape())}, expected {expected}")
    value: Tensor = given[rows_here(parameter)] if expected else file.get_tensor(full_name)
    if not value.is_floating_point():
        raise RunError(f"{path} has {key!r} of {name!r} in {value.dtype}, expected floating point")
    value = value.to(parameter.device, copy=True)  # not a part of the file, which may be replaced
    return like(parameter, value) if expected else value


def check_weights(path: Path, weights: Parameters) -> None:
    """Raises `RunError` where the state in `path` belongs to other weights."""
    with _opened(path) as file:
        _version(path, file)
        _check_weights(path, file, weights, Ranks())


def _check_weights(path: Path, file: Any, weights: Parameters, ranks: Ranks) -> None:
    names = [name.removeprefix(FIRST) for name in file.keys() if name.startswith(FIRST)]  # noqa: SIM118
    if odd := sorted(set(names) ^ weights.keys()):
        raise RunError(f"{path} is of a student with other weights: {odd[0]!r} is in one of them only")
    for name, value in _first_values(weights, ranks).items():
        if not torch.equal(file.get_tensor(f"{FIRST}{name}"), value):
            raise RunError(
                f"{path} belongs to other weights than the student's: {name!r} differs. Load the student from the "
                f"checkpoint's {MODEL_FOLDER}/, or, with learner.lora, from the base that the run began with."
            )


def _first_values(weights: Parameters, ranks: Ranks) -> dict[str, Tensor]:
    """Of each weight, on every rank."""
    found = torch.zeros(len(weights), FIRST_VALUES, dtype=torch.float64)
    for row, parameter in zip(found, weights.values(), strict=True):
        first = rows_here(parameter).start * parameter[:1].numel() if parameter.ndim else 0
        own = local(parameter).detach().flatten()[: max(0, FIRST_VALUES - first)]
        row[first : first + len(own)] = own.to(row)
    found = ranks.sum(found)
    return {
        name: row[: min(FIRST_VALUES, parameter.numel())].to(parameter.dtype)
        for row, (name, parameter) in zip(found, weights.items(), strict=True)
    }


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise RunError(f"cannot read the learner's state {path}: {first_line(error)}") from error


def _version(path: Path, file: Any) -> int:
    try:
        return int((file.metadata() or {})["version"])
    except (KeyError, ValueError):
        raise RunError(f"{path} does not say how many updates it is of: it is not a learner's state") from None
