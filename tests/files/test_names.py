"""Steps are sorted as numbers, and other names are nobody's business."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.files.names import hidden_of_steps, numbered, step_name, step_of


@pytest.mark.parametrize("step", [0, 1, 999_999, 1_000_000, 10**9])
@pytest.mark.parametrize("suffix", ["", ".parquet", ".jsonl"])
def test_a_name_and_its_step(step: int, suffix: str) -> None:
    assert step_of(step_name(step, suffix), suffix) == step


@pytest.mark.parametrize(
    "name",
    ["step-", "step-5", "step-abc", "step-0000005", "step-000005 (copy)", ".step-000005", "._step-000005",
     "step-000005~", "step--00005", "step-00000\u0665", "STEP-000005", "step-000005\n", "step-000005.parquet"],
)  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    assert step_of(name) is None


def test_a_million_comes_after_what_came_before_it(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-999999", "step-000002", "step-2000000", ".DS_Store", "notes"):
        (tmp_path / name).mkdir()
    assert [step for step, _ in numbered(tmp_path)] == [2, 999_999, 1_000_000, 2_000_000]
    assert numbered(tmp_path / "absent") == []


def test_only_our_own_hidden_names_are_leftovers(tmp_path: Path) -> None:
    for name in (".step-000002.half", ".step-1000000.removed", ".DS_Store", ".half", ".mine.half", ".step-x.half"):
        (tmp_path / name).touch()
    found = {path.name for path in hidden_of_steps(tmp_path, "", (".half", ".removed"))}
    assert found == {".step-000002.half", ".step-1000000.removed"}
