"""The in-process teacher: its scores of the response positions, and that a student who is it has no KL.

Shape legend: S sampled tokens, d hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from limbeck.config.base import ModelConfig
from limbeck.config.engine import HFEngineConfig
from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import ReverseKLConfig
from limbeck.contract.answers import logprobs_of_sampled
from limbeck.contract.tokenizers import check_tokenizers
from limbeck.engines.hf import InProcessEngine
from limbeck.errors import ContractError
from limbeck.learners.batch import make_batch
from limbeck.learners.local import LocalLearner
from limbeck.learners.policy import LocalPolicy
from limbeck.models.causal_lm import CausalLM, shared_vocabulary
from limbeck.models.layout import Layout
from limbeck.models.loading import load_model
from limbeck.models.states import LocalStates
from limbeck.records import (
    Failure,
    HiddenScores,
    Key,
    Rollout,
    Sampled,
    SampleRequest,
    Sampling,
    Scored,
    ScoreRequest,
    TokenScores,
    request_of,
    single_turn,
)
from limbeck.reports import StepReport
from limbeck.teacher_views.same import SameView
from limbeck.teachers.local import LocalTeacher
from tests import tiny

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
TEMPERATURES = (0.5, 0.7, 1.0, 1.5)


def teacher_of(family: str = "llama", budget: int = 8192) -> LocalTeacher:
    return LocalTeacher("teacher", tiny.fresh(family), budget)


def rollouts(temperature: float = 1.0) -> list[Rollout]:
    """Lengths out of order, and among the masks: two turns, no token at all, everything but the first."""
    rng = np.random.default_rng(4)
    masks = [
        [0] * 4 + [1] * 3,
        [0] * 2 + [1] * 12,
        [0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1],
        [0] * 5,
        [0] + [1] * 15,
        [0] * 9 + [1],
    ]
    return [
        tiny.rollout(rng.integers(tiny.VOCABULARY, size=len(mask)).tolist(), mask, temperature, name=f"r{number}")
        for number, mask in enumerate(masks)
    ]


def requests(temperature: float = 1.0) -> list[ScoreRequest]:
    return [SameView().see(rollout, "full").request for rollout in rollouts(temperature)]


async def hidden_scores(teacher: LocalTeacher, unit: Sequence[ScoreRequest]) -> list[HiddenScores]:
    scores = [score for score in await teacher.score(unit) if isinstance(score, HiddenScores)]
    assert len(scores) == len(unit)
    return scores


# Its scores


@pytest.mark.parametrize("temperature", TEMPERATURES)
@every_family
async def test_scores_are_the_models_own_log_probs_at_the_temperature(family: str, temperature: float) -> None:
    teacher, unit = teacher_of(family), requests(temperature)
    for rollout, request, scores in zip(rollouts(), unit, await hidden_scores(teacher, unit), strict=True):
        assert (scores.scorer, scores.natural_temperature) == ("teacher", 1.0)
        theirs = tiny.logprobs_of_sampled(teacher.lm.model, rollout, temperature)
        ours = logprobs_of_sampled(scores, request, teacher.heads)
        assert_close(torch.from_numpy(ours), theirs, atol=1e-4, rtol=0)


@every_family
async def test_the_whole_distribution_is_there(family: str) -> None:
    """Hidden states and head give log q of every token, not of the sampled one only."""
    teacher, unit = teacher_of(family), requests()
    for request, scores in zip(unit, await hidden_scores(teacher, unit), strict=True):
        theirs = tiny.logprobs(teacher.lm.model, request.token_ids)[request.scored[1:]]
        ours = teacher.heads[scores.head].logits(scores.states.fetch()).detach().log_softmax(-1)
        assert_close(ours.double(), theirs, atol=1e-4, rtol=0)


async def test_only_response_positions_are_kept() -> None:
    unit = requests()
    scores = await hidden_scores(teacher_of(), unit)
    assert [score.states.shape for score in scores] == [(int(request.scored.sum()), 32) for request in unit]


@pytest.mark.parametrize("budget", [1, 16, 30, 8192])
async def test_order_does_not_depend_on_how_the_work_is_split(budget: int) -> None:
    at_once = await hidden_scores(teacher_of(), requests())
    in_parts = await hidden_scores(teacher_of(budget=budget), requests())
    for one, other in zip(at_once, in_parts, strict=True):
        assert_close(other.states.fetch(), one.states.fetch(), atol=1e-5, rtol=1e-5)


@contextmanager
def forwards(lm: CausalLM) -> Iterator[list[tuple[int, int]]]:
    """(rows, row length) of every pass through the model."""
    shapes: list[tuple[int, int]] = []
    hook = lm.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape))
    )
    yield shapes
    hook.remove()


@pytest.mark.parametrize("layout", ["padded", "tree"])
async def test_the_budget_bounds_a_pass(layout: Layout) -> None:
    teacher, unit = teacher_of(budget=20), requests()
    teacher.layout = layout
    with forwards(teacher.lm) as shapes:
        await teacher.score(unit)
    if layout == "padded":
        assert sum(rows for rows, _ in shapes) == len(unit)
    assert all(rows * length <= 20 for rows, length in shapes)
    assert len(shapes) < len(unit)


async def test_what_the_model_has_no_answer_to_is_a_failure_and_the_others_are_scored() -> None:
    """Beyond a context rotary positions go on where nothing was learned, and may depend on the batch."""
    teacher, (good, *_) = teacher_of(), requests()
    asked = [
        request_of([5] * (tiny.CONTEXT + 1), 1, 0.7, id="long"),
        good,
        request_of([5, 6, tiny.VOCABULARY], 1, 0.7, id="outside"),
        request_of([5, 6, -1], 1, 0.7, id="negative"),
        request_of([5] * tiny.CONTEXT, 1, 0.7, 10**6, "as long as can be"),
    ]
    long, fine, outside, negative, longest = await teacher.score(asked)
    (alone,) = await hidden_scores(teacher, [good])
    assert isinstance(fine, HiddenScores)
    assert isinstance(longest, HiddenScores)
    assert_close(fine.states.fetch(), alone.states.fetch(), atol=1e-5, rtol=1e-5)
    for failure, why in (
        (long, "65 tokens, but the model's context is 64"),
        (outside, "0 to 99"),
        (negative, "0 to 99"),
    ):
        assert isinstance(failure, Failure)
        assert failure.kind == "bad_request"
        assert why in failure.message


async def test_nothing_to_score() -> None:
    assert await teacher_of().score([]) == []
    (scores,) = await hidden_scores(teacher_of(), [ScoreRequest("q", np.array([5, 6, 7]), np.zeros(3, bool), 1.0)])
    assert scores.states.shape == (0, 32)


async def test_it_is_frozen_and_has_no_dropout() -> None:
    lm = tiny.fresh("gpt2")
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    lm.model.train()
    teacher = LocalTeacher("teacher", lm)
    first, second = [(await hidden_scores(teacher, requests()))[1].states.fetch() for _ in range(2)]
    assert_close(first, second, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not first.requires_grad


# A student that is its teacher


async def report(student: CausalLM, teacher: LocalTeacher, temperature: float, layout: Layout = "padded") -> StepReport:
    """What the learner measures of the student's own samples, scored by the teacher."""
    asked = await samples_of(student, Sampling(temperature, 12, stop_ids=tuple(range(5, 15))))
    learner = learner_of(student, teacher, LocalLearnerConfig(layout=layout, micro_batch_tokens=40))
    return await learner.measure(await scored(teacher, asked))


