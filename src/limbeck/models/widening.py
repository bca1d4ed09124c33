"""A model of narrow weights run in float32, a module at a time: what rounding is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from limbeck.models.causal_lm import CausalLM

NARROW = (torch.bfloat16, torch.float16)


@contextmanager
def in_float32(lm: CausalLM) -> Iterator[None]:
    """Every module with its parameters in float32 while it runs: one module's at a time, where no gradient is kept."""

    def widen(module: nn.Module, args: Any) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in NARROW:
                module.__dict__[name] = parameter.float()  # found before the parameter itself

    def narrow(module: nn.Module, args: Any, output: Any) -> None:
        for name in module._parameters:
            module.__dict__.pop(name, None)

    holders = [module for module in lm.body.modules() if module._parameters]
    hooks: list[Any] = [module.register_forward_pre_hook(widen) for module in holders]
    hooks += [module.register_forward_hook(narrow, always_call=True) for module in holders]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
