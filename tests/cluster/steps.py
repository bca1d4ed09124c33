"""What ranks are compared over: a student, its samples under every kind of score, and three updates."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.config.base import ModelConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.learners.local import LocalLearner
from limbeck.learners.process_group import Ranks
from limbeck.learners.ranks import read_stored
from limbeck.models.causal_lm import CausalLM
from limbeck.models.loading import load_model
from limbeck.models.shards import whole
from limbeck.models.states import LocalStates
from limbeck.objectives import JSD, ForwardKL, Loss, ReverseKL
from limbeck.records import (
    HiddenScores,
    Key,
    Prompt,
    Sampled,
    Sampling,
    Scored,
    Scores,
    TokenScores,
    TopKScores,
    single_turn,
)
from limbeck.reports import StepReport
from tests import tiny

TEMPERATURE = 0.8
LENGTHS = (1, 9, 4, 2, 7, 3, 5)  # of the samples' responses: two of each prompt, one of the last
K = 4


@dataclass(frozen=True, eq=False)
class Case:
    family: str = "llama"
    loss: Loss = field(default_factory=lambda: Loss(ReverseKL()))
    config: dict[str, Any] = field(default_factory=lambda: {"micro_batch_tokens": 24})
    lengths: tuple[int, ...] = LENGTHS
    advantages: bool = False
    reference: bool = False
    mixed: bool = False  # scores of several kinds, by several teachers, of which some positions are not valid
    dtype: str = "float32"  # of the student, where it is not in float64


def _loss(support: Any = "full", **more: Any) -> Loss:
    objective = more.pop("objective", ReverseKL())
    return Loss(objective, support=support, k=K if support == "student_top" else None, **more)


CASES: dict[str, Case] = {
    "full": Case(),
    "sampled": Case(loss=_loss("sampled", discount=0.7), advantages=True),
    "top-k": Case(loss=_loss(K)),
    "student-top": Case(loss=_loss("student_top")),
    "forward-kl": Case(loss=_loss(objective=ForwardKL()), config={"micro_batch_tokens": 4096}),
    "jsd": Case(loss=_loss(objective=JSD(0.3), discount=0.9)),
    "reference": Case(loss=_loss(reference_weight=0.3), reference=True),
    "mixed": Case(loss=_loss("sampled"), mixed=True),
    "one-sample": Case(lengths=(3,)),  # the other ranks have nothing to do
    "padded": Case(config={"micro_batch_tokens": 24, "layout": "padded", "max_grad_norm": 0.0, "weight_decay": 0.1}),
    "packed": Case(config={"micro_batch_tokens": 24, "layout": "packed"}),
    "tied": Case(family="llama-tied", config={"micro_batch_tokens": 24, "gradient_checkpointing": True}),
    "offload": Case(family="qwen3", config={"micro_batch_tokens": 24, "cpu_offload": True}),
    "lora": Case(config={"micro_batch_tokens": 24, "lora": {"rank": 2}}),
    "lora-checkpointing": Case(
        config={"micro_batch_tokens": 24, "lora": {"rank": 2}, "gradient_checkpointing": True, "layout": "padded"}
    ),
    "gpt2": Case(family="gpt2"),  # only through transformers: learned positions, Conv1D, tied
    "phi": Case(family="phi"),  # a bias on the head
}


NARROW: dict[str, Case] = {
    "bfloat16": Case(dtype="bfloat16"),
    "bfloat16-lora": Case(dtype="bfloat16", config={"micro_batch_tokens": 24, "lora": {"rank": 2}}),
}


def save_models(folder: Path, families: Sequence[str] = ()) -> None:
    for family in families or {case.family for case in CASES.values()}:
        tiny.save(folder / family, family, seed=1)
        tiny.save(folder / f"{family}-teacher", family, seed=2)
    tiny.build(tiny.config_of("llama"), seed=1).bfloat16().save_pretrained(folder / "narrow")
    tiny.character_tokenizer().save_pretrained(folder / "narrow")


def learner_config(case: Case) -> LocalLearnerConfig:
    return LocalLearnerConfig(**{"lr": 1e-2, **case.config})


def learner_of(case: Case, folder: Path, ranks: Ranks, exact: bool = True, source: Path | None = None) -> LocalLearner:
    """One rank, or the learner alone. `exact`: in float64."""
    section = ModelConfig(model=str(source or folder / case.family), dtype="float32" if exact else case.dtype)
    alone = ranks.count == 1
    lm = load_model(section, torch.device("cpu")) if alone else read_stored(section)
    ranks.dtype = torch.float64 if exact else getattr(torch, case.dtype)
    if exact:
        tiny.in_float64(lm)
    teacher = teacher_of(case, folder, exact)
    heads = {teacher.head().fingerprint(): teacher.head().detach()}
    return LocalLearner(lm, learner_config(case), case.loss, 10, 0, heads, ranks)


@cache
def teacher_of(case: Case, folder: Path, exact: bool = True) -> CausalLM:
    lm = load_model(ModelConfig(model=str(folder / f"{case.family}-teacher")), torch.device("cpu"))
    return tiny.in_float64(lm) if exact else lm


def samples_of(case: Case, teacher: CausalLM, seed: int = 0) -> list[Scored]:
    rng = np.random.default_rng(seed)
    prompts = [Prompt(f"p{n}", tuple(int(i) for i in rng.integers(5, 100, 3 + 4 * n))) for n in range(4)]
    samples = []
    for number, length in enumerate(case.lengths):
        prompt = prompts[number // 2 % len(prompts)]
        ids = rng.integers(5, 100, length)
        sampled = Sampled(ids, rng.normal(-2.0, 0.3, length).astype(np.float32), "stop", version=0)
        rollout = single_turn(prompt, Key(prompt.id, sample=number), sampled, Sampling(TEMPERATURE, max_tokens=32))
        if case.loss.support == "student_top":
            rollout = replace(rollout, top_ids=np.stack([rng.permutation(100)[:K] for _ in range(length)]))
        scores = _scores(case, teacher, rollout, number, rng)
        reference = _states(teacher, rollout) if case.reference else None
        advantage = float(rng.normal()) if case.advantages else 0.0
        samples.append(Scored(rollout, scores, reference=reference, advantage=advantage))
    return samples


def _states(teacher: CausalLM, rollout: Any) -> HiddenScores:
    with torch.no_grad():
        hidden_Ld = teacher.hidden(torch.from_numpy(rollout.token_ids)[None])[0]
    states = LocalStates(hidden_Ld[np.flatnonzero(rollout.trained) - 1])
    return HiddenScores("teacher", states, teacher.head().fingerprint())


def _scores(case: Case, teacher: CausalLM, rollout: Any, number: int, rng: np.random.Generator) -> Scores:
    hidden = _states(teacher, rollout)
    if case.mixed and number % 3 == 0:
        mask = rng.random(len(rollout.response_ids)) < 0.6
        return replace(hidden, scorer="other", valid_mask=mask if mask.any() else None)
    if case.loss.support == "full":
        return hidden
    with torch.no_grad():
        logq_SV = (teacher.head().logits(hidden.states.fetch()) / TEMPERATURE).log_softmax(-1)
    ids_S1 = torch.from_numpy(rollout.response_ids)[:, None]
    of_sampled = logq_SV.gather(1, ids_S1)[:, 0].numpy().astype(np.float32)
    if case.loss.support == "sampled":
        return TokenScores("teacher", TEMPERATURE, of_sampled)
    ids_SK = logq_SV.topk(K).indices if rollout.top_ids is None else torch.from_numpy(rollout.top_ids)
    logprobs = logq_SV.gather(1, ids_SK).numpy().astype(np.float32)
    return TopKScores("teacher", TEMPERATURE, ids_SK.numpy(), logprobs, of_sampled)


def three_updates(case: Case, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Weights after three clipped steps in float64, what was reported, traced and measured on the way."""
    learner, teacher = learner_of(case, folder, ranks), teacher_of(case, folder)
    reports = [update(learner, samples_of(case, teacher, seed)) for seed in range(3)]
    samples = samples_of(case, teacher, 3)
    measured = asyncio.run(learner.measure(samples))
    return {
        "weights": weights_of(learner),
        "reports": [(r.means, r.maxima, r.sums) for r in (*reports, measured)],
        "traces": asyncio.run(learner.trace(samples, 3)),
        "passes": learner.lm.passes is not None,
    }


