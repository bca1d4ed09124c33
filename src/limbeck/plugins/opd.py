"""What the drop-ins for slime and miles share: a sample in, the teacher's log-probs at the rollout temperature out.

    async def reward_func(args, sample, **kwargs)         -> {"teacher_log_probs": [...], "task_reward": 1.0}
    def post_process_rewards(args, samples, **kwargs)     -> (raw rewards, rewards to train on)

A list of samples (`--group-rm`, several samples of one rollout) gives a list. Read from `args`: `rm_url` (the server),
or miles's `opd_teacher_urls` and `opd_teacher_key`; `hf_checkpoint` (for the student's tokenizer),
`rollout_temperature`, `rollout_top_p`, `rollout_top_k`, `reward_key`, and for normalising task rewards
`advantage_estimator`, `rewards_normalization`, `grpo_std_normalization`, `n_samples_per_prompt`. Of `sample`:
`tokens`, `response_length`, `reward`, `multimodal_inputs`, `group_index`, `rollout_id`, and it is given
`teacher_log_probs`. From the environment: what `proving` reads, and

    LIMBECK_TASK_REWARD     package.module:function(args, sample) -> float, for a task reward beside distillation

A score that cannot be had, a sample that cannot be read and a server whose contract is refused stop the trainer
(`stopping`): no sample is left out, and nothing is put in the place of a score.
"""

from __future__ import annotations

import asyncio
import logging
import operator
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from limbeck.errors import DataError, RecipeError, TeacherError
from limbeck.formatting import shown
from limbeck.plugins.proving import proven_teacher, rollout_temperature
from limbeck.plugins.rewards import FUNCTION, SCORES, TASK, name_of, normalised, task_reward
from limbeck.plugins.stopping import TrainingStopped, stopping
from limbeck.records import Failure, TokenScores, request_of

if TYPE_CHECKING:
    import torch

__all__ = ["TrainingStopped", "post_process_rewards", "reward_func"]

WHOLE = {"rollout_top_p": (1, None), "rollout_top_k": (-1, 0, None), "rollout_min_p": (0, None)}
EXACT_STRATEGIES = ("only-student", "intersection")  # of miles: both sides at the rollout temperature
FALLBACK = "default"  # of miles's `opd_teacher_urls`

_log = logging.getLogger(__name__)
_warned: set[str] = set()


async def reward_func(args: Any, sample: Any, **kwargs: Any) -> Any:
    """Score one sample, or each of a list. Raises `TrainingStopped` where a score cannot be had."""
    with stopping("limbeck's reward_func"):
        _check_settings(args)
        return await _rewards(args, sample)


def post_process_rewards(
    args: Any, samples: Sequence[Any], *, once_a_rollout: bool = False, **kwargs: Any
) -> tuple[list[float], list[float]]:
    """Give each sample its `teacher_log_probs`, and return task rewards: raw, and as the trainer wants them.

    Without a task reward both are zeros: the distillation term is the only signal. Raises `TrainingStopped`.
    """
    with stopping("limbeck's post_process_rewards"):
        raw = []
        for sample in samples:
            found = _own_reward(sample)
            sample.teacher_log_probs = _as_tensor(found[SCORES], sample)
            raw.append(float(found[TASK] or 0.0))
        return raw, normalised(args, samples, raw, once_a_rollout)


def _check_settings(args: Any) -> None:
    """Raises `RecipeError` for what would make the two sides of the KL different distributions."""
    for name, whole in WHOLE.items():
        if (given := getattr(args, name, None)) not in whole:
            raise RecipeError(
                f"{name} = {given!r} cuts the distribution that the student samples from, and the teacher's scores "
                f"are of its whole one. Leave --{name.replace('_', '-')} at its default, {whole[0]}."
            )
    if top := getattr(args, "opd_log_prob_top_k", None):
        strategy = getattr(args, "opd_top_k_strategy", "only-student")
        raise RecipeError(
            f"opd_log_prob_top_k = {top!r} is not for this hook, which gives log-probs of sampled tokens: set it to 0. "
            + (
                "miles's own hook has both sides of this strategy at one temperature"
                if strategy in EXACT_STRATEGIES
                else f"miles's own hook asks the student's router for the strategy {strategy!r}, and that answers at "
                f"temperature 1; it has both sides of {' and '.join(EXACT_STRATEGIES)} at one"
            )
            + " against `limbeck serve MODEL --temperature T`."
        )
    if adapters := getattr(args, "opd_teacher_adapters", None):
        raise RecipeError(f"opd_teacher_adapters = {adapters!r}: this hook knows no adapters. Serve each merged.")
    if (key := getattr(args, "reward_key", TASK)) != TASK and TASK not in _warned:
        _warned.add(TASK)
        _log.warning(
            "limbeck: reward_key is %r; where the trainer itself reads rewards (metrics, filters, evaluations) it "
            "finds a dictionary. Set --reward-key %s and --eval-reward-key %s.", key, TASK, TASK,
        )  # fmt: skip


async def _rewards(args: Any, sample: Any) -> Any:
    if not isinstance(sample, list | tuple):
        return await _reward(args, sample)
    given = [one.reward is not None for one in sample if not (isinstance(one, list | tuple) or _is_scored(one))]
    if any(given) and not all(given) and not os.environ.get(FUNCTION):
        raise DataError(
            f"{sum(given)} of {len(given)} samples of a group have a task reward: it must be all of them, or none"
        )
    tasks = [asyncio.ensure_future(_rewards(args, one)) for one in sample]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:  # of a group that has failed
            task.cancel()


