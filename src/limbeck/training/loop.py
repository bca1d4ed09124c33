"""The whole of training, on one screen: rollouts, update, publish.

Everything random follows from (recipe.seed, step), and which weights a step is sampled with from (step, rollout.lag).
So a run that is stopped anywhere and resumed from its last checkpoint makes the same updates as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from limbeck.errors import LimbeckError, NonFiniteError
from limbeck.files.names import step_name
from limbeck.protocols import MovesWeights
from limbeck.records import Scored
from limbeck.reports import StepReport
from limbeck.training.alarms import Alarms
from limbeck.training.collect import Collected, note_computing
from limbeck.training.interruption import in_thread
from limbeck.training.metrics import (
    describe,
    describe_episodes,
    describe_lag,
    describe_scores,
    describe_sources,
    describe_tasks,
    speeds,
    utilisation,
)
from limbeck.training.pipeline import Pipeline
from limbeck.training.prompt_order import order_of
from limbeck.training.recording import record
from limbeck.training.run import Run
from limbeck.training.shares import shares_of


async def train(run: Run) -> None:
    """Make the updates after `run.start` up to `recipe.steps`, evaluating and saving on the way.

    Whatever stops a run, its last update is kept in a checkpoint, however rare checkpoints are.
    """
    run.step = run.made = run.start
    run.began = True
    run.report("started", run.start, run.recipe.steps)
    run.meter.start()
    run.usage()  # of before the first step
    try:
        await _train(run)
    except BaseException as error:
        keep(run, error)
        raise
    finally:
        run.meter.stop()


def keep(run: Run, error: BaseException) -> None:
    """A checkpoint of the last update, where there is none, after `error` ended the run.

    Older ones stay where a number that is not finite ended it: the trouble may have begun before. A checkpoint that
    cannot be written is added to the error as a note.
    """
    try:
        with run.stop.hold():
            if run.known and run.made > run.folder.newest_step():
                oldest_go = not isinstance(error, NonFiniteError)
                run.folder.save(run.made, run.save, run.recipe.checkpoint.keep_last if oldest_go else None)
    except Exception as failure:
        what = str(failure) if isinstance(failure, LimbeckError) else f"{type(failure).__name__}: {failure}"
        if what != str(error):
            error.add_note(f"Update {run.made} could not be kept either. {what}")


async def _train(run: Run) -> None:
    recipe, checkpoint = run.recipe, run.recipe.checkpoint
    shares = shares_of(recipe)
    order = order_of(run.task, recipe.rollout.prompts_per_step, recipe.seed, shares.of_task_before)
    lines = run.folder.lines()
    trained = (line for line in lines if line["kind"] == "train")
    alarms = Alarms(run.same_weights, trained, run.kl_should_fall)
    before = {line["step"] for line in lines if line["kind"] == "eval"}  # one that a stop cut off is not among them

    def is_evaluated(step: int) -> bool:
        every = recipe.eval.every
        return step not in before and (step in (0, recipe.steps) or bool(every and step % every == 0))

    async with Pipeline(run, order, is_evaluated) as pipeline:
        if is_evaluated(run.start):
            await log_evaluation(run, pipeline)
        for step in range(run.start + 1, recipe.steps + 1):
            await one_step(run, pipeline, step, alarms)
            if is_evaluated(step):
                await log_evaluation(run, pipeline)
            if step == recipe.steps or (checkpoint.every and step % checkpoint.every == 0):
                await save(run)
    policy = await run.learner.publish()
    adapter = {} if policy.adapter is None else {"adapter": policy.save_adapter}
    run.folder.finish(run.made, {**adapter, "model": partial(policy.save, dtype=policy.info.dtype)})


async def one_step(run: Run, pipeline: Pipeline, step: int, alarms: Alarms) -> None:
    """One update from samples of its prompts, and its line of metrics."""
    this = pipeline.at(step)
    run.step, run.seconds = step, this.seconds
    start = time.perf_counter()
    collected = await pipeline.rollouts(step)
    this.note_waiting("update", time.perf_counter() - start)
    if pipeline.is_recorded(step):
        with this.phase("record"):
            await record(this, step, collected.samples, pipeline.watched(step))
    try:
        with run.stop.hold(), this.phase("update"):
            report = await _update(run, collected.samples)
            run.made, run.known = step, True
        run.versions.drop_before(step)
        await note_computing(this, collected.samples)
        with this.phase("publish"):
            await pipeline.publish(step)
    finally:  # an update that was made has its line, whatever happens to its weights on the way to the engine
        if run.made == step:
            with run.stop.hold():
                line = _line(run, report, collected, {**this.seconds, "step": time.perf_counter() - start})
                run.log({**line, "alarms": alarms.check(line)})


async def save(run: Run) -> None:
    """A checkpoint of the last update. With lag, later steps are sampled meanwhile."""
    with run.stop.hold(), run.phase("save"):
        write = partial(run.folder.save, run.made, run.save, run.recipe.checkpoint.keep_last)
        if run.recipe.rollout.lag:
            await in_thread(write)
        else:
            write()


async def _update(run: Run, samples: Sequence[Scored]) -> StepReport:
    """Only a `LimbeckError` says that nothing was updated. After any other error nobody knows the weights."""
    run.known = False
    try:
        return await run.learner.update(samples)
    except LimbeckError as error:
        run.known = True
        if isinstance(error, NonFiniteError):
            _save_offenders(run, error)
        raise


def _line(run: Run, report: StepReport, collected: Collected, phases: Mapping[str, float]) -> dict[str, Any]:
    """What `metrics.jsonl` has of a step."""
    seconds, rollouts, lag = {**report.seconds, **phases}, collected.rollouts, run.recipe.rollout.lag
    counted = {
        **describe(rollouts, collected.rewards),
        **describe_episodes(rollouts, collected.episodes, collected.failures, collected.counts),
        **describe_sources(rollouts, collected.rewards),
        **describe_tasks(rollouts, collected.rewards),
        **describe_lag(rollouts, run.step, lag),
        **describe_scores(collected.samples, len(rollouts)),
        **collected.views,
        **speeds(seconds, rollouts, lag),
        **utilisation(run.work, seconds, rollouts),
        **run.meter.read(),
        **run.usage(),
    }
    sums = {**report.sums, **counted}
    if isinstance(run.engine, MovesWeights):
        sums |= run.engine.transfer.values()
    values = StepReport(report.means, report.maxima, sums, seconds).values()
    return {"step": run.step, "kind": "train", **values}


async def log_evaluation(run: Run, pipeline: Pipeline) -> None:
    """Evaluate, and keep the numbers in `metrics.jsonl` and the answers in `evaluations/`."""
    evaluation = await pipeline.evaluation(run.step)
    rows: list[dict[str, Any]] = [asdict(answer) for answer in evaluation.answers]
    for name, found in evaluation.sets.items():
        rows += [{"set": name, **asdict(answer)} for answer in found.answers]
    with run.stop.hold():
        run.folder.write_lines(f"evaluations/{step_name(run.step, '.jsonl')}", rows)
        run.log({"step": run.step, "kind": "eval", **evaluation.values()})


def _save_offenders(run: Run, error: NonFiniteError) -> None:
    rows = [
        {
            "prompt_id": sample.rollout.prompt.id,
            "token_ids": sample.rollout.token_ids.tolist(),
            "response": run.decode(sample.rollout.response_ids),
            "logprobs": [str(value) for value in sample.rollout.logprobs],
            "advantage": str(sample.advantage),
        }
        for sample in error.samples
    ]
    path = run.folder.write_lines(f"non_finite/{step_name(run.step, '.jsonl')}", rows)
    error.args = (f"{error} They are in {path}.",)
