"""A model that lies here whole, and one whose parameters are spread over the ranks of a process group: the same calls.

    inside(lm.model, function)     `function()` while the model's own parameters (embedding, last norm, head) are whole
    local(tensor), whole(tensor)   this rank's rows, and all of them; for `whole` every rank takes part

FSDP2 keeps the rows of each parameter on one rank, as a `DTensor`. It gathers the parameters of a module when a method
of it begins that FSDP knows, and lets go of them when it ends. So whatever reads parameters does so `inside` their
module: a block's own in the block, those of everything else in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

T = TypeVar("T")
METHOD = "run_inside"


def inside(module: nn.Module, function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` while the parameters that `module` itself holds are whole. Never within another of the same."""
    if not is_sharded(module):
        return function(*args)
    sharded: Any = module
    try:
        found: T = sharded.run_inside(function, *args)
    except BaseException:
        _let_go(module)
        raise
    if not torch.is_grad_enabled():  # no backward pass comes that would: an update would not reach them
        sharded.reshard()
    return found


def make_inside(module: nn.Module) -> None:
    """Let a module that is sharded be worked in by `inside`."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    setattr(module, METHOD, MethodType(_run, module))
    register_fsdp_forward_method(module, METHOD)


def _run(_module: nn.Module, function: Callable[..., T], *args: Any) -> T:
    return function(*args)


def _let_go(module: nn.Module) -> None:
    """After an exception in a pass: FSDP would believe itself in the middle of it, and gather nothing in the next.

    One that ends a block that is made again for the backward pass is none: so checkpointing stops where it has enough.
    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState

    outermost: Any = module
    if outermost._get_fsdp_state()._state_ctx.iter_forward_root is not outermost._get_fsdp_state():
        return
    for part in module.modules():
        if isinstance(part, FSDPModule):
            state = part._get_fsdp_state()
            state._training_state = TrainingState.IDLE
            state._state_ctx.iter_forward_root = None
            for group in state._fsdp_param_groups:
                group._training_state = TrainingState.IDLE
            part.reshard()


def is_sharded(model: nn.Module) -> bool:
    return hasattr(model, METHOD)


def local(tensor: Tensor) -> Tensor:
    """The rows that lie here."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows, on every rank. A collective."""
    if not isinstance(tensor, DTensor):
        return tensor
    rows: Any = tensor.detach()
    if rows.device.type != rows.device_mesh.device_type:  # offloaded
        rows = rows.to(rows.device_mesh.device_type)
    found: Tensor = rows.full_tensor()
    return found


def rows_here(tensor: Tensor) -> slice:
    """Which rows of a parameter lie here. Those of `torch.chunk`: so FSDP cuts."""
    if not isinstance(tensor, DTensor):
        return slice(0, tensor.shape[0] if tensor.ndim else None)
    each = -(-tensor.shape[0] // tensor.device_mesh.size())
    start = min(tensor.device_mesh.get_local_rank() * each, tensor.shape[0])
    return slice(start, min(start + each, tensor.shape[0]))


def like(tensor: Tensor, rows: Tensor) -> Tensor:
    """The rows that lie here as a tensor laid out like `tensor`."""
    if not isinstance(tensor, DTensor):
        return rows
    found: Tensor = DTensor.from_local(
        rows, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )
    return found


def largest(model: nn.Module, values: Tensor) -> Tensor:
    """The largest of each of `values` on any rank; those given where the model lies here whole. No NaN."""
    sharded = next((p for p in model.parameters() if isinstance(p, DTensor)), None)
    if sharded is None:
        return values
    found = values.to(sharded.device_mesh.device_type)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=sharded.device_mesh.get_group())
    return found


def gradients(model: nn.Module, value: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Of `value`, which is the same on every rank, those rows that lie here, as often as there are ranks."""
    if not is_sharded(model):
        return torch.autograd.grad(value, parameters, allow_unused=True)
    value.backward()  # type: ignore[no-untyped-call]
    found = tuple(None if p.grad is None else local(p.grad) for p in parameters)
    for parameter in model.parameters():
        parameter.grad = None
    return found


@contextmanager
def gathered(*modules: nn.Module) -> Iterator[None]:
    """The modules with their parameters whole, to be read. Collectives; without sharded ones nothing happens."""
    owners = [owner for module in modules for owner in module.modules()]
    named = [(owner, name, p) for owner in owners for name, p in owner._parameters.items() if p is not None]
    sharded = [(owner, name, p) for owner, name, p in named if isinstance(p, DTensor)]
    try:
        for owner, name, parameter in sharded:
            owner._parameters[name] = nn.Parameter(whole(parameter), requires_grad=False)
        yield
    finally:
        for owner, name, parameter in sharded:
            owner._parameters[name] = parameter


@contextmanager
def standing_in(values: Mapping[nn.Parameter, Tensor], to_run: bool = False) -> Iterator[None]:
    """Other values in the place of parameters, which come back untouched. They are only read, unless `to_run`.

    Nothing is copied, but where a sharded model is run: FSDP gathers from memory of its own, so values change places.
    """
    sharded = [(p, value) for p, value in values.items() if isinstance(p, DTensor)]
    live = {p: p._local_tensor for p, _ in sharded} if not to_run else {}
    data = {p: p.data for p in values if not isinstance(p, DTensor)}
    try:
        for parameter in data:
            parameter.data = values[parameter]
        for parameter, value in sharded:
            if to_run:
                _exchange(local(parameter), local(value))
            else:
                parameter._local_tensor = local(value)
        yield
    finally:
        for parameter, value in data.items():
            parameter.data = value
        for parameter, value in sharded:
            if to_run:
                _exchange(local(parameter), local(value))
            else:
                parameter._local_tensor = live[parameter]


@torch.no_grad()
def _exchange(one: Tensor, other: Tensor) -> None:
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)
