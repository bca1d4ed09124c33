from __future__ import annotations

from pathlib import Path

import pytest

import limbeck
from tests.agents.test_runs import recipe_of

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def test_agents_beside_the_driver_talk_to_samplers_of_a_fleet(tmp_path: Path) -> None:
    rows = [{"question": f"{i}+{i}="} for i in range(9)]
    rollout = {"temperature": 0.7, "max_tokens": 4, "prompts_per_step": 4, "lag": 1}
    result = limbeck.train(recipe_of(tmp_path, rows, rollout=rollout, cluster={"samplers": 2, "teachers": 1}))
    for line in result.steps:
        assert (line["env/requests"], line["responses"], line["env/spliced"]) == (8, 4, 0.5)