async def _reward(args: Any, sample: Any) -> dict[str, Any]:
    reward = await task_reward(args, sample)
    length, tokens = _length(sample), _tokens(sample)
    if length == 0:
        return {SCORES: [], TASK: reward}
    for name in ("multimodal_inputs", "multimodal_train_inputs"):
        media = getattr(sample, name, None)
        if media and (not isinstance(media, dict) or not all(_is_empty(value) for value in media.values())):
            raise DataError(
                f"{name_of(sample)} has {name}: the teacher would score its text without what it is about. Images, "
                "audio and video are not supported by this hook."
            )
    if not 0 < length < len(tokens):
        raise DataError(
            f"{name_of(sample)} has {len(tokens)} tokens and a response of {length}: tokens must be prompt and response"
        )
    teacher = await proven_teacher(args, _url(args, sample), tokens)
    request = request_of(tokens, len(tokens) - length, rollout_temperature(args), id=name_of(sample))
    (scores,) = await teacher.score([request])
    if isinstance(scores, Failure):
        raise TeacherError(f"{name_of(sample)} cannot be scored: {scores.kind}: {scores.message}")
    assert isinstance(scores, TokenScores)
    if scores.temperature != request.temperature:
        raise TeacherError(
            f"teacher {teacher.name} scored at temperature {scores.temperature:g}, expected rollout_temperature = "
            f"{request.temperature:g}. Serve the model with `limbeck serve`, which is exact at any temperature."
        )
    return {SCORES: scores.logprobs.tolist(), TASK: reward}


def _is_scored(sample: Any) -> bool:
    """By this hook, perhaps in a rollout that was cut off."""
    return isinstance(sample.reward, dict) and {SCORES, TASK} <= sample.reward.keys()


def _is_empty(value: Any) -> bool:
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _url(args: Any, sample: Any) -> Any:
    """The sample's teacher. miles can name several: by the sample's metadata, or `default`."""
    given = getattr(args, "opd_teacher_urls", None)
    if not given:
        return getattr(args, "rm_url", None)
    urls: dict[str, str] = {}
    for entry in given:
        name, url = (part.strip() for part in str(entry).partition("=")[::2])
        if not name or not url or name in urls:
            raise RecipeError(
                f"opd_teacher_urls has {shown(entry)}, expected NAME=URL with another name for each teacher. Correct "
                "--opd-teacher-urls."
            )
        urls[name] = url
    metadata, key = getattr(sample, "metadata", None), getattr(args, "opd_teacher_key", None) or "opd_teacher"
    wanted = metadata.get(key) if isinstance(metadata, dict) else None
    chosen = urls.get(str(wanted)) or urls.get(FALLBACK)
    if not chosen:
        raise DataError(
            f"{name_of(sample)} names the teacher {wanted!r} in metadata[{key!r}], expected one of "
            f"{', '.join(sorted(urls))} of --opd-teacher-urls. Name it there, or add {FALLBACK}=URL."
        )
    return chosen


def _tokens(sample: Any) -> list[int]:
    """Raises `DataError` for what is no list of token ids: a 1.7 would be scored as token 1."""
    try:
        if any(isinstance(token, bool) for token in sample.tokens):
            raise TypeError
        return [operator.index(token) for token in sample.tokens]
    except TypeError:
        raise DataError(f"{name_of(sample)} has the tokens {shown(sample.tokens)}, expected a list of ids") from None


def _length(sample: Any) -> int:
    """Tokens of its response. Raises `DataError` for what is no count."""
    found = sample.response_length
    if isinstance(found, bool) or not hasattr(found, "__index__") or operator.index(found) < 0:
        raise DataError(f"{name_of(sample)} has response_length = {shown(found)}, expected a number of tokens")
    return operator.index(found)


def _own_reward(sample: Any) -> dict[str, Any]:
    """What `reward_func` returned for it. Raises `DataError` where it was never asked."""
    found = sample.reward
    if _is_scored(sample):
        return dict(found)
    if found is None and _length(sample) == 0 and not os.environ.get(FUNCTION):
        return {SCORES: [], TASK: 0.0}  # it was aborted before its first token: there is nothing to score
    status = getattr(getattr(sample, "status", None), "value", None)
    if found is None:
        raise DataError(
            f"{name_of(sample)} was never scored{f' (its status is {status!r})' if status else ''}: a trainer asks no "
            "hook for an aborted one. Leave such groups out with --dynamic-sampling-filter-path."
        )
    raise DataError(
        f"the reward of {name_of(sample)} is {shown(found)}, expected what limbeck's reward_func returned. Trainers "
        f"call it only for samples whose reward is None: let your generate function leave it so, and grade in "
        f"{FUNCTION}."
    )


def _as_tensor(values: Sequence[float], sample: Any) -> torch.Tensor:
    import torch

    length = _length(sample)
    if len(values) != length:
        raise DataError(
            f"{name_of(sample)} has {len(values)} teacher log-probs for a response of {length} tokens: it was changed "
            "after it was scored"
        )
    return torch.tensor(values, dtype=torch.float32)
