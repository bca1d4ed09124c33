"""The gradient of a teacher with another prompt, by enumeration: every next token, every support, every divergence.

The student is given one prompt and the teacher another, through another template that ends turns with another token.
What is expected is written down here with plain autograd: q(v) is the teacher's probability, after its own prompt, of
the token that stands for v.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.assemble.views import heads_as_seen
from limbeck.config.objective import ForwardKLConfig, JSDConfig, ObjectiveConfig, ReverseKLConfig
from limbeck.config.view import PromptedViewConfig
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Chat, Key, Prompt, Rollout, Sampled, Sampling, Scored, single_turn
from limbeck.teacher_views.prompted import PromptedView
from limbeck.teacher_views.prompts import TeacherPrompts
from limbeck.teacher_views.relabelling import relabelling_of
from tests.helpers import learner_of

from .templates import CHATML, LLAMA3, lm_of

T = 0.7
CASES = [
    (ReverseKLConfig(support="sampled", importance_cap=1e30), "sampled"),
    (ReverseKLConfig(support=3, importance_cap=1e30), 3),
    (ReverseKLConfig(support="student_top", k=3, importance_cap=1e30), "student_top"),
    (ReverseKLConfig(support="full"), "full"),
    (ForwardKLConfig(support="full"), "full"),
    (JSDConfig(support="full", beta=0.3), "full"),
]


@pytest.fixture(scope="module")
def student() -> CausalLM:
    return lm_of(CHATML, 0)


@pytest.fixture(scope="module")
def teacher() -> CausalLM:
    return lm_of(LLAMA3, 1)


def world(student: CausalLM, teacher: CausalLM) -> tuple[PromptedView, Prompt]:
    section = PromptedViewConfig(system="Be sure.", context="It is {answer}.")
    chat = Chat(({"role": "user", "content": "1+1="},))
    ids = tuple(student.tokenizer.apply_chat_template(list(chat.messages), add_generation_prompt=True)["input_ids"])
    prompt = Prompt("p", ids, text="1+1=", answer="2", chat=chat)
    prompts = TeacherPrompts(section, student.tokenizer, teacher.tokenizer)
    return PromptedView(prompts, relabelling_of(student.tokenizer, prompts.tokenizer)), prompt


def next_logprobs(lm: CausalLM, ids: Any) -> torch.Tensor:
    """[V] at T, of the token after `ids`."""
    return torch.log_softmax(lm.model(torch.as_tensor(ids)[None], use_cache=False).logits[0, -1] / T, dim=-1)


def divergence(objective: ObjectiveConfig, logp_V: torch.Tensor, logq_V: torch.Tensor) -> torch.Tensor:
    p_V, q_V = logp_V.exp(), logq_V.exp()
    if isinstance(objective, ForwardKLConfig):
        return (q_V * (logq_V - logp_V)).sum()
    if isinstance(objective, JSDConfig):  # GKD, equation 3
        beta = objective.beta
        mixture_V = (beta * q_V + (1 - beta) * p_V).log()
        return (beta * q_V * (logq_V - mixture_V) + (1 - beta) * p_V * (logp_V - mixture_V)).sum()
    return (p_V * (logp_V - logq_V)).sum()


@pytest.mark.parametrize(("objective", "support"), CASES, ids=lambda case: getattr(case, "divergence", case))
def test_the_expected_gradient_is_that_of_the_divergence_from_the_teacher_with_its_own_prompt(
    student: CausalLM, teacher: CausalLM, objective: ObjectiveConfig, support: Any
) -> None:
    view, prompt = world(student, teacher)
    logp_V = next_logprobs(student, prompt.token_ids)
    stands_for = view.relabelling.to_teacher(np.arange(student.vocabulary))
    with torch.no_grad():
        logq_V = next_logprobs(teacher, view.prompt_ids(prompt))[torch.from_numpy(stands_for)]
    parameters = list(student.model.parameters())
    expected = torch.autograd.grad(divergence(objective, logp_V, logq_V), parameters)

    scorer = LocalPolicy(teacher)
    heads = {head.fingerprint(): head for head in [teacher.head().detach()]}
    learner = learner_of(student, objective=objective, max_grad_norm=0)
    learner.know_heads(heads_as_seen(view, heads))
    tops = logp_V.topk(3).indices.numpy()[None]
    total = [torch.zeros_like(parameter) for parameter in parameters]
    tokens = range(student.vocabulary) if support != "full" else [int(logp_V.argmax()), student_end(student)]
    for token in tokens:  # of the whole vocabulary every sampled token gives the same
        rollout = one_token(prompt, token, logp_V[token].item(), tops)
        seen = view.see(rollout, tops if support == "student_top" else support)
        (answer,) = asyncio.run(scorer.score([seen.request]))
        learner._gradient([Scored(rollout, view.read(rollout, seen, answer))])
        weight = logp_V[token].exp().item() if support != "full" else 1 / len(tokens)
        total = [sum_ + weight * p.grad for sum_, p in zip(total, parameters, strict=True)]
    norm = torch.sqrt(sum((g**2).sum() for g in expected))
    apart = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(total, expected, strict=True)))
    assert norm > 1e-3
    assert apart < 1e-6 * norm  # scores are float32


def student_end(student: CausalLM) -> int:
    return int(student.tokenizer.convert_tokens_to_ids("<|im_end|>"))


def one_token(prompt: Prompt, token: int, logprob: float, tops: np.ndarray) -> Rollout:
    sampled = Sampled(np.array([token]), np.array([logprob], np.float32), "stop", 0, tops)
    return single_turn(prompt, Key("p"), sampled, Sampling(T, max_tokens=1))


def test_at_the_teacher_itself_there_is_no_gradient(student: CausalLM) -> None:
    """The same weights, prompt and template: nothing to learn. With a context of its own there is."""
    section = PromptedViewConfig()
    prompts = TeacherPrompts(section, student.tokenizer, student.tokenizer)
    view = PromptedView(prompts, relabelling_of(student.tokenizer, student.tokenizer))
    _, prompt = world(student, student)
    assert tuple(view.prompt_ids(prompt)) == prompt.token_ids
    tells = PromptedViewConfig(context="It is {answer}.")
    telling = PromptedView(TeacherPrompts(tells, student.tokenizer, student.tokenizer), view.relabelling)
    learner = learner_of(student, student, max_grad_norm=0)
    logp = next_logprobs(student, prompt.token_ids)[20].item()
    rollout = one_token(prompt, 20, logp, np.zeros((1, 1), np.int64))
    norms = []
    for each in (view, telling):
        seen = each.see(rollout, "full")
        (answer,) = asyncio.run(LocalPolicy(student).score([seen.request]))
        norms.append(learner._gradient([Scored(rollout, each.read(rollout, seen, answer))])[2])
    assert norms[0] < 1e-10 < 1e-3 < norms[1]


def test_a_position_whose_token_is_masked_has_no_gradient(student: CausalLM, teacher: CausalLM) -> None:
    """Its own; the tokens beside it are trained as if it were not there, over their own number."""
    view, prompt = world(student, teacher)
    token = student_end(student)
    masking = PromptedView(view.prompts, replace(view.relabelling, masked={token: "end_of_turn"}))
    sampled = Sampled(np.array([20, token]), np.zeros(2, np.float32), "stop", 0)
    rollout = single_turn(prompt, Key("p"), sampled, Sampling(T, max_tokens=2))
    learner = learner_of(student, objective=ReverseKLConfig(support="sampled"), max_grad_norm=0)

    def gradient(each: PromptedView, of: Rollout) -> list[torch.Tensor]:
        seen = each.see(of, "sampled")
        (answer,) = asyncio.run(LocalPolicy(teacher).score([seen.request]))
        learner._gradient([Scored(of, each.read(of, seen, answer))])
        return [p.grad.clone() for p in student.model.parameters()]

    seen = masking.see(rollout, "sampled")
    assert seen.left_out == {"end_of_turn": 1}
    assert seen.student_group.tolist() == [0, -1]
    first = single_turn(
        prompt, Key("p"), Sampled(np.array([20]), np.zeros(1, np.float32), "stop", 0), Sampling(T, max_tokens=2)
    )
    for masked, alone in zip(gradient(masking, rollout), gradient(view, first), strict=True):
        assert torch.allclose(masked, alone, atol=1e-9)
