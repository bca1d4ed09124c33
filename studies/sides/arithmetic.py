"""The work that all sides share: three-digit sums with a scratchpad, the demo's student and teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.config.recipe import parse_recipe
from limbeck.config.task import ArithmeticTaskConfig
from limbeck.models.loading import resolve
from limbeck.records import Prompt
from limbeck.tasks.arithmetic import Arithmetic
from limbeck.training.prompt_order import PromptOrder

STUDENT, TEACHER = "demo:student", "demo:teacher"
BETAS = (0.9, 0.95)  # AdamW's, Limbeck's defaults: TRL is given the same
PLENTY = 100_000  # updates that nobody reaches: a side goes on for as long as it is asked to


def recipe(setting: Mapping[str, Any], seed: int, lr: float, folder: Path) -> dict[str, Any]:
    """Of distillation. `setting` has `temperature`, `rows` of an update, `max_tokens`, `warmup` and `held_out`."""
    return {
        "name": "study",
        "output": str(folder),
        "seed": seed,
        "steps": PLENTY,
        "threads": 1,
        "student": {"model": STUDENT},
        "teacher": {"kind": "local", "model": TEACHER},
        "task": {"kind": "arithmetic", "digits": 3, "train": 8192, "held_out": setting["held_out"]},
        "rollout": {
            "temperature": setting["temperature"],
            "max_tokens": setting["max_tokens"],
            "prompts_per_step": setting["rows"],
        },
        "learner": {
            "lr": lr,
            "betas": list(BETAS),
            "schedule": "constant",
            "warmup_steps": setting["warmup"],
            "max_grad_norm": 1.0,
        },
        "eval": {"prompts": setting["held_out"]},
        "record": {"every": 0},
    }


def prompts_of(of: Mapping[str, Any], count: int) -> list[Prompt]:
    """The first prompts that a run of the recipe sees, in its order: their texts and answers, without their tokens."""
    parsed = parse_recipe(of)
    assert isinstance(parsed.task, ArithmeticTaskConfig)
    task = Arithmetic(parsed.task, lambda text: (0,), parsed.seed)
    return PromptOrder(task.train, count, parsed.seed).at(0)


def trl_plan(kind: str, of: Mapping[str, Any], generations: int = 1) -> dict[str, Any]:
    """The same work for TRL's trainer; `generations` of each prompt, which has fewer prompts an update then."""
    prompts = prompts_of(of, 8192)
    rollout, learner = of["rollout"], of["learner"]
    options = {
        "learning_rate": learner["lr"],
        "max_grad_norm": learner["max_grad_norm"],
        "adam_beta1": learner["betas"][0],
        "adam_beta2": learner["betas"][1],
        "temperature": rollout["temperature"],
        "max_completion_length": rollout["max_tokens"],
        "max_steps": PLENTY,
        **({"num_generations": generations} if kind == "grpo" else {}),
    }
    return {
        "kind": kind,
        "student": resolve(STUDENT),
        "teacher": resolve(TEACHER),
        "prompts": [prompt.text for prompt in prompts],
        "answers": [prompt.answer for prompt in prompts],
        "rows": rollout["prompts_per_step"],
        "warmup": learner["warmup_steps"],
        "threads": of["threads"],
        "seed": of["seed"],
        "options": options,
    }
