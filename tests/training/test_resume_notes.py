"""What is said about a run that goes on by a changed recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from limbeck.config.recipe import dotted_keys
from limbeck.errors import RunError
from limbeck.training.resume import FREE_KEYS, FREE_TABLES, ROUNDING_KEYS, refuse_other_recipe, resume_notes


def recipe(steps: int, schedule: str = "cosine", **more: Any) -> dict[str, Any]:
    learner = {"kind": "local", "lr": 1e-4, "schedule": schedule, "warmup_steps": 2}
    return {"steps": steps, "learner": learner, "eval": {"prompts": 64, "greedy": False}, "device": "cpu", **more}


def test_nothing_changed_or_nothing_done_is_nothing_to_say() -> None:
    assert resume_notes(recipe(10), recipe(10), 5) == []
    assert resume_notes(recipe(10), recipe(20), 0) == []
    assert resume_notes(recipe(10), recipe(10), 10) == []


def test_more_steps_of_a_constant_rate_change_nothing() -> None:
    assert resume_notes(recipe(10, "constant"), recipe(20, "constant"), 5) == []


@pytest.mark.parametrize("done", [5, 10])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_another_number_of_steps_under_a_schedule_names_the_rates(schedule: str, done: int) -> None:
    (note,) = resume_notes(recipe(10, schedule), recipe(22, schedule), done)
    assert "\n" not in note
    assert f"steps was 10 and is 22 now, and the {schedule} schedule" in note
    if schedule == "linear":
        following = {5: "8.5e-05", 10: "6e-05"}[done]  # 1 - (done - 2) / 20
        planned = {5: "6.25e-05", 10: "0"}[done]
        assert f"step {done + 1} is {following}" in note
        assert f"it would be {planned})" in note
    last = {("linear", 5): "7.5e-05", ("linear", 10): "1.25e-05"}.get((schedule, done))
    assert last is None or f"step {done} had {last}" in note


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_fewer_steps_than_were_made_say_that_nothing_is_trained(schedule: str) -> None:
    (note,) = resume_notes(recipe(10, schedule), recipe(4, schedule), 6)
    assert "steps = 4, but 6 updates were made already" in note
    assert "--fresh" in note


def test_evaluations_that_cannot_be_compared_are_named() -> None:
    now = recipe(10, eval={"prompts": 128, "greedy": True})
    prompts, greedy = resume_notes(recipe(10), now, 5)
    assert "eval.prompts was 64 and is 128 now" in prompts
    assert "eval.greedy was false and is true now" in greedy


def test_another_device_is_equal_up_to_rounding() -> None:
    (note,) = resume_notes(recipe(10), recipe(10, device="cuda:0"), 5)
    assert "device was cpu and is cuda:0 now" in note


def changed(key: str, **kinds: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two recipes that differ in `key`, whose table is of the given kind."""
    *tables, last = key.split(".")
    before, now = ({last: value, **kinds} for value in (1, 2))
    for table in reversed(tables):
        before, now = {table: before}, {table: now}
    return before, now


@pytest.mark.parametrize(
    "key",
    [
        "teacher.url",  # the server of another job
        "teacher.teachers.code.url",
        "teacher.token_env",
        "teacher.probe_tolerance",  # what the message of a stop says to raise
        "teacher.max_rescale_dropped",
        "engine.url",
        "engine.retry_seconds",
        "learner.micro_batch_tokens",  # out of memory
        "learner.gradient_checkpointing",
        "engine.max_rows",
        "environment.concurrency",
    ],
)
def test_where_a_server_is_and_what_fits_into_memory_may_change(key: str) -> None:
    refuse_other_recipe(Path("run"), *changed(key))


@pytest.mark.parametrize(
    "key",
    ["learner.lr", "rollout.lag", "rollout.max_tokens", "teacher.max_rescale_error", "teacher.model",
     "objective.support", "student.dtype", "learner.precision", "seed", "environment.max_turns"],
)  # fmt: skip
def test_what_is_learned_may_not_change(key: str) -> None:
    with pytest.raises(RunError, match=f"another recipe: {key} \\(1 then, 2 now\\)"):
        refuse_other_recipe(Path("run"), *changed(key))


@pytest.mark.parametrize("key", ["teacher.url", "teacher.teachers.code.timeout", "learner.micro_batch_tokens"])
def test_nobody_knows_what_an_option_of_a_users_own_part_means(key: str) -> None:
    with pytest.raises(RunError, match="another recipe"):
        refuse_other_recipe(Path("run"), *changed(key, kind="python"))


@pytest.mark.parametrize("key", ROUNDING_KEYS)
def test_what_changes_the_rounding_is_said(key: str) -> None:
    before, now = changed(key)
    (note,) = resume_notes({"steps": 9, **before}, {"steps": 9, **now}, 5)
    assert note.startswith(f"{key} was 1 and is 2 now: updates after step 5 equal those")


def test_the_keys_that_may_change_exist() -> None:
    known = {*dotted_keys(), *(key.partition(".")[0] for key in dotted_keys())}
    assert known >= {*FREE_KEYS, *FREE_TABLES}


def test_a_learner_of_a_users_own_is_left_alone() -> None:
    table = {"steps": 5, "learner": {"kind": "python", "factory": "mine:make"}}
    assert resume_notes(table, {**table, "steps": 9}, 3) == []
