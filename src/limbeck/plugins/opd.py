"""What the drop-ins for slime and miles share: a sample in, the teacher's log-probs at the rollout temperature out.

    async def reward_func(args, sample, **kwargs)                -> {"teacher_log_probs": [...], "task_reward": 1.0}
    def post_process_rewards(args, samples, **kwargs)            -> (raw rewards, rewards to train on)

Read from `args`: `rm_url` (the server), `rollout_temperature`, `reward_key`, and for normalising task rewards
`advantage_estimator`, `rewards_normalization`, `grpo_std_normalization`, `n_samples_per_prompt`. Of `sample`:
`tokens`, `response_length`, `reward`, `group_index`, and it is given `teacher_log_probs`.

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
import inspect
import math
import operator
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from limbeck.contract.check import LARGEST_VOCABULARY
from limbeck.contract.remote import prove_remote
from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.formatting import shown
from limbeck.records import Failure, TokenScores, request_of
from limbeck.teachers.connect import BACKENDS, connect
from limbeck.teachers.remote import RemoteTeacher

if TYPE_CHECKING:
    import torch

MIN_TOKENS = 8  # of a probe; a shorter sample is repeated
SCORES = "teacher_log_probs"
TASK = "task_reward"
NORMALISED = ("grpo", "gspo", "reinforce_plus_plus_baseline")
MIN_DEVIATION = 1e-6
SMALL_IDS = range(8)  # tokens of every vocabulary, for the probes of a sample that repeats itself
ROUTES = ("/generate", "/v1/completions", "/limbeck/score")
# Options of miles under which its trainer reads something else than `teacher_log_probs` of the server at `rm_url`.
UNSUPPORTED = ("opd_log_prob_top_k", "opd_teacher_urls", "opd_teacher_adapters")

_proven: dict[tuple[Any, ...], asyncio.Task[RemoteTeacher]] = {}


async def reward_func(args: Any, sample: Any, **kwargs: Any) -> dict[str, Any]:
    """Score one sample. Raises `LimbeckError` where its score cannot be had; nothing is put in its place."""
    for name in UNSUPPORTED:
        if given := getattr(args, name, None):
            raise RecipeError(
                f"{name} = {given!r} is not for this hook, which gives one teacher's log-probs of sampled tokens. "
                "Use miles's own hook against `limbeck serve MODEL --temperature T`."
            )
    task_reward = await _task_reward(args, sample)
    length = int(sample.response_length)
    if length == 0:
        return {SCORES: [], TASK: task_reward}
    tokens = _tokens(sample.tokens)
    if not 0 < length < len(tokens):
        raise DataError(f"a sample has {len(tokens)} tokens and a response of {length}; its prompt is missing")
    teacher = await _teacher(args, tokens)
    request = request_of(tokens, len(tokens) - length, _temperature(args), id="a sample")
    (scores,) = await teacher.score([request])
    if isinstance(scores, Failure):
        raise TeacherError(f"{scores.kind}: {scores.message}")
    assert isinstance(scores, TokenScores)
    if scores.temperature != request.temperature:
        raise TeacherError(
            f"teacher {teacher.name} scored at temperature {scores.temperature:g}, expected rollout_temperature = "
            f"{request.temperature:g}. Serve the model with `limbeck serve`, which is exact at any temperature."
        )
    return {SCORES: scores.logprobs.tolist(), TASK: task_reward}


def post_process_rewards(args: Any, samples: Sequence[Any], **kwargs: Any) -> tuple[list[float], list[float]]:
    """Give each sample its `teacher_log_probs`, and return task rewards: raw, and as the trainer wants them.

    Without a task reward both are zeros: the distillation term is the only signal.
    """
    rewards: list[float | None] = []
    for sample in samples:
        found = sample.reward
        if not isinstance(found, dict) or SCORES not in found:
            raise DataError(
                f"a sample's reward is {type(found).__name__}, expected what limbeck's reward_func returned"
            )
        sample.teacher_log_probs = _as_tensor(found[SCORES], int(sample.response_length))
        rewards.append(found[TASK])
    graded = [reward for reward in rewards if reward is not None]
    if graded and len(graded) < len(rewards):
        raise DataError(f"{len(graded)} of {len(rewards)} samples have a task reward: it must be all of them, or none")
    raw = graded or [0.0] * len(rewards)
    return raw, _normalised(args, samples, raw)


def _tokens(given: Any) -> list[int]:
    """Raises `DataError` for what is no list of token ids: a 1.7 would be scored as token 1."""
    try:
        return [operator.index(token) for token in given]
    except TypeError:
        raise DataError(f"a sample's tokens are {shown(given)}, expected a list of token ids") from None


def _as_tensor(values: Sequence[float], length: int) -> torch.Tensor:
    import torch

    if len(values) != length:
        raise DataError(f"a sample has {len(values)} teacher log-probs for a response of {length} tokens")
    return torch.tensor(values, dtype=torch.float32)


def _normalised(args: Any, samples: Sequence[Any], raw: list[float]) -> list[float]:
    """Group-normalised where the trainer would have done so: its own step is replaced by this hook."""
    estimator = getattr(args, "advantage_estimator", None)
    if not any(raw) or estimator not in NORMALISED or not getattr(args, "rewards_normalization", False):
        return raw
    by_deviation = getattr(args, "grpo_std_normalization", False) and estimator in ("grpo", "gspo")
    values, groups = np.array(raw), np.array(_groups(args, samples))
    for group in np.unique(groups):
        mine = groups == group
        values[mine] -= values[mine].mean()
        if by_deviation and mine.sum() > 1:
            values[mine] /= values[mine].std(ddof=1) + MIN_DEVIATION
    normalised: list[float] = values.tolist()
    return normalised


def _groups(args: Any, samples: Sequence[Any]) -> list[int]:
    """Which samples answer one prompt: by their `group_index`, else by their order."""
    named = [getattr(sample, "group_index", None) for sample in samples]
    if None not in named:
        return [int(group) for group in named if group is not None]
    size = int(args.n_samples_per_prompt)
    if len(samples) % size:
        raise DataError(
            f"{len(samples)} samples without a group_index are no multiple of n_samples_per_prompt = {size}"
        )
    return [place // size for place in range(len(samples))]


async def _task_reward(args: Any, sample: Any) -> float | None:
    """What the sample already has, else what LIMBECK_TASK_REWARD returns, else None."""
    given, key = sample.reward, getattr(args, "reward_key", None)
    if isinstance(given, dict):
        if SCORES in given:  # this hook has scored it before
            key = TASK
        if key not in given:
            raise DataError(f"a sample's reward is {given!r}. Name the task reward in it by --reward-key.")
        given = given[key]
    if given is not None:
        return _number(given, "a sample's reward")
    name = os.environ.get("LIMBECK_TASK_REWARD")
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        grade = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f"LIMBECK_TASK_REWARD = {name!r} is not package.module:function: {error}") from None
    value = grade(args, sample)
    return _number(await value if inspect.isawaitable(value) else value, f"the value of {name}")


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{what} is {shown(value)}, expected a finite number")
    return number


async def _teacher(args: Any, tokens: list[int]) -> RemoteTeacher:
    """The proven teacher of this server and temperature; proven once, by the first sample that comes."""
    loop = asyncio.get_running_loop()
    key = (loop, args.rm_url, _temperature(args))  # its connections live on this loop
    task = _proven.get(key)
    if task is None or (task.done() and (task.cancelled() or task.exception())):
        if len(tokens) < MIN_TOKENS:
            tokens = (tokens * MIN_TOKENS)[:MIN_TOKENS]
        task = _proven[key] = loop.create_task(_prove(args, tokens))
    return await asyncio.shield(task)


async def _prove(args: Any, tokens: list[int]) -> RemoteTeacher:
    kind = os.environ.get("LIMBECK_TEACHER_KIND", "sglang")
    if kind not in BACKENDS:
        raise RecipeError(f"LIMBECK_TEACHER_KIND = {kind!r}, expected one of {', '.join(BACKENDS)}")
    options: dict[str, Any] = {
        "baked": os.environ.get("LIMBECK_BAKED"),
        "token_env": os.environ.get("LIMBECK_TOKEN_ENV"),
        "retry_seconds": _number(os.environ.get("LIMBECK_RETRY_SECONDS", "300"), "LIMBECK_RETRY_SECONDS"),
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    # These trainers cannot mask a position, so none may be uncertain.
    try:
        section = BACKENDS[kind].config(url=_base(args.rm_url), max_rescale_dropped=0.0, **given)
    except ValidationError as error:
        raise RecipeError("; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())) from None
    client = connect("teacher", section, LARGEST_VOCABULARY, section.top_logprobs, counted=False)
    ids = list(dict.fromkeys([*tokens, *SMALL_IDS]))[:16]
    try:
        return RemoteTeacher(client, await prove_remote(client, [tokens], ids, _temperature(args)))
    except BaseException:
        await client.close()
        raise


def _base(url: Any) -> str:
    """The server of an `rm_url`, which names a route. Raises `RecipeError` for what is no text."""
    if not isinstance(url, str) or not url:
        raise RecipeError(f"rm_url is {shown(url)}, expected the address of the teacher's server, as --rm-url gives it")
    base: str = url.rstrip("/")
    return next((base.removesuffix(route) for route in ROUTES if base.endswith(route)), base)


def _temperature(args: Any) -> float:
    temperature = _number(args.rollout_temperature, "rollout_temperature")
    if temperature <= 0:
        raise RecipeError(f"rollout_temperature is {temperature}: at 0 the student has no distribution to distil into")
    return temperature
