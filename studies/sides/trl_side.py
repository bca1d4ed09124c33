"""TRL's worker: `DistillationTrainer` or `GRPOTrainer`, held before every step.

    python -m sides.trl_side PLAN.json        (see `steps/worker.py` for what it hears and says)

PLAN.json has `kind`, the folders `student` and `teacher`, `prompts` and their `answers` in the order of the steps,
`rows` of an update, updates of `warmup`, `options` of the trainer, `threads` and `seed`. Tuned for a CPU as in
`steps/trl_side.py`: float32, fused AdamW, no gradient checkpointing, no logging, no checkpoints. It runs in TRL's own
virtual environment and imports nothing of Limbeck.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging
from trl import DistillationConfig, DistillationTrainer, GRPOConfig, GRPOTrainer

from steps.trl_side import ON_A_CPU, Held
from steps.worker import Line


def graded(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """The reward of GRPO, by the rule of Limbeck's arithmetic task."""
    return [float(text.rpartition(";")[2].strip() == right) for text, right in zip(completions, answer, strict=True)]


class Side:
    def __init__(self, plan: dict[str, Any], line: Line, output: str) -> None:
        torch.set_num_threads(plan["threads"])
        self.line, self.made, self.tokens, self.reward = line, 0, 0, 0.0
        self.student = AutoModelForCausalLM.from_pretrained(plan["student"], dtype=torch.float32)
        shared = {
            "model": self.student,
            "processing_class": AutoTokenizer.from_pretrained(plan["student"], padding_side="left"),
            "train_dataset": Dataset.from_dict({"prompt": plan["prompts"], "answer": plan["answers"]}),
            "callbacks": [Held(self)],
        }
        options = {**self.options(plan, output), **plan["options"]}
        if plan["kind"] == "grpo":
            self.trainer = GRPOTrainer(reward_funcs=graded, args=GRPOConfig(**options), **shared)
        else:
            teacher = AutoModelForCausalLM.from_pretrained(plan["teacher"], dtype=torch.float32)
            self.trainer = DistillationTrainer(teacher_model=teacher, args=DistillationConfig(**options), **shared)
        self.trainer.create_scheduler = self.create_scheduler
        self.warmup = plan["warmup"]
        self.watch()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Limbeck's warm-up: its first update has a rate. That of transformers begins with an update at 0."""
        optimizer = self.trainer.optimizer if optimizer is None else optimizer
        self.trainer.lr_scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(1, self.warmup)))
        return self.trainer.lr_scheduler

    def options(self, plan: dict[str, Any], output: str) -> dict[str, Any]:
        return {
            "output_dir": output,
            "seed": plan["seed"],
            "per_device_train_batch_size": plan["rows"],
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            **ON_A_CPU,
            "shuffle_dataset": False,
        }

    def watch(self) -> None:
        """Count the tokens that each step samples and trains."""
        plain = self.trainer._generate_and_score_completions

        def generate(inputs: Any) -> Any:
            made = plain(inputs)
            self.tokens = int(made["completion_mask"].sum())
            return made

        self.trainer._generate_and_score_completions = generate

    def wait(self) -> None:
        """Until the parent says "step"; a copy of the weights is written meanwhile."""
        while command := self.line.hear():
            if command["do"] == "step":
                break
            self.student.save_pretrained(command["folder"])
            self.line.say({"updates": self.made})
        else:
            sys.exit(0)
        self.rate = self.trainer.optimizer.param_groups[0]["lr"]
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def finish(self) -> None:
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        self.made += 1
        self.line.say({"seconds": seconds, "cpu": cpu, "tokens": self.tokens, "rate": self.rate})


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    pipe = Line()
    with tempfile.TemporaryDirectory() as scratch:
        side = Side(json.loads(Path(sys.argv[1]).read_text()), pipe, scratch)
        pipe.say({"ready": True})
        side.trainer.train()
        side.wait()
