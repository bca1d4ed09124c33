"""TRL's worker: `DistillationTrainer` (or `GKDTrainer`) tuned for a CPU, held before every step.

    python -m steps.trl_side WORK.json distillation        (see `worker.py` for what it hears and says)

Tuned: float32 (bfloat16 is many times slower on CPUs without AMX), no gradient checkpointing, no logging,
no checkpoints, no evaluation, fused AdamW. TRL draws one sample a prompt: prompts are repeated. Response
lengths are fixed by a logits processor that forbids the stop tokens until a row is due and then forbids
all others: two small writes a token. Runs in the peer's virtual environment; imports nothing of Limbeck.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from transformers.utils import logging

from steps.cases import BETAS, LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, Work
from steps.worker import Clock, Line, peak_mb, reset_peak

ON_A_CPU = {  # options of every trainer
    "optim": "adamw_torch_fused",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


class FixedLengths:
    """The logits processor."""

    def __init__(self, lengths: list[int], stop_ids: list[int]) -> None:
        self.lengths, self.stop_ids, self.start = torch.tensor(lengths), stop_ids, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.stop_ids] = -torch.inf
        due = torch.nonzero(self.lengths == input_ids.shape[1] - self.start + 1)[:, 0]
        if len(due):
            scores[due] = -torch.inf
            scores[due, self.stop_ids[0]] = 0.0
        return scores


class Held(TrainerCallback):
    """Waits for a command before each step, answers after it."""

    def __init__(self, side: Side) -> None:
        self.side = side

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.side.wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.side.finish()


class Side:
    def __init__(self, work: Work, line: Line, kind: str, output: str) -> None:
        torch.set_num_threads(work.threads)
        self.work, self.line, self.clock = work, line, Clock()
        self.student, self.teacher = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (work.student, work.teacher)
        )
        self.tokenizer = AutoTokenizer.from_pretrained(work.student, padding_side="left")
        stop_ids = self.student.generation_config.eos_token_id
        stop_ids = {self.tokenizer.eos_token_id, *(stop_ids if isinstance(stop_ids, list) else [stop_ids])}
        lengths = [n if n < work.case.new_tokens else 0 for n in work.case.lengths()]
        self.fixed = FixedLengths(lengths, sorted(stop_ids))
        self.loss, self.tokens, self.norm, self.rows = 0.0, 0, 0.0, []
        self.backward_done = self.started = 0.0
        make = {"distillation": self.make_distillation, "gkd": self.make_gkd}[kind]
        self.trainer = make(output)
        self.watch()

    def options(self, output: str) -> dict[str, Any]:
        """Training arguments both trainers share."""
        rows = min(self.work.case.peer_rows or self.work.case.rows, self.work.case.rows)
        return {
            "output_dir": output,
            "max_steps": len(self.work.texts),
            "per_device_train_batch_size": rows,
            "gradient_accumulation_steps": self.work.case.rows // rows,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "adam_beta1": BETAS[0],
            "adam_beta2": BETAS[1],
            "weight_decay": 0.0,
            "max_grad_norm": MAX_GRAD_NORM,
            **ON_A_CPU,
            "temperature": TEMPERATURE,
            "beta": 1.0,  # reverse KL
        }

    def texts(self) -> list[str]:
        return [text for texts in self.work.texts for text in texts for _ in range(self.work.case.samples)]

    def make_distillation(self, output: str) -> Any:
        from datasets import Dataset
        from trl import DistillationConfig, DistillationTrainer

        options = self.options(output)
        trainer = DistillationTrainer(
            model=self.student,
            teacher_model=self.teacher,
            args=DistillationConfig(**options, max_completion_length=self.work.case.new_tokens, shuffle_dataset=False),
            train_dataset=Dataset.from_list([{"prompt": text} for text in self.texts()]),
            processing_class=self.tokenizer,
            callbacks=[Held(self)],
        )
        plain = trainer._get_last_hidden_state

        def hidden(model: Any, *args: Any, **kwargs: Any) -> Any:
            with self.clock.timed("teacher" if model is self.teacher else "student_forward"):
                return plain(model, *args, **kwargs)

        trainer._get_last_hidden_state = hidden
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction as Divergence

        Divergence.forward = staticmethod(self.clock.wrap(Divergence.forward, "loss"))
        Divergence.backward = staticmethod(self.clock.wrap(Divergence.backward, "loss_backward"))
        return trainer

    def make_gkd(self, output: str) -> Any:
        """On-policy at every step (`lmbda` 1). It holds whole logits of prompts and responses.

        Of the completions in its data set only the number of tokens counts: it divides the loss by that,
        not by the number of sampled tokens, so they are given the lengths that will be sampled.
        """
        from datasets import Dataset
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        lengths = self.work.case.lengths()
        prompts = self.tokenizer(self.texts())["input_ids"]
        rows = [
            {"prompts": prompt, "completion": lengths[index % len(lengths)]} for index, prompt in enumerate(prompts)
        ]

        def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            prompts = torch.tensor([row["prompts"] for row in rows])
            labels = torch.full((len(rows), max(row["completion"] for row in rows)), -100)
            for row, label in zip(rows, labels, strict=True):
                label[: row["completion"]] = 1
            ids = torch.cat([prompts, torch.ones_like(labels)], dim=1)
            return {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": torch.cat([torch.full_like(prompts, -100), labels], dim=1),
                "prompts": prompts,
                "prompt_attention_mask": torch.ones_like(prompts),
            }

        trainer = GKDTrainer(
            model=self.student,
            teacher_model=self.teacher,
            args=GKDConfig(
                **self.options(output),
                lmbda=1.0,
                max_new_tokens=self.work.case.new_tokens,
                remove_unused_columns=False,
                dataset_kwargs={"skip_prepare_dataset": True},
                train_sampling_strategy="sequential",
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=self.tokenizer,
            data_collator=collate,
            callbacks=[Held(self)],
        )
        plain = self.student.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():  # a pass of `generate`
                return plain(*args, **kwargs)
            with self.clock.timed("student_forward"):
                return plain(*args, **kwargs)

        self.student.forward = forward
        self.teacher.forward = self.clock.wrap(self.teacher.forward, "teacher")
        return trainer

    def watch(self) -> None:
        """Time what the trainer calls, and keep its loss, gradient norm and samples."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        compute, backward, clip, generate = (
            trainer.compute_loss,
            accelerator.backward,
            accelerator.clip_grad_norm_,
            self.student.generate,
        )

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            with self.clock.timed("compute_loss"):
                loss = compute(*args, **kwargs)
            self.loss += loss.item()
            return loss

        def timed_backward(*args: Any, **kwargs: Any) -> None:
            with self.clock.timed("backward"):
                backward(*args, **kwargs)
            self.backward_done = time.perf_counter()

        def clip_grad_norm(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            self.norm = float(norm)
            return norm

        def timed_generate(*args: Any, **kwargs: Any) -> Any:
            self.fixed.start = kwargs["input_ids"].shape[1]
            with self.clock.timed("sample"):
                made = generate(*args, logits_processor=[self.fixed], **kwargs)
            ids = made if isinstance(made, torch.Tensor) else made.sequences
            self.rows = self.cut(ids[:, self.fixed.start :].tolist())
            return made

        trainer.compute_loss, accelerator.backward = compute_loss, timed_backward
        accelerator.clip_grad_norm_, self.student.generate = clip_grad_norm, timed_generate

    def cut(self, rows: list[list[int]]) -> list[list[int]]:
        """Rows up to their stop token."""
        stops = set(self.fixed.stop_ids)
        ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in rows]
        return [row[:end] for row, end in zip(rows, ends, strict=True)]

    def wait(self) -> None:
        """Until the parent says "step"; other questions are answered meanwhile."""
        while command := self.line.hear():
            if command["do"] == "peak":
                self.line.say({"peak_mb": peak_mb()})
            elif command["do"] == "prefill":
                self.line.say(self.prefill(command["step"]))
            else:
                break
        else:
            sys.exit(0)
        self.clock.take()
        self.loss, self.rows = 0.0, []
        self.started = time.perf_counter()

    def finish(self) -> None:
        now = time.perf_counter()
        seconds, taken = now - self.started, self.clock.take()
        of_loss = taken.get("loss", taken["compute_loss"] - taken["teacher"] - taken["student_forward"])
        loss_backward = taken.get("loss_backward", 0.0)
        phases = {
            "sample": taken["sample"],
            "teacher": taken["teacher"],
            "student_forward": taken["student_forward"],
            "loss": of_loss + loss_backward,
            "student_backward": taken["backward"] - loss_backward,
            "optimizer": now - self.backward_done,
        }
        phases["rest"] = seconds - sum(phases.values())
        self.line.say(
            {
                "seconds": seconds,
                "phases": phases,
                "tokens": sum(len(row) for row in self.rows),
                "loss": self.loss,
                "grad_norm": self.norm,
                "rows": self.rows,
            }
        )

    def prefill(self, step: int) -> dict[str, Any]:
        """Seconds until every row has its first token."""
        texts = [text for text in self.work.texts[step] for _ in range(self.work.case.samples)]
        inputs = self.tokenizer(texts, return_tensors="pt")
        config = GenerationConfig(
            max_new_tokens=1, do_sample=True, top_k=0, pad_token_id=self.tokenizer.pad_token_id, disable_compile=True
        )
        self.student.eval()
        start = time.perf_counter()
        with torch.no_grad():
            self.student.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], generation_config=config
            )
        seconds = time.perf_counter() - start
        self.student.train()
        return {"seconds": seconds}


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.disable_progress_bar()
    pipe = Line()
    with tempfile.TemporaryDirectory() as scratch:
        side = Side(Work.read(sys.argv[1]), pipe, sys.argv[2], scratch)
        pipe.say({"ready": True, "resident_mb": reset_peak(), "threads": torch.get_num_threads()})
        side.trainer.train()
        side.wait()
