"""The frame of the fleet's benchmark: a part that fails or breaks its bound is named, and the others run."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.script_module import script_module

ROOT = Path(__file__).parents[2]
GOOD = {"ranks": 'worst": 1e-12', "overlap": 'ratio": 0.5', "weights": 'seconds": 3', "memory": 'ratio": 0.6',
        "length": 'exponent": 1.0'}  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> ModuleType:
    return script_module("benchmark_cluster", ROOT / "benchmarks" / "cluster.py")


def parts(folder: Path, **others: str) -> Path:
    """A folder with five parts of one line each; `others` are bodies of `measure` in place of the good one's."""
    (folder / "benchmarks" / "fleet").mkdir(parents=True)
    for name, line in GOOD.items():
        body = others.get(name, f'return {{"quick": quick, "{line}}}')
        (folder / "benchmarks" / "fleet" / f"{name}.py").write_text(f"def measure(quick):\n    {body}\n")
    return folder


def test_each_part_prints_a_line_and_all_hold(
    cluster: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cluster.main(["--quick"], parts(tmp_path)) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["what"] for line in lines] == ["ranks", "overlap", "weights", "memory", "length"]
    assert all(line["quick"] for line in lines)


def test_a_part_that_fails_is_named_and_the_others_run(
    cluster: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = parts(
        tmp_path,
        ranks="import sys; sys.exit(3)",
        overlap='return {"ratio": 0.66}',
        weights='return {"seconds": float("nan")}',
        memory='return {"megabytes": 3}',
    )
    assert cluster.main([], bad) == 1
    out, err = capfd.readouterr()
    assert [json.loads(line)["what"] for line in out.splitlines()][-1] == "length"
    assert err.splitlines() == [
        "ranks: ended with code 3; its messages are above",
        "overlap: ratio = 0.66, expected at most 0.65",
        "weights: seconds is 'NaN', expected a number of at most 15",
        "memory: ratio is None, expected a number of at most 0.65",
    ]


def test_only_one_and_one_that_hangs(
    cluster: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parts(tmp_path, memory="import time; time.sleep(60)", length='print("so far"); return {"exponent": 1}')
    assert cluster.main(["--only", "length"], folder) == 0
    assert json.loads(capfd.readouterr().out) == {"what": "length", "exponent": 1}
    monkeypatch.setattr(cluster, "SECONDS", 0.0)
    assert cluster.main(["--only", "memory"], folder) == 1
    assert "no answer within 1 s" in capfd.readouterr().err