def gradient(case: Case, folder: Path, ranks: Ranks) -> dict[str, Tensor]:
    """In float32."""
    learner, teacher = learner_of(case, folder, ranks, exact=False), teacher_of(case, folder, exact=False)
    learner._gradient(samples_of(case, teacher))
    return {name: whole(p.grad).clone() for name, p in learner.parameters.items() if p.grad is not None}


def save(case: Case, folder: Path, ranks: Ranks, to: Path) -> dict[str, Tensor]:
    """A checkpoint of two updates, and what it should hold."""
    learner, teacher = learner_of(case, folder, ranks, exact=False), teacher_of(case, folder, exact=False)
    for seed in range(2):
        update(learner, samples_of(case, teacher, seed))
    learner.save(to)
    return state_of(learner)


def restored(case: Case, folder: Path, ranks: Ranks, to: Path) -> LocalLearner:
    source = None if learner_config(case).lora else to / "model"
    learner = learner_of(case, folder, ranks, exact=False, source=source)
    learner.restore(to)
    return learner


def state_of(learner: LocalLearner) -> dict[str, Tensor]:
    """Weights and the optimizer's state, whole."""
    state = dict(weights_of(learner))
    for name, parameter in learner.parameters.items():
        for key, value in learner.optimizer.state[parameter].items():
            state[f"{key} of {name}"] = whole(value).clone()
    return state


def weights_of(learner: LocalLearner) -> dict[str, Tensor]:
    return {name: whole(parameter.detach()).clone() for name, parameter in learner.parameters.items()}


def update(learner: LocalLearner, samples: list[Scored]) -> StepReport:
    return asyncio.run(learner.update(samples))