async def samples_of(student: CausalLM, sampling: Sampling) -> list[Rollout]:
    """Two of each of four prompts."""
    unit = [
        (prompt, SampleRequest(Key(prompt.id, 0, number), np.array(prompt.token_ids), sampling))
        for prompt in tiny.prompts(6, 1, 11, 3)
        for number in range(2)
    ]
    engine = InProcessEngine(student, HFEngineConfig(max_rows=len(unit)))
    await engine.load(LocalPolicy(student))
    sampled = await engine.sample([request for _, request in unit])
    return [
        single_turn(prompt, request.key, turn, sampling)
        for (prompt, request), turn in zip(unit, sampled, strict=True)
        if isinstance(turn, Sampled)
    ]


async def scored(teacher: LocalTeacher, asked: Sequence[Rollout]) -> list[Scored]:
    scores = await hidden_scores(teacher, [SameView().see(rollout, "full").request for rollout in asked])
    return [Scored(*pair) for pair in zip(asked, scores, strict=True)]


def learner_of(student: CausalLM, teacher: LocalTeacher, config: LocalLearnerConfig) -> LocalLearner:
    return LocalLearner(student, config, ReverseKLConfig(), steps=1, seed=0, heads=teacher.heads)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
@every_family
async def test_a_student_equal_to_its_teacher_has_no_kl(family: str, temperature: float, layout: Layout) -> None:
    values = (await report(tiny.fresh(family), teacher_of(family), temperature, layout)).values()
    assert abs(values["reverse_kl/exact"]) < 1e-5
    assert abs(values["reverse_kl/sampled"]) < 1e-5
    assert values["mismatch"] < 1e-5
    assert values["importance/mean"] == pytest.approx(1, abs=1e-5)


class AtTemperatureOne(LocalTeacher):
    """What a served teacher does: its answer, divided by T, is the distribution at 1."""

    async def score(self, unit: Sequence[ScoreRequest]) -> list[HiddenScores]:  # type: ignore[override]
        honest = await hidden_scores(LocalTeacher(self.name, self.lm), unit)
        return [
            replace(scores, states=LocalStates(scores.states.fetch() * request.temperature))
            for request, scores in zip(unit, honest, strict=True)
        ]


