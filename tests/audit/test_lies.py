"""Lies that once passed, and honest dumps that were once accused: each beside its twin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.audit.fit import units_of
from limbeck.audit.losses import check_advantages, tokens_of
from limbeck.audit.neutral import read_rows
from limbeck.audit.normalisation import check_step_losses, check_weights
from limbeck.audit.read import read_dump
from limbeck.audit.report import Report, page
from limbeck.audit.run import audit
from limbeck.audit.spells import spells
from tests.audit.planted import EOS, World, write

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> Rows:
    return world.dump(0.7, 40, seed=3)


def copied(rows: Rows) -> Rows:
    return [{k: list(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]


def audited(world: World, rows: Rows, folder: Path) -> Report:
    return audit(write(rows, folder / "dump.jsonl"), world.student_folder, world.teacher_folder, 0.7)


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


@pytest.mark.parametrize(
    ("trained", "expected"), [(1, {"padding_in_mask"}), pytest.param(0, set(), marks=pytest.mark.slow)]
)
def test_rows_that_are_filled_with_the_end_token(
    world: World, clean: Rows, tmp_path: Path, trained: int, expected: set[str]
) -> None:
    """The tokenizer's own padding token is another one."""
    rows = copied(clean)
    width = max(len(row["token_ids"]) for row in rows) + 1
    for row in rows:
        if row["token_ids"][-1] == EOS:
            more = width - len(row["token_ids"])
            row["token_ids"] += [EOS] * more
            row["mask"] += [trained] * more
            for name in ("student", "teacher", "sampler"):
                row[f"{name}_logprobs"] += [-3.0] * more
    assert names(audited(world, rows, tmp_path)) == expected


@pytest.mark.parametrize("value", [pytest.param(float("nan"), marks=pytest.mark.slow), float("-inf")])
def test_what_is_not_finite_is_a_finding(world: World, clean: Rows, tmp_path: Path, value: float) -> None:
    rows = copied(clean)
    for row in rows[7:]:
        row["teacher_logprobs"] = [value if place % 3 == 0 else v for place, v in enumerate(row["teacher_logprobs"])]
    report = audited(world, rows, tmp_path)
    (finding,) = report.findings
    assert (finding.name, finding.since_row) == ("teacher_not_finite", 7)
    assert 0.2 < float(finding.measured) < 0.4
    assert "row 7" in finding.text
    assert report.teacher["temperature"] is not None


def test_what_was_not_recorded_is_said(world: World, clean: Rows, tmp_path: Path) -> None:
    rows = copied(clean)
    for row in rows:
        row["teacher_logprobs"][-1] = None
    report = audited(world, rows, tmp_path)
    assert not report.findings
    assert "teacher_missing" in {item.name for item in report.not_checked}


