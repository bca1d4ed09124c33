"""Each alarm is raised by its own fault, from the first step where one step is enough, and names usual causes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.config.recipe import parse_recipe
from limbeck.training.alarms import Alarms, kl_should_fall

HEALTHY = {
    "reverse_kl/exact": 0.3, "entropy/student": 1.0, "entropy/teacher": 0.8, "response_length/mean": 20.0,
    "truncated": 0.1, "repetition": 0.0, "mismatch": 1e-6,
}  # fmt: skip


def raised(line: dict[str, Any], same_weights: bool = False, steps: int = 12) -> dict[str, str]:
    """Names and messages after `steps` healthy steps."""
    alarms = Alarms(same_weights, [HEALTHY] * steps)
    return {alarm["name"]: alarm["message"] for alarm in alarms.check({**HEALTHY, **line})}


def test_a_healthy_run_is_silent() -> None:
    assert raised({}) == {}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("negative_kl", {"reverse_kl/exact": -0.01}),
        ("entropy", {"entropy/student": 0.05}),
        ("length", {"response_length/mean": 45.0}),
        ("truncation", {"truncated": 0.8}),
        ("repetition", {"repetition": 0.7}),
        ("mismatch", {"mismatch": 0.3}),
        ("support", {"support/sampled": 1.0, "support/student": 0.9, "tokens/trained": 5000}),
        ("support", {"support/sampled": 0.7, "support/student": 0.9, "tokens/trained": 500}),
    ],
)
def test_each_fault_raises_its_alarm_alone(name: str, line: dict[str, Any]) -> None:
    assert list(raised(line)) == [name]


@pytest.mark.parametrize(("key", "name"), [("truncated", "truncation"), ("repetition", "repetition")])
def test_a_high_share_is_an_alarm_at_the_first_step_and_at_every_later_one(key: str, name: str) -> None:
    """A run that begins with 90% truncated never doubles that share."""
    sick = {**HEALTHY, key: 0.9}
    alarms = Alarms(False)
    for _ in range(15):
        assert [alarm["name"] for alarm in alarms.check(sick)] == [name]
    assert raised({key: 0.5}, steps=0) == {}


def test_truncation_names_both_of_its_causes() -> None:
    message = raised({"truncated": 0.9}, steps=0)["truncation"]
    for part in ("90% of responses", "rollout.max_tokens", "rollout.stop_ids", "eos_token_id", "chat template"):
        assert part in message
    assert "at the start" not in message
    assert "(10% at the start)" in raised({"truncated": 0.9})["truncation"]


def test_a_mismatch_blames_no_single_culprit() -> None:
    message = raised({"mismatch": 0.21})["mismatch"]
    assert "0.210 nats" in message
    assert "in the distribution that was sampled from" in message
    assert "top_p" in message


def test_same_weights_must_have_no_kl() -> None:
    assert list(raised({}, same_weights=True, steps=0)) == ["identity"]
    assert raised({"reverse_kl/exact": 1e-6}, same_weights=True, steps=0) == {}
    assert raised({}, same_weights=True) == {}, "after the first update they differ"


def test_a_few_tokens_that_happen_to_be_on_the_support_are_no_alarm() -> None:
    assert raised({"support/sampled": 1.0, "support/student": 0.8, "tokens/trained": 50}) == {}
    assert raised({"support/sampled": 0.99, "support/student": 1.0, "tokens/trained": 500}) == {}
    assert raised({"support/student": 0.5}) == {}


def test_a_sharp_teacher_is_not_a_collapse() -> None:
    assert raised({"entropy/student": 0.15, "entropy/teacher": 0.2}) == {}


def test_rounding_below_zero_is_not_an_alarm() -> None:
    assert raised({"reverse_kl/exact": -1e-6}) == {}


def test_a_resumed_run_remembers_its_start() -> None:
    straight = Alarms(False)
    for _ in range(12):
        straight.check(HEALTHY)
    resumed = Alarms(False, [HEALTHY] * 12)
    sick = {**HEALTHY, "response_length/mean": 45.0}
    assert straight.check(sick) == resumed.check(sick) != []


@pytest.mark.parametrize("value", ["0.3", None, [1.0], {"a": 1}])
def test_lines_of_a_file_that_hold_no_number_raise_nothing(value: Any) -> None:
    line = {**dict.fromkeys(HEALTHY, value), "step": 1, "kind": "train"}
    assert Alarms(False, [line] * 12).check(line) == []


def rising(series: Any, key: str = "reverse_kl/exact", falls: bool = True) -> list[int]:
    """Steps from 1 at which a series of the reverse KL is called rising."""
    alarms = Alarms(False, falls=falls)
    found = [alarms.check({key: float(value)}) for value in series]
    return [step for step, names in enumerate(found, start=1) if [one["name"] for one in names] == ["kl_rising"]]


STEPS = np.arange(60)
SERIES = {  # in nats a token, with what they are not
    "falling": 0.1 + np.exp(-STEPS / 8),
    "flat": np.full(60, 0.4),
    "a little higher": 0.4 + 0.005 * STEPS,
    "of almost no KL": 0.01 + 0.001 * STEPS,
    "from no KL at all": np.where(STEPS < 3, 1e-6, 1e-3 + np.maximum(0, STEPS - 9) * 0.05),
    "back to where it began": 1.5 - np.minimum(STEPS, 30) / 25 + np.maximum(0, STEPS - 30) / 25,
}


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_kl_that_falls_or_is_flat_raises_nothing(name: str, noise: float) -> None:
    for seed in range(20):
        factors = np.exp(noise * np.random.default_rng(seed).standard_normal(60))
        assert rising(SERIES[name] * factors) == []


def test_a_few_wild_steps_are_no_rise() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        assert rising(0.4 + rng.exponential(0.3, 60) + 4.0 * (np.arange(60) % 25 == 24)) == []


@pytest.mark.parametrize("key", ["reverse_kl/exact", "reverse_kl/sampled"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_kl_that_rises_is_an_alarm_from_twenty_steps_on(key: str, noise: float) -> None:
    for seed in range(20):
        factors = np.exp(noise * np.random.default_rng(seed).standard_normal(60))
        series = (0.4 + 0.05 * np.maximum(0, STEPS - 9)) * factors
        steps = rising(series, key)
        assert steps[0] >= 20
        assert steps[-1] == 60
        assert rising(series, key, falls=False) == [], "of a run that is trained for more than this KL"


def test_a_rising_kl_asks_for_the_learning_rate_first() -> None:
    alarms = Alarms(False, [{"reverse_kl/exact": 0.4}] * 10 + [{"reverse_kl/exact": 2.0}] * 9, falls=True)
    ((message,),) = [[one["message"] for one in alarms.check({"reverse_kl/exact": 2.0})]]
    assert "0.4" in message
    assert "Is learner.lr too high? Lower it by 3" in message
    assert "chat template" in message


RECIPE: dict[str, Any] = {
    "student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}, "task": {"kind": "arithmetic"},
}  # fmt: skip
LOCAL = {"kind": "local", "model": "demo:teacher"}
SELF = {"kind": "self", "of": "start", "view": {"kind": "prompted", "system": "Be exact."}}


@pytest.mark.parametrize(
    ("changes", "falls"),
    [
        ({}, True),
        ({"objective": {"task_reward": {}}, "rollout": {"samples_per_prompt": 2}}, False),
        ({"objective": {"reference": {"weight": 0.1}}}, False),
        ({"objective": {"divergence": "forward_kl"}}, False),
        ({"teacher": SELF}, False),
        ({"teacher": {"kind": "routed", "default": "a", "teachers": {"a": LOCAL}}}, True),
        ({"teacher": {"kind": "routed", "default": "a", "teachers": {"a": LOCAL, "b": SELF}}}, False),
        ({"rollout": {"sources": [{"from": "student", "share": 0.5}, {"from": "teacher", "share": 0.5}]}}, False),
    ],
)
def test_the_kl_need_not_fall_where_more_is_trained_for(changes: dict[str, Any], falls: bool) -> None:
    assert kl_should_fall(parse_recipe({**RECIPE, **changes})) == falls
