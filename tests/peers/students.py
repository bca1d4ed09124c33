"""What stands for the student's engine in the trainers' loops: generate functions, named by `--custom-generate-...`."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import numpy as np

from tests import tiny

BAD = 5  # the sample whose tokens are no ids, by `spoilt`
CUT = 6  # the sample that is aborted before its first token, by `cut_off`


def _tokens(seed: int, length: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(5, tiny.VOCABULARY, length)]


async def plain(args: Any, sample: Any, sampling_params: Any) -> Any:
    """A prompt of 6 tokens, and 3 to 9 of a response; the grade is in the metadata."""
    await asyncio.sleep(0.002 * (sample.index % 3))
    number = sample.index or 0
    sample.response_length = 3 + number % 7
    sample.tokens = _tokens(number, 6 + sample.response_length)
    sample.response = "r" * sample.response_length
    sample.rollout_log_probs = [-1.0] * sample.response_length
    sample.metadata = {**(sample.metadata or {}), "grade": float(number % 2)}
    sample.status = type(sample).Status.COMPLETED
    return sample


async def spoilt(args: Any, sample: Any, sampling_params: Any) -> Any:
    sample = await plain(args, sample, sampling_params)
    if sample.index == BAD:
        sample.tokens[-1] = 2.5
    return sample


async def cut_off(args: Any, sample: Any, sampling_params: Any) -> Any:
    sample = await plain(args, sample, sampling_params)
    if sample.index == CUT:
        sample.tokens, sample.response_length, sample.response, sample.rollout_log_probs = sample.tokens[:6], 0, "", []
        sample.status = type(sample).Status.TRUNCATED
    return sample


async def several(args: Any, sample: Any, sampling_params: Any) -> Any:
    """One to three samples of one rollout, as an agent's turns are."""
    sample = await plain(args, sample, sampling_params)
    parts = [copy.deepcopy(sample) for _ in range(1 + sample.index % 3)]
    for part in parts:
        part.rollout_id = sample.index
    return parts


def grade(args: Any, sample: Any) -> float:
    return float(sample.metadata["grade"])