def off_by(rows: Rows, column: str, nats: float, since: int) -> Rows:
    """A checkpoint that differs by `nats` a token on average from a step on, in float32."""
    rng, rows = np.random.default_rng(1), copied(rows)
    for row in rows:
        if row["step"] >= since:
            row[column] = [None if v is None else v + nats * rng.choice((-1.0, 1.0)) for v in row[column]]
    return rows


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("sampler_logprobs", "sampler_trainer_mismatch"),
        ("teacher_logprobs", "teacher_tokenizer_or_weights"),
    ],
)
@pytest.mark.parametrize("since", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_another_checkpoint_in_a_dump_that_is_exact_elsewhere(
    world: World, clean: Rows, tmp_path: Path, column: str, name: str, since: int
) -> None:
    report = audited(world, off_by(clean, column, 0.07, since), tmp_path)
    (finding,) = report.findings
    assert finding.name == name
    assert 0.05 < float(finding.measured) < 0.09
    assert (finding.since_step is None) == (since == 1)
    assert finding.since_step is None or 5 <= finding.since_step <= 7


def test_the_mismatch_is_reported_where_it_is_no_finding(world: World, clean: Rows, tmp_path: Path) -> None:
    report = audited(world, off_by(clean, "sampler_logprobs", 0.002, 1), tmp_path)
    assert not report.findings
    assert report.student["sampler_mismatch"] == pytest.approx(0.002, rel=0.01)
    assert "0.002" in page(report)


def test_advantages_of_0_train_nothing(clean: Rows, tmp_path: Path) -> None:
    rows = [{**row, "advantages": [0.0] * len(row["token_ids"])} for row in clean]
    dump = read_dump(write(rows, tmp_path / "dump.jsonl"))
    findings, _ = check_advantages(dump.rows, tokens_of(dump.rows, [row.trained for row in dump.rows]), lambda _: {})
    assert [finding.name for finding in findings] == ["zero_gradient"]


def test_the_advantage_of_our_own_files_is_of_the_tasks_reward() -> None:
    row = {"prompt_ids": [5, 6], "token_ids": [7, 8], "student_logprob": [-1.0, -2.0], "advantage": 0.0}
    (read,) = read_rows([row], "rollouts", ours=True).rows
    assert "advantages" not in read.values


def lengths(rows: Rows) -> dict[int, list[int]]:
    """The trained tokens of each row of each step."""
    found: dict[int, list[int]] = {}
    for row in rows:
        found.setdefault(row["step"], []).append(sum(row["mask"]))
    return found


WEIGHTS: dict[str, Callable[[list[int], int], float]] = {  # of a row of n tokens in a step with these lengths
    "tokens": lambda step, n: 1 / sum(step),
    "rows times a constant": lambda step, n: 1 / (len(step) * 32),
    "micro-batches": lambda step, n: 1 / sum(step[: len(step) // 2]),
    "root of the length": lambda step, n: n**-0.5,
    "each row": lambda step, n: 1 / len(step) / n,
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_must_be_one_over_the_trained_tokens_of_the_step(clean: Rows, tmp_path: Path, how: str) -> None:
    rows, of_step = copied(clean), lengths(clean)
    for row in rows:
        row["loss_weights"] = [WEIGHTS[how](of_step[row["step"]], sum(row["mask"]))] * len(row["mask"])
    dump = read_dump(write(rows, tmp_path / "dump.jsonl"))
    found = check_weights(dump, dump.rows)
    assert found is not None
    assert {finding.name for finding in found[0]} == (set() if how == "tokens" else {"normalisation"})
    assert not found[1]


@pytest.mark.parametrize("how", ["tokens", "rows", "constant"])
def test_the_logged_loss_is_of_the_denominator_that_fits_best(clean: Rows, tmp_path: Path, how: str) -> None:
    """Losses that vary little, so that both means are within 2% of each other."""
    rng, rows = np.random.default_rng(0), copied(clean)
    for row in rows:
        row["losses"] = (3 + 0.3 * rng.standard_normal(len(row["mask"]))).tolist()
    for step in {row["step"] for row in rows}:
        members = [row for row in rows if row["step"] == step]
        of_row = [np.asarray(row["losses"])[np.asarray(row["mask"]) > 0] for row in members]
        loss = {
            "tokens": np.concatenate(of_row).mean(),
            "rows": np.mean([values.mean() for values in of_row]),
            "constant": sum(values.sum() for values in of_row) / len(of_row) / 64,
        }[how]
        for row in members:
            row["step_loss"] = float(loss)
    dump = read_dump(write(rows, tmp_path / "dump.jsonl"))
    findings, untold = check_step_losses(dump, dump.rows)
    measured = [str(finding.measured) for finding in findings]
    wanted = {"tokens": [], "rows": ["each row's own trained tokens"], "constant": ["rows times a constant of 64"]}
    assert (measured, untold) == (wanted[how], [])


@pytest.mark.parametrize(
    ("claimed", "teacher_at", "expected"),
    [
        pytest.param((0.7, 1.0), (0.7, 1.0), set(), marks=pytest.mark.slow),
        pytest.param((1.0, 1.0), (1.0, 1.0), {"rollout_temperature"}, marks=pytest.mark.slow),
        ((0.7, 1.0), (1.0, 1.0), {"teacher_temperature"}),
        pytest.param((1.0, 0.7), (0.7, 1.0), {"student_temperature", "teacher_temperature"}, marks=pytest.mark.slow),
    ],
)
def test_each_row_is_audited_at_the_temperature_that_the_dump_gives_it(
    world: World, tmp_path: Path, claimed: tuple[float, ...], teacher_at: tuple[float, ...], expected: set[str]
) -> None:
    """Two temperatures in turn; the third case has a teacher that stays at 1, the last one columns that lie."""
    truth = (0.7, 1.0) if set(claimed) == {0.7, 1.0} else claimed
    halves = [world.dump(T, 40, seed=9 + i, steps=5) for i, T in enumerate(truth)]
    if teacher_at != truth:
        halves[0] = world.dump(truth[0], 40, seed=9, steps=5, faults=["teacher_at_one"])
    rows = []
    for pair in zip(*halves, strict=True):
        for row, T in zip(pair, claimed, strict=True):
            rows.append({**row, "temperature": T})
    report = audited(world, rows, tmp_path)
    assert expected <= names(report) <= expected | {"sampling_temperature", "sampler_temperature"}
    assert ("sampling_temperature" in names(report)) <= (claimed == (1.0, 0.7))
    assert "--temperature is 0.7" in page(report)


def ratios(row: dict[str, Any]) -> list[float]:
    pairs = zip(row["student_logprobs"], row["teacher_logprobs"], row["mask"], strict=True)
    return [p - q if m else 0.0 for p, q, m in pairs]


@pytest.mark.parametrize(
    ("how", "expected"),
    [("right", set()), ("sign", {"advantage_sign"}), ("after", {"advantage_shift"}), ("before", {"advantage_shift"})],
)
def test_advantages_with_the_wrong_sign_or_of_a_neighbour(
    clean: Rows, tmp_path: Path, how: str, expected: set[str]
) -> None:
    rows = copied(clean)
    for row in rows:
        r = ratios(row)
        row["advantages"] = {
            "right": [-v for v in r], "sign": r, "after": [-v for v in r[1:]] + [0.0],
            "before": [0.0] * (row["prompt_length"] + 1) + [-v for v in r[row["prompt_length"] : -1]],
        }[how]  # fmt: skip
    dump = read_dump(write(rows, tmp_path / "dump.jsonl"))
    findings, _ = check_advantages(dump.rows, tokens_of(dump.rows, [row.trained for row in dump.rows]), lambda _: {})
    assert {finding.name for finding in findings} == expected


def test_since_when_the_end_is_left_out(world: World, tmp_path: Path) -> None:
    rows = world.dump(0.7, 80, seed=3, faults=["end_not_in_mask"], since=6)
    (finding,) = audited(world, rows, tmp_path).findings
    assert (finding.name, finding.since_step is not None and finding.since_step >= 6) == ("end_not_in_mask", True)


@pytest.mark.parametrize("temperature", [pytest.param(0.2, marks=pytest.mark.slow), 6.0])
def test_a_temperature_far_off_is_a_number(world: World, tmp_path: Path, temperature: float) -> None:
    rows = world.dump(0.7, 40, seed=3)
    other = world.dump(temperature, 40, seed=3, sampled_at=0.7)
    for row, scored in zip(rows, other, strict=True):
        assert row["token_ids"] == scored["token_ids"]
        row["teacher_logprobs"] = scored["teacher_logprobs"]
    (finding,) = audited(world, rows, tmp_path).findings
    assert (finding.name, finding.measured) == ("teacher_temperature", pytest.approx(temperature, rel=1e-3))


@pytest.mark.parametrize("since", [1, 6])
def test_an_estimator_that_changes_in_the_middle(clean: Rows, tmp_path: Path, since: int) -> None:
    rows = copied(clean) + copied(clean)
    for row in rows:
        r = np.asarray(ratios(row))
        row["advantages"] = (-(np.exp(-r) - 1 + r) if row["step"] >= since else -r).tolist()
    dump = read_dump(write(rows, tmp_path / "dump.jsonl"))
    tokens, units = tokens_of(dump.rows, [row.trained for row in dump.rows]), units_of(dump.rows)[0]
    ((finding,), _) = spells(dump.rows, tokens, units, lambda _: {}, check_advantages)
    assert (finding.name, finding.since_step) == ("k3_advantage", None if since == 1 else since)


@pytest.mark.parametrize("sharpness", [4.0, 8.0, pytest.param(12.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("sure", [0.001, 0.03])
def test_weights_that_moved_on_are_no_other_fault(tmp_path: Path, sharpness: float, sure: float) -> None:
    """A student that became sure of what it says: its log-probs are nearly 0, as those of any student times 0.125."""
    world, rng = World.make(tmp_path, sharpness), np.random.default_rng(0)
    rows = world.dump(0.7, 40, seed=3)
    for row in rows[12:]:
        new = (-sure * rng.exponential(size=len(row["mask"]))).tolist()
        row["student_logprobs"] = row["sampler_logprobs"] = new
    report = audited(world, rows, tmp_path)
    wanted = ["student_tokenizer_or_weights", "sampler_tokenizer_or_weights"]
    assert [finding.name for finding in report.findings] == wanted
    for finding in report.findings:
        assert finding.since_step == 4
        assert float(finding.measured) > float(finding.expected)
        assert "the weights moved" in finding.cause
