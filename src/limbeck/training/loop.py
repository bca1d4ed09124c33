"""The whole of training, on one screen: sample, grade, score, update, publish.

Everything random follows from (recipe.seed, step), so a run that is stopped anywhere and resumed
from its last checkpoint makes the same updates as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from limbeck.errors import LimbeckError, NonFiniteError
from limbeck.records import Prompt, StepReport
from limbeck.training.alarms import Alarms
from limbeck.training.evaluation import evaluate
from limbeck.training.metrics import describe, describe_scores, speeds
from limbeck.training.prompt_order import PromptOrder, derive_seed
from limbeck.training.recording import is_recorded, record
from limbeck.training.run import Run, mark, whole


async def train(run: Run) -> None:
    """Make the updates after `run.start` up to `recipe.steps`, evaluating and saving on the way."""
    recipe, checkpoint = run.recipe, run.recipe.checkpoint
    order = PromptOrder(run.task.train, recipe.rollout.prompts_per_step, recipe.seed)
    alarms = Alarms(run.same_weights, (line for line in run.folder.lines() if line["kind"] == "train"))
    for observer in run.observers:
        observer.started(run.start, recipe.steps)
    if run.start == 0:
        await log_evaluation(run, 0)
    for step in range(run.start + 1, recipe.steps + 1):
        report = await one_step(run, order.at(step - 1), step)
        line = {"step": step, "kind": "train", **report.values()}
        run.log({**line, "alarms": alarms.check(line)})
        last = step == recipe.steps
        if last or (recipe.eval.every and step % recipe.eval.every == 0):
            await log_evaluation(run, step)
        if last or (checkpoint.every and step % checkpoint.every == 0):
            with run.phase(step, "save"):
                run.folder.save(step, run.learner.save, checkpoint.keep_last)
    run.folder.replace("model", (await run.learner.publish()).save)


async def one_step(run: Run, prompts: Sequence[Prompt], step: int) -> StepReport:
    """One update from fresh samples of `prompts`."""
    run.seconds = {}
    start = time.perf_counter()
    with _kept(run, step - 1):
        with run.phase(step, "sample"):
            sampling = run.sampling(derive_seed(run.recipe.seed, "step", step))
            rollouts = whole(await run.engine.sample(prompts, sampling, run.recipe.rollout.samples_per_prompt))
        with run.phase(step, "grade"):
            rewards = [run.task.grade(rollout.prompt, run.decode(rollout.response_ids)) for rollout in rollouts]
        with run.phase(step, "score"):
            samples = await mark(run, rollouts, rewards)
    if is_recorded(run, step):
        with run.phase(step, "record"):
            await record(run, step, samples)
    with run.phase(step, "update"):
        try:
            report = await run.learner.update(samples)
        except NonFiniteError as error:
            _save_offenders(run, step, error)
            raise
    with run.phase(step, "publish"):
        await run.engine.load(await run.learner.publish())
    seconds = {**report.seconds, **run.seconds, "step": time.perf_counter() - start}
    told = {**describe(rollouts, rewards), **describe_scores(samples, len(rollouts))}
    sums = {**report.sums, **told, **speeds(seconds, rollouts)}
    return StepReport(report.means, report.maxima, sums, seconds)


async def log_evaluation(run: Run, step: int) -> None:
    """Evaluate, and keep the numbers in `metrics.jsonl` and the answers in `evaluations/`."""
    with run.phase(step, "evaluate"):
        evaluation = await evaluate(run)
    run.folder.write_lines(f"evaluations/step-{step:06d}.jsonl", [asdict(answer) for answer in evaluation.answers])
    run.log({"step": step, "kind": "eval", **evaluation.values()})


@contextmanager
def _kept(run: Run, step: int) -> Iterator[None]:
    """What fails here, a server as a rule, costs no more than the step at hand, however rare checkpoints are."""
    try:
        yield
    except LimbeckError:
        newest = run.folder.newest()
        if step > (newest.step if newest else 0):
            run.folder.save(step, run.learner.save, run.recipe.checkpoint.keep_last)
        raise


def _save_offenders(run: Run, step: int, error: NonFiniteError) -> None:
    rows = [
        {
            "prompt_id": sample.rollout.prompt.id,
            "token_ids": sample.rollout.token_ids.tolist(),
            "response": run.decode(sample.rollout.response_ids),
            "behaviour_logprobs": [str(value) for value in sample.rollout.behaviour_logprobs],
            "advantage": sample.advantage,
        }
        for sample in error.samples
    ]
    path = run.folder.write_lines(f"non_finite/step-{step:06d}.jsonl", rows)
    error.args = (f"{error} They are in {path}.",)
