"""What a fleet's processes did: counted in each, summed by role, whoever dies meanwhile."""

from __future__ import annotations

import time

import pytest

from limbeck.machine.usage import Counter, Tally, Usage, of_roles, waiting_for_others


def test_waiting_for_others_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 7.0, 10.0])
    counter = Counter()
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with counter.at_work(), waiting_for_others():
        pass
    assert counter.usage().worked == 5.0


def test_a_part_that_works_between_calls_counts_for_itself() -> None:
    class Ahead:
        worked = 12.5

    counter = Counter()
    assert counter.usage(Ahead()).worked == 12.5
    assert counter.usage(object()).worked == 0.0
    assert counter.usage().memory > 2**20
    assert counter.usage().life == counter.life != Counter().life


def test_a_process_that_takes_the_place_of_another_begins_at_nothing() -> None:
    tally = Tally()
    tally.add(Usage("first", worked=10.0, cpu=20.0, memory=500))
    tally.add(Usage("first", worked=14.0, cpu=21.0, memory=900))
    tally.add(Usage("second", worked=3.0, cpu=2.0, memory=100))
    taken = tally.take()
    assert (taken.worked, taken.cpu, taken.memory) == (17.0, 23.0, 900)
    idle = tally.take()
    assert (idle.worked, idle.cpu, idle.memory) == (0.0, 0.0, 100), "what is resident still is"
    tally.add(Usage("second", worked=4.0, cpu=2.0, memory=100))
    assert tally.take().worked == 1.0


def test_a_role_has_means_of_time_and_the_most_of_memory() -> None:
    one, two = Tally(Usage(gpu_memory=7)), Tally(Usage(gpu_memory=9))
    one.worked, one.cpu, one.memory = 6.0, 12.0, 300
    two.worked, two.cpu, two.memory = 2.0, 4.0, 200
    assert of_roles({"sampler": [one, two], "teacher/math": [Tally()]}, seconds=8.0) == {
        "seconds/worked/sampler": 4.0,
        "seconds/waited/sampler": 4.0,
        "system/cpu/sampler": 2.0,
        "system/memory/sampler": 300.0,
        "system/gpu_memory/sampler": 9.0,
        "seconds/worked/teacher/math": 0.0,
        "seconds/waited/teacher/math": 8.0,
        "system/cpu/teacher/math": 0.0,
        "system/memory/teacher/math": 0.0,
    }


def test_work_that_began_before_the_reading_is_no_negative_waiting() -> None:
    one = Tally()
    one.worked = 9.0
    assert of_roles({"learner": [one]}, seconds=8.0)["seconds/waited/learner"] == 0.0
