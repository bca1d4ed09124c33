"""Planted faults are found by name, with their number and since when; a clean dump has none."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from limbeck.audit.report import Report
from limbeck.audit.run import audit
from tests.audit.expected import EXPECTED, coexist
from tests.audit.planted import FAULTS, World, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


def audited(world: World, folder: Path, temperature: float = 0.7, **how: object) -> Report:
    rows = world.dump(temperature, **{"seed": 3, "noise": 0.01, **how})  # type: ignore[arg-type]
    return audit(write(rows, folder / "dump.jsonl"), world.student_folder, world.teacher_folder, temperature)


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


def few(items: Iterable[Any], quick: Sequence[Any]) -> list[Any]:
    """The cases of a test: those of `quick` in the default suite, the others behind the marker `slow`."""
    return [item if item in quick else pytest.param(item, marks=pytest.mark.slow) for item in items]


@pytest.mark.parametrize("temperature", few([0.7, 1.0, 1.3], [0.7]))
def test_a_clean_dump_in_half_precision_has_no_finding(world: World, tmp_path: Path, temperature: float) -> None:
    report = audited(world, tmp_path, temperature, count=40)
    assert not report.findings, report.findings
    for side in (report.student, report.teacher):
        assert abs(side["temperature"] - temperature) < 0.01 * temperature
        assert 0 < side["temperature_error"] < 0.01


@pytest.mark.parametrize("fault", few(EXPECTED, ["teacher_divided", "teacher_own", "advantages_top_k"]))
def test_each_fault_is_found_alone(world: World, tmp_path: Path, fault: str) -> None:
    assert names(audited(world, tmp_path, faults=[fault], count=40)) == EXPECTED[fault]


PAIRS = [
    ("teacher_at_one", "prompt_in_mask"),
    ("teacher_next", "teacher_at_one"),
    ("teacher_own", "student_at_one"),
    ("teacher_plain", "end_not_in_mask"),
    ("teacher_divided", "teacher_previous"),
    ("losses_k3", "teacher_at_one"),
    ("advantages_top_k", "student_at_one"),
]
NOT_SAMPLED = [  # what is in the mask and was not sampled says nothing of the rest
    ("cut_rows_masked", "prompt_in_mask"),
    ("cut_rows_masked", "padding_in_mask"),
    ("teacher_next", "padding_in_mask"),
]


@pytest.mark.parametrize("pair", few([*PAIRS, *NOT_SAMPLED], [PAIRS[1], *NOT_SAMPLED]))
def test_two_at_once(world: World, tmp_path: Path, pair: tuple[str, str]) -> None:
    assert names(audited(world, tmp_path, faults=pair, count=40)) == EXPECTED[pair[0]] | EXPECTED[pair[1]]


@pytest.mark.parametrize(
    "fault", few(["teacher_at_one", "prompt_in_mask", "teacher_plain", "teacher_next"], ["teacher_at_one"])
)
def test_since_when(world: World, tmp_path: Path, fault: str) -> None:
    report = audited(world, tmp_path, faults=[fault], since=6, count=80)
    (finding,) = report.findings
    assert (finding.name, finding.since_step, finding.since_row) == (*EXPECTED[fault], 6, 40)


def test_the_numbers_of_a_wrong_temperature(world: World, tmp_path: Path) -> None:
    report = audited(world, tmp_path, faults=["teacher_hotter"], count=40)
    assert abs(report.teacher["temperature"] - 0.7 * 1.15) < 5 * report.teacher["temperature_error"] + 1e-3
    assert abs(report.student["temperature"] - 0.7) < 5e-3
    (finding,) = report.findings
    assert finding.measured == report.teacher["temperature"]
    assert finding.expected == 0.7


def test_what_cannot_be_told_is_said(world: World, tmp_path: Path) -> None:
    rows = world.dump(0.7, 4, seed=1)
    for row in rows:
        del row["mask"], row["sampler_logprobs"], row["student_logprobs"]
    report = audit(write(rows, tmp_path / "dump.jsonl"), world.student_folder, world.teacher_folder, 0.7)
    assert not report.findings
    assert report.student["temperature"] is None
    assert {"student_temperature", "mask", "loss", "normalisation"} <= {item.name for item in report.not_checked}


def test_a_prompt_that_the_dump_calls_a_response(world: World, tmp_path: Path) -> None:
    rows = world.dump(0.7, 60, seed=4, faults=["prompt_in_mask"])
    for row in rows:
        row["prompt_length"] = 1
    report = audit(write(rows, tmp_path / "dump.jsonl"), world.student_folder, world.teacher_folder, 0.7)
    assert "prompt_in_mask" in names(report)


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_no_false_alarm(tmp_path: Path, sharpness: float) -> None:
    """Flat and peaked models, few rows and many, short responses and long, three temperatures, many seeds."""
    world = World.make(tmp_path, sharpness)
    for seed, temperature in itertools.product(range(2 if sharpness == 1.0 else 1), (0.7, 1.0, 1.3)):
        for count, length, noise in ((20, 12, 0.01), (60, 4, 0.01), (300, 16, 0.02), (60, 12, 0.0)):
            report = audited(world, tmp_path, temperature, seed=seed, count=count, length=length, noise=noise)
            assert not report.findings, (seed, temperature, count, length, noise, report.findings)


@pytest.mark.slow
def test_every_pair_that_can_coexist(world: World, tmp_path: Path) -> None:
    missed = []
    pairs = [pair for pair in itertools.combinations(EXPECTED, 2) if coexist(*pair)]
    for a, b in pairs[::11]:
        found, wanted = names(audited(world, tmp_path, faults=[a, b], count=80)), EXPECTED[a] | EXPECTED[b]
        missed += [(a, b, found ^ wanted)] if found != wanted else []
    assert not missed


def test_every_fault_has_its_expectation() -> None:
    assert set(FAULTS) - {"dropped_long_rows"} == set(EXPECTED)
