"""What trains the student: each method as a side of its own, on the same work."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sides.arithmetic import TEACHER, recipe, trl_plan
from sides.judge import Judge
from sides.turns import Side, limbeck_side, trl_is_there, trl_side


@dataclass(frozen=True)
class Work:
    """A seed's share of a study: `setting` is the study's, `evaluated_at` the updates after which weights are kept."""

    setting: Mapping[str, Any]
    seed: int
    evaluated_at: Collection[int]
    folder: Path

    def recipe(self, lr: float) -> dict[str, Any]:
        return recipe(self.setting, self.seed, lr, self.folder)

    def is_without_trl(self) -> bool:
        """Whether this is a test without TRL's environment: Limbeck trains in its place then."""
        if not self.setting["without_trl"] or trl_is_there():
            return False
        print("TRL's environment is missing: in this test Limbeck trains in its place", file=sys.stderr, flush=True)
        return True


def distillation(name: str, work: Work, lr: float) -> Side:
    """Limbeck's: the student samples, the teacher scores, the exact reverse KL on the whole vocabulary trains."""
    return limbeck_side(name, work.recipe(lr), work.folder, work.evaluated_at)


def distillation_of_trl(name: str, work: Work, lr: float) -> Side:
    """TRL's `DistillationTrainer`, whose loss is the same."""
    if work.is_without_trl():
        return distillation(name, work, lr)
    return trl_side(name, trl_plan("distillation", work.recipe(lr)), work.folder, work.evaluated_at)


def grpo(name: str, work: Work, lr: float) -> Side:
    """TRL's: the reward is 1 for a right sum. No teacher. As many sequences an update as the others."""
    if work.is_without_trl():
        return distillation(name, work, lr)
    generations = work.setting["generations"]
    return trl_side(name, trl_plan("grpo", work.recipe(lr), generations), work.folder, work.evaluated_at)


def sft(name: str, work: Work, lr: float) -> Side:
    """Limbeck's, on answers of the teacher to the prompts of the first updates; then the same answers again.

    Each update of the first pass is charged its share of the time that sampling them took.
    """
    updates, of = max(work.evaluated_at), work.recipe(lr)
    path = work.folder / f"{name}-rows.jsonl"
    seconds, cpu = sample_teacher(of, updates * work.setting["rows"], path)
    of["rollout"] = {**of["rollout"], "sources": [{"from": "dataset", "path": str(path)}]}
    side = limbeck_side(name, of, work.folder, work.evaluated_at, sft=True)
    side.ahead, side.ahead_updates = (seconds / updates, cpu / updates), updates
    return side


def fixed_advantage(below: float) -> Callable[[str, Work, float], Side]:
    """A fixed negative advantage on sampled tokens to which the student gives a probability under `below`."""

    def start(name: str, work: Work, lr: float) -> Side:
        of = work.recipe(lr)
        factory = "sides.fixed_advantage:FixedNegativeAdvantage"
        of["objective"] = {"divergence": "python", "factory": factory, "below": below, "support": "sampled"}
        return limbeck_side(name, of, work.folder, work.evaluated_at, teacher=False)

    return start


def sample_teacher(of: Mapping[str, Any], count: int, path: Path) -> tuple[float, float]:
    """Answers of the teacher at the rollout temperature; (wall-clock, processor) seconds of sampling them."""
    with Judge({**of, "student": {"model": TEACHER}}) as judge:
        start, cpu = time.perf_counter(), time.process_time()
        answers = judge.answers(count)
        taken = time.perf_counter() - start, time.process_time() - cpu
    path.write_text("".join(json.dumps({"prompt": one, "completion": answer}) + "\n" for one, answer in answers))
    return taken


METHODS: Mapping[str, Callable[[str, Work, float], Side]] = {
    "limbeck": distillation,
    "trl": distillation_of_trl,
    "distillation": distillation,
    "sft": sft,
    "grpo": grpo,
    "fixed_low": fixed_advantage(0.5),
    "fixed_all": fixed_advantage(2.0),  # all tokens
}


def start(name: str, work: Work) -> Side:
    """At the learning rate that the setting has for it."""
    return METHODS[name](name, work, work.setting["lr"][name])
