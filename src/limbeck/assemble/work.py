"""What each role computes in this process, and what its device does at best."""

from __future__ import annotations

import torch

from limbeck.engines.hf import InProcessEngine
from limbeck.learners.local import LocalLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.protocols import Engine, Learner, Teacher
from limbeck.teachers.local import LocalTeacher
from limbeck.training.peaks import Work, peak_of


def work_of(engine: Engine, teacher: Teacher, learner: Learner) -> dict[str, Work]:
    """By role. Empty on devices whose peak is not known; of several teachers nobody knows who has which tokens."""
    found: dict[str, Work] = {}
    if isinstance(engine, InProcessEngine) and (peak := _peak(engine.lm)):
        found["sample"] = Work(_parameters(engine.lm), peak)
    if isinstance(teacher, LocalTeacher) and (peak := _peak(teacher.lm)):
        found["score"] = Work(_parameters(teacher.lm), peak)
    if isinstance(learner, LocalLearner) and (peak := _peak(learner.lm)):
        found["update"] = Work(_parameters(learner.lm), peak, 6 if learner.adapters is None else 4)
    return found


def _peak(lm: CausalLM) -> float | None:
    return peak_of(torch.cuda.get_device_name(lm.device)) if lm.device.type == "cuda" else None


def _parameters(lm: CausalLM) -> int:
    """Without an embedding table that only looks up; one that is tied to the output head multiplies."""
    count: int = sum(parameter.numel() for parameter in lm.model.parameters())
    table: torch.Tensor = lm.model.get_input_embeddings().weight
    return count if table is lm.head_layer().weight else count - table.numel()
