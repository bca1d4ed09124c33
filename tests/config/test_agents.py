"""Tables of agents: what goes with what."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from limbeck.config.environment import AgentEnvironmentConfig, GatewayEnvironmentConfig
from limbeck.config.recipe import Recipe, parse_recipe
from limbeck.config.task import AgentTaskConfig, DatasetTaskConfig, FileTaskConfig
from limbeck.errors import RecipeError


def recipe(task: dict[str, Any], **more: Any) -> Recipe:
    models = {"student": {"model": "demo:student"}, "teacher": {"model": "demo:teacher"}}
    agent = {"kind": "agent", "function": "a:b"} if "kind" not in task else {}
    return parse_recipe({**models, "task": {**agent, **task}, **more})


def test_a_task_of_an_agent_brings_its_environment_and_reads_rows_as_others_do() -> None:
    of_file = recipe({"path": "a.jsonl", "held_out": 3}, environment={"timeout": 5})
    assert isinstance(of_file.environment, AgentEnvironmentConfig)
    assert of_file.environment.timeout == 5
    assert isinstance(of_file.task, AgentTaskConfig)
    assert of_file.task.rows == FileTaskConfig(path="a.jsonl", held_out=3)
    of_data = recipe({"name": "gsm8k", "config": "main"})
    assert isinstance(of_data.task, AgentTaskConfig)
    assert of_data.task.rows == DatasetTaskConfig(name="gsm8k", config="main", split="train")
    for each in (of_file, of_data):
        assert parse_recipe(tomllib.loads(each.to_toml())) == each


def test_agents_that_run_elsewhere_may_have_any_task() -> None:
    elsewhere = {"kind": "gateway", "port": 0}
    assert isinstance(recipe({"path": "a.jsonl"}, environment=elsewhere).environment, GatewayEnvironmentConfig)
    other = recipe({"path": "a.jsonl"}).model_dump(exclude_none=True) | {"task": {"kind": "arithmetic"}}
    assert parse_recipe({**other, "environment": elsewhere}).task.kind == "arithmetic"


@pytest.mark.parametrize(
    ("task", "more", "words"),
    [
        ({}, {}, "path, a file of rows, or name, a data set"),
        ({"path": "a", "name": "b"}, {}, "path, a file of rows, or name, a data set"),
        ({"path": "a", "split": "test"}, {}, "split does not go with path"),
        ({"name": "a", "held_out_path": "b"}, {}, "held_out_path does not go with name"),
        ({"path": "a"}, {"environment": {"kind": "single_turn"}}, "does not go with task.kind = 'agent'"),
        ({"kind": "arithmetic"}, {"environment": {"kind": "agent"}}, "limbeck gateway"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(task, more, words) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(task, **more)
