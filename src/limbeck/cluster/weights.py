"""Weights on their way from the learner to the samplers, through Ray's object store.

    weights = put(policy)              in rank 0; other ranks call it too, for gathering takes all of them
    for name, tensor in weights.trained()         in a sampler, without a copy where the store is on its node

They travel as they are held, tensor by tensor. A version stays for as long as somebody has its `Weights`.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError
from torch import Tensor

from limbeck.errors import LostLearnerError

AS_INTEGERS = {torch.bfloat16: torch.int16}  # numpy has no such numbers


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors of one version by reference: small, wherever it is sent."""

    version: int
    parts: tuple[tuple[str, torch.dtype, Any], ...]  # name, dtype, reference to the numpy array
    bytes: int
    seconds: float  # for gathering and putting

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """One at a time. To be read only: it is the memory that others read too."""
        for name, dtype, ref in self.parts:
            try:
                array = ray.get(ref)
            except ObjectLostError:
                raise LostLearnerError(
                    f"the weights of update {self.version} went with the process that had put them into the store."
                ) from None
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not writable")
                tensor = torch.from_numpy(array).view(dtype)
            yield name, tensor


def put(version: int, tensors: Iterable[tuple[str, Tensor]], keep: bool = True) -> Weights | None:
    """Without `keep` the tensors are only run through: what gathers them takes every rank."""
    began, size = time.perf_counter(), 0
    parts = []
    for name, tensor in tensors:
        if keep:
            array = tensor.detach().cpu().contiguous()
            size += array.nbytes
            parts.append((name, array.dtype, ray.put(array.view(AS_INTEGERS.get(array.dtype, array.dtype)).numpy())))
    return Weights(version, tuple(parts), size, time.perf_counter() - began) if keep else None
