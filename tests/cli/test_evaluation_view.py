"""An evaluation as a person reads it: whose numbers they are, in what unit, with what error."""

from __future__ import annotations

from dataclasses import replace

from limbeck.cli.evaluation_view import named_values, rows
from limbeck.reports import Mean
from limbeck.trackers.console import describe_evaluation
from limbeck.training.evaluation import Evaluation
from limbeck.training.intervals import RewardSummary

MEANS = {
    "reverse_kl/sampled": Mean(-0.0019, 10.0, 1.8e-9, 2),
    "importance/mean": Mean(10.0, 10.0),
    "mismatch": Mean(6.9e-18, 10.0),
    "reverse_kl/exact": Mean(0.011, 10.0, 0.5e-6, 2),
    "entropy/student": Mean(12.5, 10.0),
    "entropy/teacher": Mean(12.5, 10.0),
}


def evaluation(rewards: RewardSummary | None = None) -> Evaluation:
    return Evaluation(64, 1, False, rewards, MEANS, (), 75.0)


def test_each_value_has_a_name_a_unit_and_its_error_beside_it() -> None:
    values = named_values(evaluation(RewardSummary(0.5, (0.4, 0.6))), "student")
    shown = {name: (text, unit) for name, text, unit in rows(values, "student")}
    assert shown["accuracy"] == ("0.500 [0.400, 0.600]", "95% interval")
    assert shown["reverse KL, exact"] == ("0.0011 ± 0.0001", "nats/token")
    assert shown["reverse KL, sampled"] == ("-0.0002 ± <0.0001", "nats/token")
    assert shown["sampler against learner"] == ("0.0000", "nats/token")
    assert shown["entropy of the student"] == ("1.2500", "nats/token")
    assert shown["time"] == ("1 min 15 s", "")
    names = list(shown)
    assert names.index("reverse KL, exact") < names.index("reverse KL, sampled"), "the exact one leads"


def test_the_teachers_entropy_is_called_the_teachers() -> None:
    values = named_values(evaluation(), "teacher")
    assert "entropy/student" not in values
    assert values["entropy/teacher"] == 1.25
    names = [name for name, *_ in rows(values, "teacher")]
    assert "entropy of the teacher" in names
    assert not [name for name in names if "student" in name or "KL" in name], "a model against itself says nothing"


def test_rewards_that_are_no_shares_are_not_called_an_accuracy() -> None:
    values = named_values(evaluation(RewardSummary(-0.5, (-0.9, -0.1), {}, (-1.0, 0.0))), "student")
    shown = {name: (text, unit) for name, text, unit in rows(values, "student")}
    assert "accuracy" not in shown
    assert shown["mean reward"] == ("-0.500 [-0.900, -0.100]", "95% interval, rewards in [-1.00, 0.00]")
    single = named_values(evaluation(RewardSummary(3.0, None, {}, (3.0, 3.0))), "student")
    assert ("mean reward", "3.000", "rewards in [3.00, 3.00]") in rows(single, "student")


def test_tokens_that_the_teacher_is_too_uncertain_of_are_counted_beside_the_kl() -> None:
    found = replace(evaluation(), scores={"teacher/tokens_left_out": 38.0, "teacher/error_bound/max": 0.01})
    shown = {name: (text, unit) for name, text, unit in rows(named_values(found, "student"), "student")}
    assert shown["left out: scores too uncertain"][1] == "tokens"
    assert found.values()["teacher/tokens_left_out"] == 38
    line = describe_evaluation({"step": 3, **found.values()})
    assert "without 38 tokens" in line
