"""Limbeck's worker: the recipe a user would write, and the loop's own `one_step`.

    python -m steps.limbeck_side WORK.json        (see `worker.py` for what it hears and says)

Response lengths are fixed through the dice: token 0 is the stop token, and a die of 0 draws it. Every
other die is at least `LOWEST_DIE`, above the probability of token 0, so that no row stops early. Forward
passes, drawing and bookkeeping are those of any run.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from steps.cases import BETAS, LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Case, Work, prompt_id, row_of
from steps.worker import Clock, Line, peak_mb, reset_peak

STOP = 0
LOWEST_DIE = 0.05


def fix_lengths(case: Case) -> None:
    """Replace the dice, before the engine takes them up."""
    from limbeck.models import sampling

    plain, lengths = sampling.uniforms, case.lengths()

    def uniforms(seed: int, id_: str, sample: int, count: int) -> np.ndarray:
        dice = LOWEST_DIE + (1 - LOWEST_DIE) * plain(seed, id_, sample, count)
        length = lengths[row_of(id_, sample, case)]
        if length < case.new_tokens:
            dice[length - 1 : length] = 0.0
        return dice

    sampling.uniforms = uniforms


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
    """A run that makes a step when told to."""

    def __init__(self, work: Work, run: Any, clock: Clock) -> None:
        self.work, self.run, self.clock = work, run, clock
        self.prompts = {prompt.id: prompt for prompt in run.task.train}

    def of_step(self, step: int) -> list[Any]:
        return [self.prompts[prompt_id(step, number)] for number in range(self.work.case.prompts)]

    async def step(self, step: int) -> dict[str, Any]:
        from limbeck.training.loop import one_step

        self.clock.take()
        start = time.perf_counter()
        report = await one_step(self.run, self.of_step(step), step + 1)
        seconds = time.perf_counter() - start
        taken = self.clock.take()
        whole = report.seconds
        phases = {
            "sample": whole["sample"],
            "teacher": whole["score"],
            "student_forward": whole["update/backward"] - taken["loss"] - taken["backward"],
            "loss": taken["loss"],
            "student_backward": taken["backward"],
            "optimizer": whole["update/optimizer"],
        }
        phases["rest"] = seconds - sum(phases.values())
        return {"seconds": seconds, "phases": phases, "tokens": report.sums["tokens/trained"]}

    async def prefill(self, step: int) -> dict[str, Any]:
        """Seconds until every row has its first token."""
        from dataclasses import replace

        sampling = replace(self.run.sampling(seed=step), max_tokens=1)
        start = time.perf_counter()
        await self.run.engine.sample(self.of_step(step), sampling, self.work.case.samples)
        return {"seconds": time.perf_counter() - start}

    async def check(self, step: int, rows: list[list[int]]) -> dict[str, Any]:
        """An update on the peer's own samples: loss and gradient norm must come out as the peer's."""
        from limbeck.records import Rollout
        from limbeck.training.run import mark

        sampling, rollouts = self.run.sampling(seed=0), []
        for row, response in enumerate(rows):
            prompt = self.of_step(step)[row // self.work.case.samples]
            tokens = np.concatenate([np.asarray(prompt.token_ids), np.asarray(response)]).astype(np.int64)
            rollouts.append(
                Rollout(
                    prompt=prompt,
                    sample=row % self.work.case.samples,
                    token_ids=tokens,
                    trained=np.arange(len(tokens)) >= len(prompt.token_ids),
                    behaviour_logprobs=np.zeros(len(response), dtype=np.float32),  # metrics only, on full support
                    policy_version=0,
                    finish="length",
                    sampling=sampling,
                )
            )
        report = await self.run.learner.update(await mark(self.run, rollouts, [None] * len(rollouts)))
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

    from limbeck.learners import local

    local.distillation_loss = clock.wrap(local.distillation_loss, "loss")
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
