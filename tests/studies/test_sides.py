"""Trainers that take turns: clocks, snapshots, the work that they share, and the control without a teacher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.config.learner import LocalLearnerConfig
from limbeck.config.recipe import parse_recipe
from limbeck.objectives.check import check_objective
from limbeck.tasks.arithmetic import Arithmetic
from limbeck.training.prompt_order import order_of

sys.path.insert(0, str(Path(__file__).parents[2] / "studies"))

from common import Results

from sides.arithmetic import recipe, trl_plan
from sides.fixed_advantage import FixedNegativeAdvantage
from sides.judge import by_side
from sides.turns import Side, at_equal_seconds

SETTING = {"temperature": 1.0, "rows": 4, "max_tokens": 40, "warmup": 2, "held_out": 8}


class Steps:
    """In the place of a worker: every step takes as long."""

    def __init__(self, name: str, seconds: float, turns: list[str]) -> None:
        self.name, self.seconds, self.turns = name, seconds, turns

    def ask(self, do: str, folder: str = "") -> dict[str, Any]:
        if do == "save":
            Path(folder).mkdir()
            return {}
        self.turns.append(self.name)
        return {"seconds": self.seconds, "cpu": self.seconds / 2, "tokens": 10, "rate": 1e-3}


def side(name: str, seconds: float, turns: list[str], folder: Path) -> Side:
    return Side(name, Steps(name, seconds, turns), folder, evaluated_at=[2, 4])  # type: ignore[arg-type]


def test_whose_clock_is_behind_goes_next_and_all_are_kept_at_equal_seconds_and_updates(tmp_path: Path) -> None:
    turns: list[str] = []
    first, fast, slow = (side(name, s, turns, tmp_path) for name, s in (("first", 1.0), ("fast", 0.5), ("slow", 3.0)))
    found = at_equal_seconds(first, [fast, slow])
    assert turns[:8] == ["first", "fast", "slow", "fast", "first", "fast", "fast", "first"]
    assert {updates: one.seconds for updates, one in first.snapshots.items()} == {2: 2.0, 4: 4.0}
    for updates in (2, 4):
        assert found["fast"][updates].seconds == updates
        assert updates <= found["slow"][updates].seconds < updates + 3.0
    assert (found["fast"][2].updates, found["fast"][4].updates) == (4, 8)
    assert (found["slow"][2].updates, found["slow"][4].updates) == (1, 2)
    for one in (first, fast, slow):
        assert {updates: kept.updates for updates, kept in one.snapshots.items()} == {2: 2, 4: 4}
    assert slow.snapshots[4].seconds == 12.0
    assert slow.snapshots[4].cpu == 6.0
    assert slow.snapshots[4].tokens == 40
    assert found["slow"][4].folder == slow.snapshots[2].folder  # the same weights are written and judged once


def test_work_that_was_done_before_is_charged_to_the_updates_that_use_it(tmp_path: Path) -> None:
    one = side("sft", 1.0, [], tmp_path)
    one.ahead, one.ahead_updates = (0.5, 0.25), 2
    for _ in range(3):
        one.step()
    assert (one.seconds, one.cpu) == (4.0, 2.0)


def test_trl_is_given_limbecks_prompts_in_the_order_of_its_steps_and_its_settings(tmp_path: Path) -> None:
    table = recipe(SETTING, seed=3, lr=2e-4, folder=tmp_path)
    parsed, plan = parse_recipe(table), trl_plan("grpo", table, generations=4)
    task = Arithmetic(parsed.task, lambda text: (0,), seed=3)  # type: ignore[arg-type]
    order = order_of(task, 4, 3)
    of_steps = [prompt for step in range(5) for prompt in order.at(step)]
    assert plan["prompts"][:20] == [prompt.text for prompt in of_steps]
    assert plan["answers"][:20] == [prompt.answer for prompt in of_steps]
    assert not {prompt.text for prompt in task.held_out} & set(plan["prompts"])
    options = plan["options"]
    assert (options["learning_rate"], options["temperature"], options["num_generations"]) == (2e-4, 1.0, 4)
    learner = parsed.learner
    assert isinstance(learner, LocalLearnerConfig)
    assert (options["adam_beta1"], options["adam_beta2"]) == tuple(learner.betas)
    assert (plan["warmup"], options["max_grad_norm"]) == (learner.warmup_steps, learner.max_grad_norm)
    assert learner.weight_decay == 0  # as TRL is given it


def test_the_control_lowers_the_sampled_tokens_under_its_bound_and_no_others() -> None:
    objective = FixedNegativeAdvantage(None, below=0.5)  # type: ignore[arg-type]
    check_objective(objective)
    logp, unread = torch.tensor([0.9, 0.5, 0.49, 0.001]).log(), torch.zeros(4)
    assert objective.gain(logp, unread).tolist() == [0, 0, 1, 1]
    assert objective.value(logp.exp(), logp, unread).sum() == pytest.approx(0.491)  # the mass of those tokens


def test_rows_are_told_apart_by_side_and_by_what_they_have_in_common() -> None:
    rows = [
        {"side": side, "at": at, "step": 2, "accuracy": value}
        for side, at, value in (("a", "updates", 0.1), ("b", "updates", 0.2), ("b", "seconds", 0.3))
    ]
    results = Results({("together", 0): rows}, {})
    assert by_side(results, "updates").difference("b", "a", "accuracy").mean == pytest.approx(0.1)
    assert by_side(results, "seconds").values("b", "accuracy") == {0: 0.3}
