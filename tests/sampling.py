"""Rollouts straight from an engine, without a run around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from limbeck.engines.hf import InProcessEngine
from limbeck.learners.policy import LocalPolicy
from limbeck.records import Key, Prompt, Rollout, Sampled, SampleRequest, Sampling, single_turn
from limbeck.training.units import plan_units


async def sample_rollouts(
    engine: InProcessEngine, prompts: Sequence[Prompt], sampling: Sampling, samples: int = 1
) -> list[Rollout]:
    """`samples` of each prompt, in order, decoded in units as a run decodes them."""
    if engine.version is None:
        await engine.load(LocalPolicy(engine.lm))
    keyed = [(prompt, Key(prompt.id, 0, number)) for prompt in prompts for number in range(samples)]
    requests = [SampleRequest(key, np.array(prompt.token_ids, dtype=np.int64), sampling) for prompt, key in keyed]
    rollouts: dict[int, Rollout] = {}
    for unit in plan_units(requests, engine.max_rows):
        for index, answer in zip(unit, await engine.sample([requests[i] for i in unit]), strict=True):
            assert isinstance(answer, Sampled)
            rollouts[index] = single_turn(*keyed[index], answer, sampling)
    return [rollouts[index] for index in range(len(keyed))]
