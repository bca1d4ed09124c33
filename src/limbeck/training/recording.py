"""Rollouts for people to look at: `rollouts/step-000010.parquet`, one row a rollout.

At a recorded step, a few of the step's own rollouts are kept (`source` "train") and a few held-out
prompts are sampled with the same randomness every time ("watch"), so that one sees the student change.
All numbers are of the policy that sampled, before the step's update, at the rollout temperature.

A file is there whole or not at all. When all of them outgrow `record.max_mb`, every second recorded
step is dropped and no longer recorded from then on, again and again, so they stay evenly spread.

List columns of the prompt are as long as the prompt; all others have one entry a token of the response, null
where the student did not sample that token. `turns` has one a turn of the response.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from limbeck.errors import LimbeckError
from limbeck.files.names import numbered, step_name
from limbeck.learners.valid_mask import apply_valid_mask
from limbeck.protocols import TokenNames
from limbeck.records import Floats, Rollout, Scored, Turn
from limbeck.reports import Top, Trace
from limbeck.seeding import derive_seed
from limbeck.training.collect import collect
from limbeck.training.run import Run
from limbeck.training.transcripts import question_of, text_of

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger("limbeck")

SUFFIX = ".parquet"
FORMAT = 1  # in the files' metadata as `limbeck_rollouts`
Source: TypeAlias = Literal["train", "watch"]


def is_recorded(run: Run, step: int) -> bool:
    """Whether this step's rollouts are kept: the first, the last, and those `record.every` apart."""
    section = run.recipe.record
    if run.names is None or section.every == 0 or section.rollouts_per_step + section.watch == 0:
        return False
    return step in (1, run.recipe.steps) or step % (section.every * _stride(run)) == 0


async def record(
    run: Run, step: int, samples: Sequence[Scored], watched: Awaitable[Sequence[Scored]] | None = None
) -> None:
    """Write what is kept of this step, and thin out the steps before where it is too much.

    `watched` prompts are sampled now where they are not given. What cannot be recorded is a warning: a run does not
    end for what people look at.
    """
    try:
        await _record(run, step, samples, await (sample_watched(run) if watched is None else watched))
    except Exception as error:  # whatever it is: a full disk, a token without a name, a part of the user's own
        logger.warning("the rollouts of step %d are not recorded: %s", step, _reason(error), exc_info=_bug(error))


async def _record(run: Run, step: int, samples: Sequence[Scored], watched: Sequence[Scored]) -> None:
    section = run.recipe.record
    chosen: list[tuple[Source, Scored]] = [("train", sample) for sample in _spread(samples, section.rollouts_per_step)]
    chosen += [("watch", sample) for sample in watched]
    chosen = [(source, sample) for source, sample in chosen if apply_valid_mask(sample).rollout.trained.any()]
    if not chosen:
        return
    traces = await run.learner.trace([sample for _, sample in chosen], section.top)
    rows = [_row(run, step, source, sample, trace) for (source, sample), trace in zip(chosen, traces, strict=True)]
    run.folder.write_file(f"rollouts/{step_name(step, SUFFIX)}", lambda path: write_rollouts(rows, path))
    _thin_out(run)


async def sample_watched(run: Run) -> list[Scored]:
    """The same held-out prompts with the same randomness at every recorded step."""
    prompts = run.task.held_out[: run.recipe.record.watch]
    if not prompts or not run.scores_samples:
        return []
    sampling = run.sampling(derive_seed(run.recipe.seed, "watch"))
    try:
        return (await collect(run, prompts, sampling)).samples
    except Exception as error:
        logger.warning(
            "watched prompts of step %d are not recorded: %s", run.step, _reason(error), exc_info=_bug(error)
        )
        return []


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, LimbeckError) else f"{type(error).__name__}: {error}"


def _bug(error: Exception) -> Exception | None:
    """An error that nobody raised on purpose: its traceback is worth showing."""
    return None if isinstance(error, LimbeckError) else error


