"""Modules of a trainer's own checkout, without the GPUs, the cluster and the servers that they import.

    loop = load("LIMBECK_SLIME", "slime.rollout.sglang_rollout")

What is not installed becomes a stand-in in `sys.modules`, whose names are mocks. Nothing of theirs is changed or kept.
"""

from __future__ import annotations

import importlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, ClassVar
from unittest.mock import MagicMock

import pytest

# What slime and miles import that needs a GPU, a cluster or a server, or that only their own environment has.
STAND_INS = ("ray", "sglang", "sglang_router", "megatron", "aiohttp", "pybase64", "pylatexenc", "wandb", "torchft")


class _StandIn(ModuleType):
    __path__: ClassVar[list[str]] = []
    __version__ = "9.9.9"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _decorator if (self.__name__, name) == ("ray", "remote") else MagicMock(name=f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value


def _decorator(decorated: Any = None, **_: Any) -> Any:
    """`@ray.remote` and `@ray.remote(...)`: the class itself."""
    return decorated if decorated is not None else lambda one: one


class _Finder:
    """Asked last, so whatever is installed is what it is."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in STAND_INS:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_finder = _Finder()


def load(variable: str, module: str) -> Any:
    """Skips the test where no checkout is named."""
    folder = os.path.abspath(os.environ[variable]) if os.environ.get(variable) else ""
    if not folder:
        pytest.skip(f"set {variable} to a checkout of {module.partition('.')[0]}")
    if not os.path.isdir(os.path.join(folder, module.partition(".")[0])):
        pytest.fail(f"{variable} = {folder} is no checkout of {module.partition('.')[0]}")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)  # type: ignore[arg-type]
    return importlib.import_module(module)


class Arguments(Namespace):
    """A trainer's arguments: what a test does not set is None, as most of their defaults are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class Prompts:
    """A data source of theirs: groups of pending samples, made by their own class, numbered as they number them."""

    def __init__(self, sample: Callable[..., Any], size: int, length: int = 6) -> None:
        self.sample, self.size, self.length = sample, size, length
        self.groups = 0
        self.returned: list[Any] = []

    def get_samples(self, count: int) -> list[Any]:
        groups = []
        for _ in range(count):
            first = self.groups * self.size
            groups.append([self.sample(group_index=self.groups, index=first + i, prompt="p") for i in range(self.size)])
            self.groups += 1
        return groups

    def add_samples(self, groups: list[Any]) -> None:
        self.returned += groups