@pytest.mark.parametrize("temperature", TEMPERATURES)
async def test_a_teacher_left_at_temperature_one_shows(temperature: float) -> None:
    """The mistake this package exists to prevent: the same weights have a KL, and at T = 1 alone none."""
    teacher = AtTemperatureOne("teacher", tiny.fresh())
    kl = (await report(tiny.fresh(), teacher, temperature)).values()["reverse_kl/exact"]
    assert abs(kl) < 1e-5 if temperature == 1 else kl > 0.02


async def test_a_student_that_is_not_its_teacher_shows() -> None:
    student = tiny.fresh()
    with torch.no_grad():
        student.model.model.norm.weight.mul_(1.05)
    assert (await report(student, teacher_of(), 0.7)).values()["reverse_kl/exact"] > 1e-3


@pytest.mark.parametrize("padded", ["student", "teacher"])
async def test_padded_tables_of_one_tokenizer_have_no_kl(padded: str) -> None:
    """Padded rows that would win every time are masked on both sides, by sampler, loss and teacher."""
    lms = {"student": tiny.fresh(), "teacher": tiny.fresh()}
    lm = lms[padded]
    plain = lm.model.lm_head.weight.detach().clone()
    lm.model.resize_token_embeddings(tiny.VOCABULARY + 28)
    with torch.no_grad():
        lm.model.lm_head.weight[tiny.VOCABULARY :] = 3 * plain[:28]
    lm.vocabulary = tiny.VOCABULARY + 28
    check_tokenizers(lms["student"], lms["teacher"])
    for one in lms.values():
        one.vocabulary = shared_vocabulary(list(lms.values()))
    teacher = LocalTeacher("teacher", lms["teacher"])
    assert teacher.head.vocabulary == tiny.VOCABULARY
    values = (await report(lms["student"], teacher, 0.7)).values()
    assert abs(values["reverse_kl/exact"]) < 1e-5
    assert values["mismatch"] < 1e-5


async def test_models_read_from_disk_have_no_kl() -> None:
    """The same through `load_model`, the way a run gets them."""
    section = ModelConfig(model=tiny.folder_of("qwen2"))
    student, teacher = (load_model(section, torch.device("cpu")) for _ in range(2))
    assert (await report(student, LocalTeacher("teacher", teacher), 1.5)).values()["reverse_kl/exact"] < 1e-5


async def test_an_update_towards_an_equal_teacher_has_no_gradient() -> None:
    """And the teacher's states can be used by a loss that is differentiated."""
    student, teacher = tiny.fresh(), teacher_of()
    asked = [rollout for rollout in rollouts(0.7) if rollout.trained.any()]
    learner = learner_of(student, teacher, LocalLearnerConfig())
    assert (await learner.update(await scored(teacher, asked))).maxima["grad_norm"] < 1e-4


# The temperature is checked once more where scores meet rollouts


async def test_scores_of_another_temperature_are_refused() -> None:
    teacher = teacher_of()
    ((asked, hidden),) = [(s.rollout, s.scores) for s in await scored(teacher, rollouts(0.7)[2:3])]
    assert isinstance(hidden, HiddenScores)
    request = SameView().see(asked, "full").request
    values = TokenScores("teacher", 0.7, logprobs_of_sampled(hidden, request, teacher.heads).astype(np.float32))
    device, baked = torch.device("cpu"), replace(hidden, natural_temperature=0.7)
    make_batch([Scored(asked, hidden, reference=hidden)], "padded", 100, device, teacher.heads)
    make_batch([Scored(asked, values)], "padded", 100, device)
    for sample, reason in (
        (Scored(asked, replace(values, temperature=1.0)), r"'r2'.*at temperature 1\.0.*sampled at 0\.7"),
        (Scored(asked, baked), r"'r2'.*natural temperature 0\.7"),
        (Scored(asked, values, reference=baked), r"'r2'.*natural temperature 0\.7"),
    ):
        with pytest.raises(ContractError, match=reason):
            make_batch([sample], "padded", 100, device, teacher.heads)


async def test_scores_of_another_length_are_refused() -> None:
    teacher = teacher_of()
    (sample,) = await scored(teacher, rollouts()[2:3])
    assert isinstance(sample.scores, HiddenScores)
    shorter = replace(sample.scores, states=LocalStates(sample.scores.states.fetch()[:-1]))
    with pytest.raises(ContractError, match="'r2': 4 scores for 5 sampled tokens"):
        make_batch([replace(sample, scores=shorter)], "padded", 100, torch.device("cpu"), teacher.heads)
