"""Limbeck's worker: the recipe a user would write, and the loop's own `one_step`.

    python -m steps.limbeck_side WORK.json        (see `worker.py` for what it hears and says)

Response lengths are fixed through the random numbers: token 0 is the stop token, and a uniform of 0 draws it.
Every other uniform is at least `LOWEST`, above the probability of token 0, so that no row stops early. Forward
passes, drawing and bookkeeping are those of any run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.testing import Recorder
from limbeck.training.alarms import Alarms
from steps.cases import BETAS, LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Case, Work, prompt_id, row_of
from steps.worker import Clock, Line, peak_mb, reset_peak

STOP = 0
LOWEST = 0.05


def fix_lengths(case: Case) -> None:
    """Replace the random numbers of the engine in this process."""
    from limbeck.engines import hf
    from limbeck.records import Key

    plain, lengths = hf.uniforms, case.lengths()

    def uniforms(seed: int, key: Key, count: int) -> np.ndarray:
        values = LOWEST + (1 - LOWEST) * plain(seed, key, count)
        length = lengths[row_of(key.prompt_id, key.sample, case)]
        if length < case.new_tokens:
            values[length - 1 : length] = 0.0
        return values

    hf.uniforms = uniforms


def make_recipe(work: Work, folder: Path) -> dict[str, Any]:
    case = work.case
    rows = [
        {"id": prompt_id(step, number), "prompt": text}
        for step, texts in enumerate(work.texts)
        for number, text in enumerate(texts)
    ]
    train, held_out = folder / "train.jsonl", folder / "held_out.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out.write_text(json.dumps({"id": "held-out", "prompt": work.texts[0][0][1:]}) + "\n")
    return {
        "name": "benchmark",
        "output": str(folder),
        "steps": len(work.texts) + 1,
        "threads": work.threads,
        "student": {"model": work.student},
        "teacher": {"kind": "local", "model": work.teacher},
        "task": {
            "kind": "file",
            "path": str(train),
            "held_out_path": str(held_out),
            "held_out": 1,
            "chat": False,
        },
        "rollout": {
            "temperature": TEMPERATURE,
            "max_tokens": case.new_tokens,
            "prompts_per_step": case.prompts,
            "samples_per_prompt": case.samples,
        },
        "learner": {"lr": LEARNING_RATE, "betas": list(BETAS), "max_grad_norm": MAX_GRAD_NORM},
        "record": {"every": 0},
    }


class Side:
    """A run that makes a step when it is asked to."""

    def __init__(self, work: Work, run: Any, clock: Clock) -> None:
        self.work, self.run, self.clock = work, run, clock
        self.prompts = {prompt.id: prompt for prompt in run.task.train}
        self.alarms, self.recorder = Alarms(same_weights=False), Recorder()
        run.observers = [self.recorder]

    def at(self, step: int) -> list[Any]:
        """The step's prompts."""
        return [self.prompts[prompt_id(step, number)] for number in range(self.work.case.prompts)]

    async def step(self, step: int) -> dict[str, Any]:
        from limbeck.training.loop import one_step
        from limbeck.training.pipeline import Pipeline

        self.clock.take()
        start = time.perf_counter()
        await one_step(self.run, Pipeline(self.run, self), step + 1, self.alarms)
        seconds = time.perf_counter() - start
        taken, line = self.clock.take(), self.recorder.steps[-1]
        phases = {
            "sample": line["seconds/sample"],
            "teacher": line["seconds/score"],
            "student_forward": line["seconds/update/backward"] - taken["loss"] - taken["backward"],
            "loss": taken["loss"],
            "student_backward": taken["backward"],
            "optimizer": line["seconds/update/optimizer"],
        }
        phases["rest"] = seconds - sum(phases.values())
        return {"seconds": seconds, "phases": phases, "tokens": line["tokens/trained"]}

    async def prefill(self, step: int) -> dict[str, Any]:
        """Seconds until every row has its first token."""
        from limbeck.training.collect import sample

        sampling = replace(self.run.sampling(seed=step), max_tokens=1)
        start = time.perf_counter()
        await sample(self.run, self.at(step), sampling, self.work.case.samples)
        return {"seconds": time.perf_counter() - start}

    async def check(self, step: int, rows: list[list[int]]) -> dict[str, Any]:
        """An update on the peer's own samples: loss and gradient norm must come out as the peer's."""
        from limbeck.records import Key, Sampled, Scored, single_turn
        from limbeck.training.collect import unwrap_failures

        sampling, rollouts = self.run.sampling(seed=0), []
        for row, response in enumerate(rows):
            prompt = self.at(step)[row // self.work.case.samples]
            logprobs = np.zeros(len(response), dtype=np.float32)  # for metrics only, on full support
            sampled = Sampled(np.asarray(response, dtype=np.int64), logprobs, "length", version=0)
            key = Key(prompt.id, sample=row % self.work.case.samples)
            rollouts.append(single_turn(prompt, key, sampled, sampling))
        views = unwrap_failures([self.run.view.see(rollout, self.run.support) for rollout in rollouts])
        scores = unwrap_failures(await self.run.teacher.score([view.request for view in views]))
        samples = [Scored(rollout, score) for rollout, score in zip(rollouts, scores, strict=True)]
        report = await self.run.learner.update(samples)
        await self.run.engine.load(await self.run.learner.publish())
        mean = report.means["reverse_kl/exact"]
        return {
            "loss": mean.total / mean.count,
            "grad_norm": report.maxima["grad_norm"],
            "tokens": report.sums["tokens/trained"],
        }


def watch(clock: Clock) -> None:
    """Time the loss and the backward pass where the learner calls them."""
    import torch

    from limbeck.learners import forward

    forward.distillation_loss = clock.wrap(forward.distillation_loss, "loss")
    torch.Tensor.backward = clock.wrap(torch.Tensor.backward, "backward")


async def serve(work: Work, line: Line, folder: Path) -> None:
    fix_lengths(work.case)
    import torch

    from limbeck.assemble.run import assemble
    from limbeck.config.recipe import parse_recipe
    from limbeck.training.run_folder import RunFolder

    clock = Clock()
    watch(clock)
    run = (await assemble(parse_recipe(make_recipe(work, folder)), RunFolder(folder / "run"))).run
    run.stop_ids = (STOP,)
    side = Side(work, run, clock)
    line.say({"ready": True, "resident_mb": reset_peak(), "threads": torch.get_num_threads()})
    while command := line.hear():
        if command["do"] == "peak":
            line.say({"peak_mb": peak_mb()})
        else:
            line.say(await getattr(side, command.pop("do"))(**command))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        asyncio.run(serve(Work.read(sys.argv[1]), Line(), Path(scratch)))
