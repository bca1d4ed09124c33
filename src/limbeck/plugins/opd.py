"""What the drop-ins for slime and miles share: a sample in, the teacher's log-probs at the rollout temperature out.

    async def reward_func(args, sample, **kwargs)                -> {"teacher_log_probs": [...], "task_reward": 1.0}
    def post_process_rewards(args, samples, **kwargs)            -> (raw rewards, rewards to train on)

Read from `args`: `rm_url` (the server), `rollout_temperature`, and for normalising task rewards
`advantage_estimator`, `rewards_normalization`, `grpo_std_normalization`, `n_samples_per_prompt`. Of `sample`:
`tokens`, `response_length`, `reward`, and it is given `teacher_log_probs`.

The contract runs once a server and temperature, on the first sample: a server that ignores the temperature is
refused, with the remedies, before anything is trained on. From the environment:

    LIMBECK_TEACHER_KIND    sglang (default), limbeck, vllm
    LIMBECK_BAKED           folder of the baked checkpoint the server holds
    LIMBECK_TASK_REWARD     package.module:function(args, sample) -> float, for a task reward beside distillation
    LIMBECK_RETRY_SECONDS   how long to wait for a server that is away (300)
    LIMBECK_TOKEN_ENV       the variable that holds the bearer token
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.check import LARGEST_VOCABULARY, SECTIONS
from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.records import Failure, Prompt, Rollout, Sampling, TokenScores
from limbeck.teachers.connect import remote_teacher
from limbeck.teachers.proof import prove_remote
from limbeck.teachers.remote import RemoteTeacher

if TYPE_CHECKING:
    import torch

LEAST_TOKENS = 8  # a shorter sample makes no probe
SCORES = "teacher_log_probs"
TASK = "task_reward"
NORMALISED = ("grpo", "gspo", "reinforce_plus_plus_baseline")
SMALLEST_DEVIATION = 1e-6

_proven: dict[tuple[Any, ...], asyncio.Task[RemoteTeacher]] = {}


async def reward_func(args: Any, sample: Any, **kwargs: Any) -> dict[str, Any]:
    """Score one sample. Raises `LimbeckError` where its score cannot be had: a filler would be trained on."""
    task_reward = await _task_reward(args, sample)
    length = int(sample.response_length)
    if length == 0:
        return {SCORES: [], TASK: task_reward}
    tokens = [int(token) for token in sample.tokens]
    if not 0 < length < len(tokens):
        raise DataError(f"a sample has {len(tokens)} tokens and a response of {length}; its prompt is missing")
    teacher = await _teacher(args, tokens)
    (scores,) = await teacher.score([_rollout(tokens, length, _temperature(args))])
    if isinstance(scores, Failure):
        raise TeacherError(f"{scores.kind}: {scores.message}")
    assert isinstance(scores, TokenScores)
    return {SCORES: scores.logprobs.tolist(), TASK: task_reward}


def post_process_rewards(args: Any, samples: Sequence[Any], **kwargs: Any) -> tuple[list[float], list[float]]:
    """Give each sample its `teacher_log_probs`, and return task rewards: raw, and as the trainer wants them.

    Without a task reward both are zeros: the signal is the distillation term alone.
    """
    raw = []
    for sample in samples:
        told = sample.reward
        if not isinstance(told, dict) or SCORES not in told:
            raise DataError(f"a sample's reward is {type(told).__name__}, expected what limbeck's reward_func returned")
        sample.teacher_log_probs = _as_tensor(told[SCORES], int(sample.response_length))
        raw.append(0.0 if told[TASK] is None else float(told[TASK]))
    return raw, _normalised(args, raw)


def _as_tensor(values: Sequence[float], length: int) -> torch.Tensor:
    import torch

    if len(values) != length:
        raise DataError(f"a sample has {len(values)} teacher log-probs for a response of {length} tokens")
    return torch.tensor(values, dtype=torch.float32)


def _normalised(args: Any, raw: list[float]) -> list[float]:
    """Group-normalised where the trainer would have done so: its own step is replaced by this hook."""
    if not any(raw):
        return raw
    estimator = getattr(args, "advantage_estimator", None)
    if estimator not in NORMALISED or not getattr(args, "rewards_normalization", False):
        return raw
    size = int(args.n_samples_per_prompt)
    if len(raw) % size:
        raise DataError(f"{len(raw)} rewards are no multiple of n_samples_per_prompt = {size}")
    groups = np.array(raw).reshape(-1, size)
    groups = groups - groups.mean(axis=1, keepdims=True)
    if getattr(args, "grpo_std_normalization", False) and estimator in ("grpo", "gspo"):
        groups = groups / (groups.std(axis=1, keepdims=True, ddof=1 if size > 1 else 0) + SMALLEST_DEVIATION)
    values: list[float] = groups.flatten().tolist()
    return values


async def _task_reward(args: Any, sample: Any) -> float | None:
    """A number the sample already has, else what LIMBECK_TASK_REWARD says, else None."""
    if isinstance(sample.reward, int | float):
        return float(sample.reward)
    name = os.environ.get("LIMBECK_TASK_REWARD")
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        grade = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"LIMBECK_TASK_REWARD = {name!r} is not package.module:function: {error}") from None
    value = grade(args, sample)
    return float(await value if asyncio.iscoroutine(value) else value)


async def _teacher(args: Any, tokens: list[int]) -> RemoteTeacher:
    """The proven teacher of this server and temperature; proven once, by whichever sample comes first."""
    loop = asyncio.get_running_loop()
    key = (id(loop), args.rm_url, _temperature(args))
    task = _proven.get(key)
    if task is None or (task.done() and (task.cancelled() or task.exception())):
        if len(tokens) < LEAST_TOKENS:
            tokens = (tokens * LEAST_TOKENS)[:LEAST_TOKENS]
        task = _proven[key] = loop.create_task(_prove(args, tokens))
    return await asyncio.shield(task)


async def _prove(args: Any, tokens: list[int]) -> RemoteTeacher:
    kind = os.environ.get("LIMBECK_TEACHER_KIND", "sglang")
    if kind not in SECTIONS:
        raise RecipeError(f"LIMBECK_TEACHER_KIND = {kind!r}, expected one of {', '.join(SECTIONS)}")
    options = {
        "baked": os.environ.get("LIMBECK_BAKED"),
        "token_env": os.environ.get("LIMBECK_TOKEN_ENV"),
        "retry_seconds": float(os.environ.get("LIMBECK_RETRY_SECONDS", "300")),
    }
    given = {name: value for name, value in options.items() if value is not None}
    # A sample here has no way to leave a position out, so none may be uncertain.
    section = SECTIONS[kind](url=_base(args.rm_url), max_rescale_dropped=0.0, probe_every=64, **given)
    teacher = remote_teacher("teacher", section, LARGEST_VOCABULARY, section.top_logprobs, 0)
    ids = list(dict.fromkeys(tokens))[:16]
    await prove_remote(teacher, [tuple(tokens)], ids, _temperature(args))
    return teacher


def _base(url: str) -> str:
    """The server of an `rm_url`, which names SGLang's route."""
    return url.rstrip("/").removesuffix("/generate")


def _temperature(args: Any) -> float:
    temperature = float(args.rollout_temperature)
    if not temperature > 0:
        raise RecipeError(f"rollout_temperature is {temperature}: at 0 the student has no distribution to distil into")
    return temperature


def _rollout(tokens: list[int], length: int, temperature: float) -> Rollout:
    start = len(tokens) - length
    return Rollout(
        prompt=Prompt("sample", tuple(tokens[:start])),
        sample=0,
        token_ids=np.array(tokens, dtype=np.int64),
        trained=np.arange(len(tokens)) >= start,
        behaviour_logprobs=np.zeros(length, np.float32),  # not read by a teacher
        policy_version=0,
        finish="stop",
        sampling=Sampling(temperature, length),
    )
