"""Runs made up in files, of any size, for what needs no model."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from limbeck.training.recording import write_rollouts

WORDS = ["The", " answer", " is", " 4", "2", "\n", " so", " we", " add", "<eos>"]


def metrics_line(step: int, **more: Any) -> dict[str, Any]:
    """A train line with the keys of a real one."""
    kl = 0.5 / (1 + step / 50) + 0.02 * math.sin(step)
    return {
        "step": step,
        "kind": "train",
        "reverse_kl/sampled": kl * 1.1,
        "reverse_kl/sampled/se": 0.02,
        "reverse_kl/exact": kl,
        "reverse_kl/exact/se": 0.01,
        "reverse_kl/reference": kl / 2,
        "importance/mean": 1.0,
        "importance/effective_share": 0.99,
        "mismatch": 1e-5,
        "entropy/student": 0.4,
        "entropy/teacher": 0.2,
        "top_k_overlap": 0.8,
        "objective": kl,
        "importance/max": 1.2,
        "grad_norm": 1.0,
        "lr": 1e-4,
        "tokens/trained": 2000,
        "response_length/mean": 30.0,
        "response_length/max": 40.0,
        "truncated": 0.01,
        "repetition": 0.0,
        "responses": 64.0,
        "tokens/sampled": 2000.0,
        "reward": min(1.0, step / 500),
        "tokens_per_second/sample": 4000.0,
        "tokens_per_second/score": 4000.0,
        "tokens_per_second/update": 4000.0,
        "tokens_per_second/step": 900.0,
        "teacher_share": 0.2,
        **{f"seconds/{phase}": 0.3 for phase in ("sample", "grade", "score", "update", "publish", "step")},
        "alarms": [],
        **more,
    }


def eval_line(step: int, **more: Any) -> dict[str, Any]:
    accuracy = min(0.95, 0.3 + step / 1000)
    return {
        "step": step,
        "kind": "eval",
        "prompts": 128,
        "accuracy": accuracy,
        "accuracy/low": accuracy - 0.05,
        "accuracy/high": accuracy + 0.05,
        "reverse_kl/exact": 0.5 / (1 + step / 50),
        "reverse_kl/exact/se": 0.01,
        **more,
    }


def write_metrics(folder: Path, steps: int, every: int = 100) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(f'name = "{folder.name}"\nsteps = {steps}\n[rollout]\ntemperature = 0.7\n')
    with (folder / "metrics.jsonl").open("w") as file:
        file.write(json.dumps(eval_line(0)) + "\n")
        for step in range(1, steps + 1):
            file.write(json.dumps(metrics_line(step)) + "\n")
            if step % every == 0:
                file.write(json.dumps(eval_line(step)) + "\n")


def rollout(step: int, number: int, length: int = 40, **more: Any) -> dict[str, Any]:
    """A row whose numbers follow from its place."""
    rng = random.Random(f"{step} {number}")
    ids = [rng.randrange(len(WORDS) - 1) for _ in range(length - 1)] + [len(WORDS) - 1]
    tokens = [WORDS[i] for i in ids]
    kl = [round(rng.expovariate(5), 4) for _ in ids]
    student = [-round(rng.expovariate(2), 4) for _ in ids]
    top = [[i, (i + 1) % 10, (i + 2) % 10] for i in ids]
    return {
        "step": step,
        "source": "watch" if number < 2 else "train",
        "prompt_id": f"prompt-{number}" if number < 2 else f"prompt-{step}-{number}",
        "task": "words" if number % 2 else "numbers",
        "teacher": "big" if number % 3 else "small",
        "sample": 0,
        "policy_version": step - 1,
        "temperature": 0.7,
        "prompt_text": f"What is {step} and {number}?",
        "answer": "42",
        "response_text": "".join(tokens[:-1]),
        "finish": "length" if number % 5 == 4 else "stop",
        "reward": float(rng.random() < 0.5),
        "advantage": 0.0,
        "sampled_tokens": length,
        "log_ratio_mean": sum(kl) / length,
        "reverse_kl_mean": sum(kl) / length,
        "kl_max": max(kl),
        "prompt_ids": [1, 2],
        "prompt_tokens": ["What", "?"],
        "token_ids": ids,
        "tokens": tokens,
        "special": [token == "<eos>" for token in tokens],
        "trained": [True] * length,
        "student_logprob": student,
        "teacher_logprob": [s - k for s, k in zip(student, kl, strict=True)],
        "behaviour_logprob": student,
        "reverse_kl": kl,
        "student_entropy": [0.4] * length,
        "teacher_entropy": [0.2] * length,
        **{f"{side}_top_ids": top for side in ("student", "teacher")},
        **{f"{side}_top_tokens": [[WORDS[i] for i in row] for row in top] for side in ("student", "teacher")},
        **{f"{side}_top_logprobs": [[-0.1, -2.5, -4.0]] * length for side in ("student", "teacher")},
        **more,
    }


def write_rollout_files(folder: Path, steps: range, each: int = 8, length: int = 40, **more: Any) -> None:
    (folder / "rollouts").mkdir(parents=True, exist_ok=True)
    for step in steps:
        rows = [rollout(step, number, length, **more) for number in range(each)]
        write_rollouts(rows, folder / "rollouts" / f"step-{step:06d}.parquet")


def answer(prompt_id: str, **more: Any) -> dict[str, Any]:
    """A line of `evaluations/`."""
    return {
        "prompt_id": prompt_id,
        "prompt": f"What is {prompt_id}?",
        "question": f"What is {prompt_id}?",
        "answer": "42",
        "sample": 0,
        "segment": 0,
        "response": f"It is {prompt_id}.",
        "turns": [],
        "reward": 1.0,
        "tokens": 5,
        "finish": "stop",
        **more,
    }


def write_answers(folder: Path, step: int, answers: list[dict[str, Any]]) -> None:
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in answers)
    (folder / "evaluations" / f"step-{step:06d}.jsonl").write_text(lines, encoding="utf-8")