def _spread(samples: Sequence[Scored], count: int) -> list[Scored]:
    """`count` of the samples at even distances: unbiased, as prompts come in random order."""
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _stride(run: Run) -> int:
    """How many recorded steps one is kept of: the first file after step 1 tells, so a resumed run knows."""
    every = run.recipe.record.every
    steps = [step for step, _ in numbered(run.folder.rollouts, SUFFIX)]
    if every == 1 and 2 in steps:  # it is kept of both: step 3 tells, once it has been there
        return 1 if 3 in steps or steps[-1] == 2 else 2
    first = next((step // every for step in steps if step > 1 and step % every == 0), 1)
    return first & -first  # the power of two in it, in case `every` was changed between


def _thin_out(run: Run) -> None:
    limit = run.recipe.record.max_mb * 2**20
    while True:
        files = numbered(run.folder.rollouts, SUFFIX)
        if sum(path.stat().st_size for _, path in files) <= limit:
            return
        distance = run.recipe.record.every * _stride(run) * 2
        dropped = [path for step, path in files[1:-1] if step % distance]
        if not dropped:  # the first, the newest, or nothing between them: there is no less to keep
            return
        for path in dropped:
            path.unlink()


def _row(run: Run, step: int, source: Source, sample: Scored, trace: Trace) -> dict[str, Any]:
    rollout, prompt = apply_valid_mask(sample).rollout, sample.rollout.prompt  # a masked token has no numbers
    assert run.names is not None
    start = next((turn.start for turn in rollout.turns if turn.role == "student"), len(prompt.token_ids))
    ids, response = rollout.token_ids, slice(start, None)
    prompt_ids = ids[:start].tolist()  # of a segment with a prefix of its own, that prefix
    mask = rollout.trained[response]
    numbers = {
        "student_logprob": trace.student_logprobs,
        "teacher_logprob": trace.teacher_logprobs,
        "behaviour_logprob": None if np.isnan(rollout.logprobs).any() else rollout.logprobs,
        "reverse_kl": trace.reverse_kl,
        "student_entropy": trace.student_entropy,
        "teacher_entropy": trace.teacher_entropy,
    }
    log_ratio = trace.student_logprobs - trace.teacher_logprobs
    exact = log_ratio if trace.reverse_kl is None else trace.reverse_kl
    return {
        "step": step,
        "source": source,
        "prompt_id": prompt.id,
        "task": prompt.task,
        "teacher": sample.scores.scorer,
        "sample": rollout.key.sample,
        "segment": rollout.segment,
        "segment_reason": rollout.reason,
        "policy_version": int(rollout.versions.min()),
        "temperature": rollout.sampling.temperature,
        "prompt_text": prompt.text or "".join(run.names(prompt.token_ids)),
        "question": question_of(prompt),
        "answer": prompt.answer,
        "response_text": run.decode(sample.rollout.response_ids),
        "finish": rollout.finish,
        "reward": sample.reward,
        "advantage": float(np.mean(sample.advantage)),
        "sampled_tokens": int(rollout.trained.sum()),
        "log_ratio_mean": float(log_ratio.mean()),
        "reverse_kl_mean": None if trace.reverse_kl is None else float(trace.reverse_kl.mean()),
        "kl_max": float(exact.max()),
        "prompt_ids": prompt_ids,
        "prompt_tokens": run.names(prompt_ids),
        "token_ids": ids[response].tolist(),
        "tokens": run.names(ids[response].tolist()),
        "special": [id_ in run.names.special_ids for id_ in ids[response].tolist()],
        "trained": mask.tolist(),
        "turns": [_turn(run, rollout, turn, start) for turn in rollout.turns if turn.end > start],
        **{name: _at_trained(values, mask) for name, values in numbers.items()},
        **_top_columns("student", trace.student_top, mask, run.names),
        **_top_columns("teacher", trace.teacher_top, mask, run.names),
    }


def _turn(run: Run, rollout: Rollout, turn: Turn, start: int) -> dict[str, Any]:
    """A turn as a person reads it; its first token and the one behind it, counted in the response."""
    place = {"start": turn.start - start, "end": turn.end - start}
    text = text_of(turn, rollout, run.decode)
    return {**place, "role": turn.role, "text": text, "finish": turn.finish, "reward": turn.reward}


def _at_trained(values: Floats | None, mask: np.ndarray) -> list[float | None] | None:
    """One value a token of the response, null where the student did not sample it."""
    if values is None:
        return None
    spread: list[float | None] = [None] * len(mask)
    for place, value in zip(np.flatnonzero(mask), values.tolist(), strict=True):
        spread[place] = value
    return spread


def _top_columns(side: str, top: Top | None, mask: np.ndarray, names: TokenNames) -> dict[str, Any]:
    if top is None:
        return {f"{side}_top_{what}": None for what in ("ids", "tokens", "logprobs")}
    ids: list[list[int]] = [[] for _ in mask]
    logprobs: list[list[float]] = [[] for _ in mask]
    for place, row_ids, row_logprobs in zip(np.flatnonzero(mask), top.ids.tolist(), top.logprobs.tolist(), strict=True):
        ids[place], logprobs[place] = row_ids, row_logprobs
    return {
        f"{side}_top_ids": ids,
        f"{side}_top_tokens": [names(row) for row in ids],
        f"{side}_top_logprobs": logprobs,
    }


def schema() -> pa.Schema:
    """The columns of a file, in order; the page *Files and metrics of a run* says what each means."""
    import pyarrow as pa

    text, integer, real = pa.string(), pa.int32(), pa.float32()
    one_each: list[tuple[str, pa.DataType]] = [
        ("step", integer), ("source", text), ("prompt_id", text), ("task", text), ("teacher", text),
        ("sample", integer), ("segment", integer), ("segment_reason", text), ("policy_version", integer),
        ("temperature", pa.float64()),
        ("prompt_text", text), ("question", text), ("answer", text), ("response_text", text), ("finish", text),
        ("reward", pa.float64()), ("advantage", pa.float64()), ("sampled_tokens", integer),
        ("log_ratio_mean", real), ("reverse_kl_mean", real), ("kl_max", real),
    ]  # fmt: skip
    per_token: list[tuple[str, pa.DataType]] = [
        ("prompt_ids", integer), ("prompt_tokens", text), ("token_ids", integer), ("tokens", text),
        ("special", pa.bool_()), ("trained", pa.bool_()), ("student_logprob", real), ("teacher_logprob", real),
        ("behaviour_logprob", real), ("reverse_kl", real), ("student_entropy", real), ("teacher_entropy", real),
    ]  # fmt: skip
    tops = [
        (f"{side}_top_{what}", pa.list_(kind))
        for side in ("student", "teacher")
        for what, kind in (("ids", integer), ("tokens", text), ("logprobs", real))
    ]
    of_turn = {"start": integer, "end": integer, "role": text, "text": text, "finish": text, "reward": pa.float64()}
    turn = pa.struct(list(of_turn.items()))
    return pa.schema(
        one_each + [(name, pa.list_(kind)) for name, kind in [*per_token, *tops, ("turns", turn)]],
        metadata={"limbeck_rollouts": str(FORMAT)},
    )


def write_rollouts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One file of `rows`, each a mapping of all columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(list(rows), schema=schema()), path, compression="zstd")
