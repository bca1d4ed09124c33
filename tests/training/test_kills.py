"""Killed with SIGKILL at events on the disk; the whole sweep is in tests/chaos/test_kills.py."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.kills import SCENARIOS, Bench, table

KILLS = 4  # of each scenario


@pytest.mark.parametrize(
    "name", [name if name == "from nothing" else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_a_run_that_was_killed_at_any_event_ends_with_the_same_weights(name: str, tmp_path: Path) -> None:
    bench = Bench(SCENARIOS[name], table(tmp_path / "models"), tmp_path)
    events = bench.count()
    assert events > 50
    for last in sorted(random.Random(name).sample(range(1, events + 1), KILLS)):
        bench.kill_and_go_on(last)
