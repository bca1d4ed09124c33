"""The recipe of the calculator agent, from end to end."""

from __future__ import annotations

from pathlib import Path

import pytest

import limbeck

RECIPE = Path(__file__).parents[1] / "recipes" / "calculator.toml"


@pytest.mark.slow
def test_the_student_learns_to_call_its_tool(tmp_path: Path) -> None:
    found = limbeck.train(RECIPE, [f"output={tmp_path}"])
    assert found.before["accuracy"] < 0.5
    assert found.after["accuracy"] > 0.9
    assert found.steps[-1]["env/turns"] == pytest.approx(3, abs=0.1)
