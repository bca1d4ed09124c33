"""The update does not depend on how a step is split, and stops before it spoils the weights."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
import torch

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.objective import JSDConfig, ObjectiveConfig, ReferenceConfig, ReverseKLConfig, TaskRewardConfig
from limbeck.errors import ContractError, EngineError, NonFiniteError
from limbeck.learners.local import LocalLearner
from limbeck.learners.schedule import learning_rate
from limbeck.models.causal_lm import CausalLM
from limbeck.records import Scored
from tests.helpers import dense_scores, learner_of, random_samples, tiny_lm

LENGTHS = [5, 1, 9, 3, 0, 7, 2, 4]


def updated(
    objective: ObjectiveConfig,
    samples: list[Scored],
    dtype: torch.dtype = torch.float64,
    steps: int = 2,
    **section: object,
) -> dict[str, torch.Tensor]:
    """The weights of a fresh student after `steps` updates over `samples`."""
    lm = tiny_lm(1, dtype)
    learner = learner_of(lm, tiny_lm(2, dtype), objective=objective, lr=1e-2, **section)
    for _ in range(steps):
        asyncio.run(learner.update(samples))
    return {name: parameter.detach().clone() for name, parameter in lm.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, value in a.items():
        assert (value - b[name]).abs().max().item() <= tolerance, name


OBJECTIVES = [
    ReverseKLConfig(),
    ReverseKLConfig(support="sampled"),
    ReverseKLConfig(support=4, discount=0.9),
    JSDConfig(beta=0.3),
    ReverseKLConfig(support="sampled", discount=1.0, task_reward=TaskRewardConfig()),
]


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda o: f"{o.divergence}-{getattr(o, 'support', '')}-{o.discount}"
)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("micro_batches", [1, 2, 7])
def test_splits_and_layouts_give_one_update(objective: ObjectiveConfig, layout: str, micro_batches: int) -> None:
    """float64: 1e-10 between one padded micro-batch and any other arrangement, over two AdamW steps."""
    samples = random_samples(tiny_lm(2, torch.float64), LENGTHS, advantages=objective.task_reward is not None)
    whole = updated(objective, samples, micro_batch_tokens=10_000)
    budget = {1: 10_000, 2: 35 if layout == "packed" else 50, 7: 1}[micro_batches]
    split = updated(objective, samples, micro_batch_tokens=budget, layout=layout)
    same(whole, split, 1e-10)


def test_budgets_make_the_split_they_are_said_to() -> None:
    samples = random_samples(tiny_lm(2, torch.float64), LENGTHS)
    for layout, budget, count in (("padded", 50, 2), ("packed", 35, 2), ("padded", 1, 7), ("packed", 1, 7)):
        learner = learner_of(tiny_lm(1), tiny_lm(2, torch.float64), micro_batch_tokens=budget, layout=layout)
        assert len(learner._batch(samples).micro) == count, (layout, budget)


def test_order_of_samples_does_not_matter() -> None:
    samples = random_samples(tiny_lm(2, torch.float64), LENGTHS)
    same(updated(ReverseKLConfig(), samples), updated(ReverseKLConfig(), samples[::-1]), 1e-10)


def test_gradient_checkpointing_gives_the_same_update() -> None:
    samples = random_samples(tiny_lm(2, torch.float64), LENGTHS)
    same(updated(ReverseKLConfig(), samples), updated(ReverseKLConfig(), samples, gradient_checkpointing=True), 1e-10)


def test_update_is_the_gradient_of_the_mean_kl() -> None:
    """One update's gradient against plain autograd through transformers' own logits."""
    teacher, lm = tiny_lm(2, torch.float64), tiny_lm(1, torch.float64)
    samples = random_samples(teacher, LENGTHS)
    learner = learner_of(lm, teacher, lr=1e-2, max_grad_norm=0)
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples:
        rollout = sample.rollout
        ids = torch.from_numpy(rollout.token_ids)[None]
        predict = np.flatnonzero(rollout.trained) - 1
        logp = torch.log_softmax(lm.model(ids).logits[0, predict] / 0.7, -1)
        logq = torch.log_softmax(teacher.model(ids).logits[0, predict].detach() / 0.7, -1)
        total = total + (logp.exp() * (logp - logq)).sum()
    mean = total / sum(LENGTHS)
    expected = torch.autograd.grad(mean, list(lm.model.parameters()))
    norm = math.sqrt(sum(g.square().sum().item() for g in expected))
    report = asyncio.run(learner.update(samples))
    assert report.maxima["grad_norm"] == pytest.approx(norm, rel=1e-9)
    assert report.means["reverse_kl/exact"].value == pytest.approx(mean.item(), rel=1e-9)
    assert report.sums["tokens/trained"] == sum(LENGTHS)
    # AdamW's first step is lr * sign(g) (up to epsilon): the direction must be downhill everywhere.
    fresh = tiny_lm(1, torch.float64)
    for now, before, gradient in zip(lm.model.parameters(), fresh.model.parameters(), expected, strict=True):
        moved = gradient.abs() > 1e-6
        assert torch.equal((now - before)[moved].sign(), -gradient[moved].sign())


def test_updates_lower_the_kl() -> None:
    teacher, lm = tiny_lm(2), tiny_lm(1)
    samples = random_samples(teacher, LENGTHS)
    learner = learner_of(lm, teacher, lr=1e-2, steps=30)
    values = [asyncio.run(learner.update(samples)).means["reverse_kl/exact"].value for _ in range(30)]
    assert values[-1] < 0.5 * values[0]


def test_same_weights_have_no_kl_and_no_gradient() -> None:
    teacher = tiny_lm(1, torch.float64)
    learner = learner_of(tiny_lm(1, torch.float64), teacher)
    report = asyncio.run(learner.update(random_samples(teacher, LENGTHS)))
    assert abs(report.means["reverse_kl/exact"].value) < 1e-14
    assert report.maxima["grad_norm"] < 1e-12


def test_measure_changes_nothing_and_agrees_with_update() -> None:
    lm = tiny_lm(1)
    teacher = tiny_lm(2)
    samples = random_samples(teacher, LENGTHS)
    learner = learner_of(lm, teacher, steps=1)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    measured = asyncio.run(learner.measure(samples))
    same(before, dict(lm.model.named_parameters()), 0.0)
    assert all(p.grad is None for p in lm.model.parameters())
    report = asyncio.run(learner.update(samples))
    for name, mean in measured.means.items():
        assert mean.value == pytest.approx(report.means[name].value, rel=1e-6), name


def test_a_step_without_tokens_stops() -> None:
    learner = learner_of(tiny_lm(1), tiny_lm(2))
    with pytest.raises(EngineError, match="none of the 2 responses has a token to learn from"):
        asyncio.run(learner.update(random_samples(tiny_lm(2), [0, 0])))


class TestNonFinite:
    def poisoned(self) -> tuple[LocalLearner, CausalLM, list[Scored]]:
        teacher, lm = tiny_lm(2), tiny_lm(1)
        samples = random_samples(teacher, [4, 3, 5])
        bad = dense_scores(teacher, samples[1].rollout, samples[0].scores.head)
        bad.states.fetch()[1, 0] = float("nan")
        samples[1] = Scored(samples[1].rollout, bad)
        return learner_of(lm, teacher), lm, samples

    def test_stops_before_the_update_and_names_the_sample(self) -> None:
        learner, lm, samples = self.poisoned()
        before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
        policy = asyncio.run(learner.publish())
        with pytest.raises(NonFiniteError, match=r"nothing was updated.*1 of 3 \(p1\)") as caught:
            asyncio.run(learner.update(samples))
        assert [sample.rollout.prompt.id for sample in caught.value.samples] == ["p1"]
        same(before, dict(lm.model.named_parameters()), 0.0)
        assert learner.version == 0
        assert not learner.optimizer.state
        assert policy.hold().version == 0  # its lease goes on

    def test_the_next_update_is_clean(self) -> None:
        learner, _, samples = self.poisoned()
        with pytest.raises(NonFiniteError):
            asyncio.run(learner.update(samples))
        report = asyncio.run(learner.update([samples[0], samples[2]]))
        assert math.isfinite(report.maxima["grad_norm"])


def test_bfloat16_keeps_float32_weights_and_learns() -> None:
    lm, teacher = tiny_lm(1), tiny_lm(2)
    samples = random_samples(teacher, LENGTHS)
    learner, exact = learner_of(lm, teacher, lr=1e-2, precision="bfloat16"), learner_of(tiny_lm(1), teacher)
    rough = asyncio.run(learner.measure(samples)).means["reverse_kl/exact"].value
    assert rough == pytest.approx(asyncio.run(exact.measure(samples)).means["reverse_kl/exact"].value, rel=0.05)
    values = [asyncio.run(learner.update(samples)).means["reverse_kl/exact"].value for _ in range(10)]
    assert values[-1] < 0.8 * values[0]
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}


def test_reference_pulls_towards_where_it_began() -> None:
    """With a reference of the initial weights, the student moves less far from them."""
    teacher, initial = tiny_lm(2), tiny_lm(1)

    def distance(weight: float | None) -> float:
        lm = tiny_lm(1)
        samples = [
            Scored(s.rollout, s.scores, reference=dense_scores(initial, s.rollout) if weight else None)
            for s in random_samples(teacher, LENGTHS)
        ]
        objective = ReverseKLConfig(reference=ReferenceConfig(weight=weight) if weight else None)
        learner = learner_of(lm, teacher, initial, objective=objective, steps=20, lr=1e-2)
        for _ in range(20):
            report = asyncio.run(learner.update(samples))
        mine = random_samples(initial, LENGTHS)
        against = learner_of(lm, initial)
        assert ("reverse_kl/reference" in report.means) == bool(weight)
        return asyncio.run(against.measure(mine)).means["reverse_kl/exact"].value

    assert distance(3.0) < 0.5 * distance(None)


def test_heads_are_narrowed_to_the_students_vocabulary() -> None:
    """Padded rows of a teacher's head are no outcomes; a head of fewer rows is another vocabulary."""
    lm, teacher = tiny_lm(1, torch.float64), tiny_lm(2, torch.float64)
    samples = random_samples(teacher, LENGTHS)
    expected = asyncio.run(learner_of(tiny_lm(1, torch.float64), teacher).update(samples))
    padded = tiny_lm(2, torch.float64)
    weight = padded.model.lm_head.weight
    padded.model.lm_head.weight = torch.nn.Parameter(torch.cat([weight, 9 * torch.ones(3, weight.shape[1]).double()]))
    padded.vocabulary += 3
    found = asyncio.run(learner_of(lm, padded).update(random_samples(padded, LENGTHS)))
    assert found.values()["reverse_kl/exact"] == pytest.approx(expected.values()["reverse_kl/exact"], rel=1e-12)
    assert found.maxima["grad_norm"] == pytest.approx(expected.maxima["grad_norm"], rel=1e-12)
    padded.vocabulary = lm.vocabulary - 2
    with pytest.raises(ContractError, match=r"has 25 tokens, but .* is compared over 27"):
        asyncio.run(learner_of(lm, padded).update(random_samples(padded, LENGTHS)))


def test_schedules() -> None:
    section = LocalLearnerConfig(lr=1.0, warmup_steps=4, schedule="linear")
    assert [learning_rate(section, step, 14) for step in (0, 3, 4, 9, 13)] == [0.25, 1.0, 1.0, 0.5, pytest.approx(0.1)]
    cosine = LocalLearnerConfig(lr=1.0, schedule="cosine")
    assert learning_rate(cosine, 5, 10) == pytest.approx(0.5)
    assert learning_rate(LocalLearnerConfig(lr=0.3), 99, 100) == 0.3
