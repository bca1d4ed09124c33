"""Seconds for the weights of an update from the learner to two samplers, each in a process of its own.

    python -m benchmarks.fleet.weights

The tensors are shaped as those of SmolLM2-135M, in float32. They go the way they go in a run: the learner's process
puts them into the object store, and each sampler copies them from there into its own.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from limbeck.cluster.connect import connected
from limbeck.cluster.learners import Rank, RankGroup
from limbeck.cluster.samplers import Samplers
from limbeck.cluster.weights import Weights
from limbeck.cluster.worker import Worker

LAYERS, WIDTH, HIDDEN, KEYS, VOCABULARY = 30, 576, 1536, 192, 49152
SAMPLERS, TIMES = 2, 3


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"embedding": (VOCABULARY, WIDTH), "norm": (WIDTH,)}
    for layer in range(LAYERS):
        for name, rows in (("q", WIDTH), ("k", KEYS), ("v", KEYS), ("o", WIDTH), ("gate", HIDDEN), ("up", HIDDEN)):
            found[f"{layer}.{name}"] = (rows, WIDTH)
        found |= {f"{layer}.down": (WIDTH, HIDDEN), f"{layer}.norm_1": (WIDTH,), f"{layer}.norm_2": (WIDTH,)}
    return found


class Published:
    """Weights of one version, and what a learner says of them."""

    info = adapter = None

    def __init__(self, version: int, tensors: dict[str, Tensor]) -> None:
        self.version, self.tensors = version, tensors

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.tensors.items()


class Learner:
    """Other weights each time."""

    def __init__(self, where: str) -> None:
        self.tensors = {name: torch.zeros(shape) for name, shape in shapes().items()}
        self.version, self.ranks = 0, SimpleNamespace(is_first=True)

    async def publish(self) -> Published:
        self.version += 1
        for tensor in self.tensors.values():
            tensor.fill_(self.version)
        return Published(self.version, self.tensors)


class Sampler:
    def __init__(self) -> None:
        self.tensors = {name: torch.zeros(shape) for name, shape in shapes().items()}

    def load(self, weights: Weights) -> None:
        for name, tensor in weights.trained():
            self.tensors[name].copy_(tensor)

    def values(self) -> set[float]:
        return {float(tensor.flatten()[place]) for tensor in self.tensors.values() for place in (0, -1)}


async def _measure() -> dict[str, Any]:
    learner = RankGroup([Worker("learner 1", lambda: Rank(Learner), threads=1, restarts=False)])
    workers = [Worker(f"sampler {number}", Sampler, threads=1) for number in range(SAMPLERS)]
    samplers = Samplers(workers, max_rows=None)
    await asyncio.gather(learner.start(""), samplers.start())
    seconds = []
    for version in range(1, TIMES + 1):
        began = time.perf_counter()
        await samplers.load(await learner.publish())
        seconds.append(time.perf_counter() - began)
        assert [await worker.call("values") for worker in workers] == [{float(version)}] * SAMPLERS
    return {
        "what": "weights",
        "mb": round(samplers.transfer.bytes / 1e6),
        "seconds": round(statistics.median(seconds), 2),
    }


def measure(quick: bool) -> dict[str, Any]:
    """Median of three. `quick` is the same: the bound is of this size."""
    size = sum(torch.Size(shape).numel() for shape in shapes().values()) * 4
    with connected("local", {"cluster.learners": 1, "cluster.samplers": SAMPLERS}, 3 * size):
        return asyncio.run(_measure())


if __name__ == "__main__":
    print(json.dumps(measure(quick=True)))
