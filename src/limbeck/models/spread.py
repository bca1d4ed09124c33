"""A frozen model whose layers lie on several devices, one after the other; all else lies on the first.

What goes into a layer is moved to its device, and what comes out of the last one back. So whoever runs the model sees
one on the first device, head included, and the bits are those of one device of the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from limbeck.errors import ModelError
from limbeck.models.causal_lm import CausalLM
from limbeck.models.prefix_tree import Tree


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: the largest list of modules in it that is in no other."""
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    outermost = [part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    largest = max(outermost, key=lambda part: sum(p.numel() for p in part.parameters()), default=None)
    return [] if largest is None else list(largest)


def devices_for(name: str, device: torch.device, count: int) -> list[torch.device]:
    """`count` devices from `device` on. Raises `ModelError` where this process has not so many."""
    if count == 1:
        return [device]
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    first = device.index or 0
    if device.type != "cuda" or first + count > there:
        raise ModelError(
            f"{name} is to lie on devices = {count}, but this process has {max(0, there - first)} of kind "
            f"{device.type!r}. Leave teacher.devices out, or run on a machine with as many GPUs."
        )
    return [torch.device("cuda", first + number) for number in range(count)]


def spread(lm: CausalLM, devices: Sequence[torch.device]) -> None:
    """Move the layers of `lm` to `devices` in order, as many to each. Raises `ModelError` for fewer layers."""
    if len(devices) == 1:
        lm.model.to(devices[0])
        return
    blocks = blocks_of(lm.model)
    if len(blocks) < len(devices):
        raise ModelError(f"{lm.name} has {len(blocks)} layers, too few for devices = {len(devices)}. Lower it.")
    inside = {module for block in blocks for module in block.modules()}
    for module in lm.model.modules():
        if module not in inside:
            _move_own(module, devices[0])
    for number, block in enumerate(blocks):
        device = devices[number * len(devices) // len(blocks)]
        block.to(device)
        block.register_forward_pre_hook(partial(_move_inputs, device), with_kwargs=True)
    blocks[-1].register_forward_hook(partial(_move_output, devices[0]))
    lm.is_spread = True


def _move_own(module: nn.Module, device: torch.device) -> None:
    """Parameters and buffers that are this module's alone."""
    for parameter in module.parameters(recurse=False):
        parameter.data = parameter.data.to(device)
    for name, buffer in module.named_buffers(recurse=False):
        setattr(module, name, buffer.to(device))


def _move_inputs(
    device: torch.device, _module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _moved(args, device), _moved(dict(kwargs), device)


def _move_output(device: torch.device, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
    return _moved(output, device)


def _moved(values: Any, device: torch.device) -> Any:
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor | Tree) else value, values)
