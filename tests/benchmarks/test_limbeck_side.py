"""Limbeck's side of `benchmarks/step.py`: a worker steps, samples and updates on given samples, as the parent asks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from steps.cases import Case, Work
from steps.models import tiny
from steps.processes import HERE, SRC, Worker

CASE = Case("t", "tiny", prompts=2, samples=2, prompt_tokens=8, new_tokens=6, shortest=3)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    folder = tmp_path_factory.mktemp("benchmark")
    student, teacher = tiny(folder, vocabulary=None)
    texts = [["12+34=1;", "56+78=2;"], ["90+12=3;", "34+56=4;"]]
    worker = Worker(
        sys.executable, "steps.limbeck_side", str(work_file(folder, student, teacher, texts)), paths=(HERE, SRC)
    )
    yield worker
    worker.close()


def work_file(folder: Path, student: Path, teacher: Path, texts: list[list[str]]) -> Path:
    return Work(CASE, str(student), str(teacher), texts, threads=1).write(folder / "t.json")


def test_an_update_on_given_samples(worker: Worker) -> None:
    rows = [[5] * length for length in CASE.lengths()]
    checked = worker.ask("check", step=0, rows=rows)
    assert checked["tokens"] == CASE.trained_tokens()
    assert checked["loss"] > 0
    assert checked["grad_norm"] > 0


def test_a_step_has_the_lengths_of_its_case_and_every_phase(worker: Worker) -> None:
    made = worker.ask("step", step=1)
    assert made["tokens"] == CASE.trained_tokens()
    phases = made["phases"]
    assert set(phases) == {
        "sample", "teacher", "student_forward", "loss", "student_backward", "optimizer", "rest",
    }  # fmt: skip
    assert sum(phases.values()) == pytest.approx(made["seconds"])
    assert min(phases.values()) > 0


def test_prefill_samples_one_token_a_row(worker: Worker) -> None:
    assert worker.ask("prefill", step=1)["seconds"] > 0
    assert worker.ask("peak")["peak_mb"] > 0
