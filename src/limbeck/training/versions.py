"""Which weights a step is sampled with, and those that are kept for it: a rule, not a timing.

    version_of(step=7, lag=2)     4: of update max(0, n - 1 - lag)

The engine holds one version at a time, and gets them in order. Whoever samples has it for himself meanwhile, and so has
whoever asks the teacher: in the order in which they asked, so what is asked follows from the rule too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from limbeck.files.names import step_name
from limbeck.protocols import Engine, Policy

POLICIES = "policies"  # of a checkpoint: the weights that are still to be sampled from, a folder each


def version_of(step: int, lag: int) -> int:
    """How many updates the weights have seen that step `step`, counted from 1, is sampled with."""
    return max(0, step - 1 - lag)


def versions_kept(made: int, lag: int) -> range:
    """Versions before `made`, after that many updates, that later steps are still sampled with.

    >>> versions_kept(made=5, lag=2)
    range(3, 5)
    """
    return range(max(0, made - lag), made)


class Turns:
    """One at a time, in the order in which they asked. Each turn knows for how many seconds nobody had it before."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()  # first come, first served
        self._free_since = time.perf_counter()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        async with self._lock:
            idle = time.perf_counter() - self._free_since
            try:
                yield idle
            finally:
                self._free_since = time.perf_counter()


class Versions:
    """The policies that are still to be sampled from, by version, and the engine, which holds version `loaded`."""

    def __init__(self, engine: Engine, lag: int = 0, loaded: int = 0) -> None:
        self.engine, self.lag, self.loaded = engine, lag, loaded
        self.sampling = Turns()  # who has the engine
        self.held: dict[int, Policy] = {}

    def begin(self, policies: Sequence[Policy]) -> None:
        """`policies` are those that a run samples from next, oldest first, and the engine holds the oldest."""
        self.loaded = policies[0].version
        if self.lag:
            self.held = {policy.version: policy for policy in policies}

    async def load(self, policy: Policy) -> None:
        """Sample from these weights from now on."""
        await self.engine.load(policy)
        self.loaded = policy.version

    async def load_held(self, version: int) -> None:
        """The same, of one that is held."""
        await self.load(self.held[version])

    def add(self, policy: Policy) -> None:
        """Keep it. It must be one that no update reaches."""
        self.held[policy.version] = policy

    def drop_before(self, made: int) -> None:
        """Let go of what no step after update `made` is sampled with."""
        oldest = versions_kept(made, self.lag).start
        self.held = {version: policy for version, policy in self.held.items() if version >= oldest}

    def save(self, folder: Path, made: int) -> None:
        """Write what a run that goes on after update `made` samples from, beside the learner's own weights.

        As they are held: whole weights in the student's dtype, which is the finest that a sampler has; with LoRA the
        adapter alone.
        """
        for version in versions_kept(made, self.lag):
            policy, place = self.held[version], policy_folder(folder, version)
            place.parent.mkdir(exist_ok=True)
            if policy.adapter is None:
                policy.save(place, policy.info.dtype)
            else:
                policy.save_adapter(place)


def policy_folder(checkpoint: Path, version: int) -> Path:
    """Where a checkpoint has the weights of `version`."""
    return checkpoint / POLICIES / step_name(version)
