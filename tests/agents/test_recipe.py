"""The recipe of an agent, shortened: the shipped agent, with the models that the environment of the same name has."""

from __future__ import annotations

from pathlib import Path

import pytest

import limbeck

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_recipe_of_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # where the agent and its rows are found
    short = ["steps=2", "rollout.prompts_per_step=16", "eval.prompts=32", "record.every=0", f"output={tmp_path}"]
    found = limbeck.train("recipes/agent.toml", short)
    assert 0.05 < found.before["accuracy"] < 0.6
    for line in found.steps:
        assert line["responses"] == 16
        assert line["env/spliced"] == pytest.approx(1 - 16 / line["env/requests"])  # all but the first of each episode
        assert line["env/segments"] == 1
