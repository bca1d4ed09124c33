"""The three ways a response's log-probs are computed (sampler, learner, teacher), and the one they must equal.

Whatever touches the engine, the learner and the teacher is in the three functions here.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from limbeck.config.engine import HFEngineConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.engines.hf import InProcessEngine
from limbeck.learners.local import LocalLearner
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM, turn_off_training_noise
from limbeck.records import Failure, Key, Prompt, Rollout, SampleRequest, Sampling, Scored, ScoreRequest, single_turn
from limbeck.teachers.local import LocalTeacher

Logprobs = list[np.ndarray]  # [S] of each response


def sampled(
    lm: CausalLM, prompts: Sequence[Prompt], sampling: Sampling, samples: int
) -> tuple[list[Rollout], str | None]:
    """Responses with the log-probs they were drawn with; and why transformers decodes them, None where it does not."""
    engine = InProcessEngine(lm, HFEngineConfig())
    keyed = [(prompt, Key(prompt.id, 0, sample)) for prompt in prompts for sample in range(samples)]
    unit = [SampleRequest(key, np.array(prompt.token_ids), sampling) for prompt, key in keyed]

    async def run() -> list[Rollout]:
        await engine.load(LocalPolicy(lm))
        answers = await engine.sample(unit)
        return [
            single_turn(prompt, key, answer, sampling)
            for (prompt, key), answer in zip(keyed, answers, strict=True)
            if not isinstance(answer, Failure)
        ]

    return asyncio.run(run()), engine.decoder.why


def _requests(rollouts: Sequence[Rollout]) -> list[ScoreRequest]:
    return [ScoreRequest(r.prompt.id, r.token_ids, r.trained, r.sampling.temperature, "full") for r in rollouts]


def learned(lm: CausalLM, teacher: LocalTeacher, rollouts: Sequence[Rollout]) -> tuple[Logprobs, Logprobs, float, bool]:
    """As an update computes them: the student's, the teacher's; the KL that it reports, and whether prompts are shared.

    And an update is made, so that a model that cannot be trained is found here.
    """
    turn_off_training_noise(lm)
    learner = LocalLearner(lm, LocalLearnerConfig(lr=1e-30), ReverseKLConfig(), steps=1, seed=0, heads=teacher.heads)

    async def run() -> tuple[Logprobs, Logprobs, float]:
        scored = [
            Scored(rollout, scores)
            for rollout, scores in zip(rollouts, await teacher.score(_requests(rollouts)), strict=True)
            if not isinstance(scores, Failure)
        ]
        traces = await learner.trace(scored, top=1)
        report = await learner.update(scored)
        kl = report.values()["reverse_kl/exact"]
        return [t.student_logprobs for t in traces], [t.teacher_logprobs for t in traces], kl

    ours, theirs, kl = asyncio.run(run())
    return ours, theirs, kl, learner.layout == "tree"


def taught(lm: CausalLM) -> LocalTeacher:
    """A teacher of its own copy of the weights."""
    return LocalTeacher("teacher", CausalLM(lm.name, copy.deepcopy(lm.model), lm.tokenizer, lm.vocabulary))


def alone(model: PreTrainedModel, rollouts: Sequence[Rollout], vocabulary: int) -> Logprobs:
    """What transformers says of each sequence by itself: no batch, no padding, no cache, in evaluation mode.

    In eager attention where the model has it, which writes down what other implementations may leave out.
    """
    with contextlib.suppress(ValueError):
        model.set_attn_implementation("eager")
    found = []
    for rollout in rollouts:
        with torch.no_grad():
            logits_LV = model(input_ids=torch.from_numpy(rollout.token_ids)[None], use_cache=False).logits[
                0, :-1, :vocabulary
            ]
        logp_LV = torch.log_softmax(logits_LV.double() / rollout.sampling.temperature, dim=-1)
        logp_SV = logp_LV[torch.from_numpy(rollout.trained)[1:]]
        found.append(logp_SV.gather(1, torch.from_numpy(rollout.response_ids)[:, None])[:, 0].numpy())
    return found
