"""The in-process teacher: what it says of the response positions, and that a student who is it has no KL.

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
from limbeck.contract.probes import check_tokenizers, logprobs_of_sampled
from limbeck.engines.hf import InProcessEngine
from limbeck.errors import ContractError
from limbeck.learners.batch import make_batch
from limbeck.learners.local import InProcessLearner
from limbeck.models.causal_lm import CausalLM
from limbeck.models.layout import Layout
from limbeck.models.loading import load_model
from limbeck.records import HiddenScores, Rollout, Sampling, Scored, StepReport, TokenScores
from limbeck.teachers.local import LocalTeacher
from tests import tiny

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)
TEMPERATURES = (0.5, 0.7, 1.0, 1.5)


def teacher_of(family: str = "llama", budget: int = 8192) -> LocalTeacher:
    return LocalTeacher("teacher", tiny.fresh(family), budget)


def rollouts(temperature: float = 1.0) -> list[Rollout]:
    """Lengths out of order, and among the masks: two turns, no token at all, everything but the first."""
    dice = np.random.default_rng(4)
    masks = [
        [0] * 4 + [1] * 3,
        [0] * 2 + [1] * 12,
        [0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1],
        [0] * 5,
        [0] + [1] * 15,
        [0] * 9 + [1],
    ]
    return [
        tiny.rollout(dice.integers(tiny.VOCABULARY, size=len(mask)).tolist(), mask, temperature, name=f"r{number}")
        for number, mask in enumerate(masks)
    ]


async def hidden_scores(teacher: LocalTeacher, asked: Sequence[Rollout]) -> list[HiddenScores]:
    scores = [score for score in await teacher.score(asked) if isinstance(score, HiddenScores)]
    assert len(scores) == len(asked)
    return scores


# What it says


@pytest.mark.parametrize("temperature", TEMPERATURES)
@every_family
async def test_scores_are_the_models_own_log_probs_at_the_temperature(family: str, temperature: float) -> None:
    teacher, asked = teacher_of(family), rollouts(temperature)
    for rollout, scores in zip(asked, await hidden_scores(teacher, asked), strict=True):
        assert scores.temperature == temperature
        assert scores.teacher == "teacher"
        theirs = tiny.logprobs_of_sampled(teacher.lm.model, rollout, temperature)
        assert_close(torch.tensor(logprobs_of_sampled(scores, rollout)).double(), theirs, atol=1e-4, rtol=0)


@every_family
async def test_the_whole_distribution_is_there(family: str) -> None:
    """Hidden states and head give log q of every token, not of the sampled one only."""
    teacher, asked = teacher_of(family), rollouts()
    for rollout, scores in zip(asked, await hidden_scores(teacher, asked), strict=True):
        theirs = tiny.logprobs(teacher.lm.model, rollout.token_ids)[rollout.trained[1:]]
        ours = scores.head.logits(scores.hidden).detach().log_softmax(-1)
        assert_close(ours.double(), theirs, atol=1e-4, rtol=0)


async def test_only_response_positions_are_kept() -> None:
    asked = rollouts()
    scores = await hidden_scores(teacher_of(), asked)
    assert [score.hidden.shape for score in scores] == [(int(rollout.trained.sum()), 32) for rollout in asked]


@pytest.mark.parametrize("budget", [1, 16, 30, 8192])
async def test_order_does_not_depend_on_how_the_work_is_split(budget: int) -> None:
    asked = rollouts()
    whole = await hidden_scores(teacher_of(), asked)
    parts = await hidden_scores(teacher_of(budget=budget), asked)
    for one, other in zip(whole, parts, strict=True):
        assert_close(other.hidden, one.hidden, atol=1e-5, rtol=1e-5)


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
    teacher, asked = teacher_of(budget=20), rollouts()
    teacher.layout = layout
    with forwards(teacher.lm) as shapes:
        await teacher.score(asked)
    if layout == "padded":
        assert sum(rows for rows, _ in shapes) == len(asked)
    assert all(rows * length <= 20 for rows, length in shapes)
    assert len(shapes) < len(asked)


async def test_nothing_to_score() -> None:
    assert await teacher_of().score([]) == []
    (scores,) = await hidden_scores(teacher_of(), [tiny.rollout([5, 6, 7], [0, 0, 0])])
    assert scores.hidden.shape == (0, 32)


async def test_it_is_frozen_and_has_no_dropout() -> None:
    lm = tiny.fresh("gpt2")
    for module in lm.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    lm.model.train()
    teacher = LocalTeacher("teacher", lm)
    first, second = [(await hidden_scores(teacher, rollouts()))[1] for _ in range(2)]
    assert_close(first.hidden, second.hidden, atol=0, rtol=0)
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    assert not first.hidden.requires_grad


# A student that is its teacher


async def report(student: CausalLM, teacher: LocalTeacher, temperature: float, layout: Layout = "padded") -> StepReport:
    """What the learner measures of the student's own samples, marked by the teacher."""
    sampling = Sampling(temperature, 12, stop_ids=tuple(range(5, 15)))
    sampled = await InProcessEngine(student, HFEngineConfig(max_rows=5)).sample(tiny.prompts(6, 1, 11, 3), sampling, 2)
    asked = [rollout for rollout in sampled if isinstance(rollout, Rollout)]
    scores = await hidden_scores(teacher, asked)
    section = LocalLearnerConfig(layout=layout, micro_batch_tokens=40)
    learner = InProcessLearner(student, section, ReverseKLConfig(), steps=1, seed=0)
    return await learner.measure([Scored(*pair) for pair in zip(asked, scores, strict=True)])


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
    """What a served teacher does: it says it scored at T, and scored at 1."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[HiddenScores]:  # type: ignore[override]
        honest = await hidden_scores(LocalTeacher(self.name, self.lm), rollouts)
        return [replace(scores, hidden=scores.hidden * scores.temperature) for scores in honest]


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
    """Filler rows that would win every time are left out on both sides, by sampler, loss and teacher."""
    lms = {"student": tiny.fresh(), "teacher": tiny.fresh()}
    lm = lms[padded]
    plain = lm.model.lm_head.weight.detach().clone()
    lm.model.resize_token_embeddings(tiny.VOCABULARY + 28)
    with torch.no_grad():
        lm.model.lm_head.weight[tiny.VOCABULARY :] = 3 * plain[:28]
    lm.vocabulary = tiny.VOCABULARY + 28
    check_tokenizers(lms["student"], lms["teacher"])
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
    scores = await hidden_scores(teacher, asked)
    samples = [Scored(*pair) for pair in zip(asked, scores, strict=True)]
    learner = InProcessLearner(student, LocalLearnerConfig(), ReverseKLConfig(), steps=1, seed=0)
    assert (await learner.update(samples)).maxima["grad_norm"] < 1e-4


# The temperature is checked once more where scores meet rollouts


async def test_scores_of_another_temperature_are_refused() -> None:
    (asked,) = [rollout for rollout in rollouts(0.7) if rollout.prompt.id == "r2"]
    (scores,) = await hidden_scores(teacher_of(), [asked])
    values = np.asarray(logprobs_of_sampled(scores, asked), dtype=np.float32)
    for given in (scores, TokenScores("teacher", 0.7, values)):
        make_batch([Scored(asked, given)], "padded", 100, torch.device("cpu"))
        for sample in (
            Scored(asked, replace(given, temperature=1.0)),
            Scored(asked, given, reference=replace(scores, temperature=1.0)),
        ):
            with pytest.raises(ContractError, match=r"teacher.*'r2' at temperature 1\.0.*sampled it at 0\.7"):
                make_batch([sample], "padded", 100, torch.device("cpu"))


async def test_scores_of_another_length_are_refused() -> None:
    asked = rollouts()[2]
    (scores,) = await hidden_scores(teacher_of(), [asked])
    with pytest.raises(ContractError, match="gave 4 scores for the 5 sampled tokens of prompt 'r2'"):
        make_batch([Scored(asked, replace(scores, hidden=scores.hidden[:-1]))], "padded", 100, torch.device("cpu"))
