"""Every event on the disk of a run is one at which it is killed, and it goes on to the same weights."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kills import SCENARIOS, Bench, table

SECONDS = 20  # of each scenario, and ten kills at least: of all events, or spread evenly over them


@pytest.mark.parametrize("name", SCENARIOS)
def test_kills_at_disk_events(name: str, tmp_path: Path) -> None:
    bench = Bench(SCENARIOS[name], table(tmp_path / "models"), tmp_path)
    events, start = bench.count(), time.monotonic()
    made = 0
    for last in _spread(events):
        bench.kill_and_go_on(last)
        made += 1
        if made >= 10 and time.monotonic() - start > SECONDS:
            break
    print(f"{name}: killed at {made} of {events} disk events, always the same weights")


def _spread(events: int) -> list[int]:
    """1 to `events`, each once, so that any beginning of the list is spread over all of them."""
    step = next(step for step in range(int(events * 0.618), events + 1) if _coprime(step, events))
    return [1 + (i * step) % events for i in range(events)]


def _coprime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1
