"""The recorded rollouts: right numbers, readable without Limbeck, bounded, and safe over a resume."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from limbeck import api
from limbeck.assemble.run import assemble
from limbeck.config.recipe import parse_recipe
from limbeck.learners.batch import make_batch
from limbeck.training.collect import collect
from limbeck.training.recording import _stride, _thin_out, schema
from limbeck.training.run_folder import Checkpoint, RunFolder
from tests import finished_run

PER_TOKEN = [
    "tokens", "special", "trained", "student_logprob", "teacher_logprob", "behaviour_logprob", "reverse_kl",
    "student_entropy", "teacher_entropy", "student_top_ids", "teacher_top_logprobs",
]  # fmt: skip


def _rows(run: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((run / "rollouts").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_recorded_steps_are_the_first_the_last_and_those_between(run: Path) -> None:
    names = [path.name for path in sorted((run / "rollouts").iterdir())]
    assert names == [f"step-{step:06d}.parquet" for step in (1, 2, 4, 6)]
    rows = _rows(run)
    assert [row["source"] for row in rows[:5]] == ["train"] * 3 + ["watch"] * 2
    assert all(row["policy_version"] == row["step"] - 1 for row in rows)
    watched = {row["step"]: row["prompt_id"] for row in rows if row["source"] == "watch"}
    assert len(set(watched.values())) == 1, "the same held-out prompts at every recorded step"


def test_every_token_has_every_number_and_they_fit_each_other(run: Path) -> None:
    for row in _rows(run):
        assert {len(row[name]) for name in PER_TOKEN} == {len(row["token_ids"])}
        assert row["sampled_tokens"] == sum(row["trained"]) == len(row["token_ids"])
        assert row["special"][-1] == (row["finish"] == "stop")
        assert "".join(t for t, s in zip(row["tokens"], row["special"], strict=True) if not s) == row["response_text"]
        student, teacher = np.array(row["student_logprob"]), np.array(row["teacher_logprob"])
        assert row["log_ratio_mean"] == pytest.approx((student - teacher).mean(), abs=1e-5)
        assert row["reverse_kl_mean"] == pytest.approx(np.mean(row["reverse_kl"]), abs=1e-5)
        assert row["kl_max"] == pytest.approx(max(row["reverse_kl"]), abs=1e-5)
        assert min(row["reverse_kl"]) > -1e-5
        # Fresh samples: the learner's log-probs before the update are the sampler's, at the same temperature.
        np.testing.assert_allclose(student, row["behaviour_logprob"], atol=1e-4)
        for ids, logprobs, token, logprob in zip(
            row["student_top_ids"], row["student_top_logprobs"], row["token_ids"], student, strict=True
        ):
            assert logprobs == sorted(logprobs, reverse=True)
            assert len(ids) == 5
            if token in ids:
                assert logprobs[ids.index(token)] == pytest.approx(logprob, abs=1e-6)


def test_a_trace_says_what_the_fused_loss_measures(tmp_path: Path) -> None:
    recipe = parse_recipe(finished_run.table_of(tmp_path))

    async def both() -> tuple[list[Any], Any]:
        run = (await assemble(recipe, RunFolder(tmp_path / "scratch"))).run
        learner: Any = run.learner
        samples = (await collect(run, run.task.train[:3], run.sampling(1), 2)).samples
        traces = await learner.trace(samples, 4)
        batch = make_batch(samples, "packed", 10**6, torch.device("cpu"), learner.heads)
        (micro,) = batch.micro
        with torch.no_grad():
            return traces, learner.forward.loss(batch, micro)[1], micro.members

    traces, measured, members = asyncio.run(both())
    ordered = [traces[i] for i in members]
    for name, field in (
        ("student_logprobs", "student_logprob"),
        ("teacher_logprobs", "teacher_logprob"),
        ("student_entropy", "student_entropy"),
        ("teacher_entropy", "teacher_entropy"),
        ("reverse_kl", "reverse_kl"),
    ):
        ours = np.concatenate([getattr(trace, name) for trace in ordered])
        np.testing.assert_allclose(ours, getattr(measured, field).numpy(), atol=2e-5, err_msg=name)


def test_pandas_and_duckdb_read_the_files_without_limbeck(run: Path) -> None:
    frame = pd.read_parquet(run / "rollouts")
    assert list(frame.columns) == schema().names
    tokens = frame.explode(["tokens", "reverse_kl"])
    rows = duckdb.sql(
        f"""select t, sum(kl) from (select unnest(tokens) t, unnest(reverse_kl) kl
            from '{run}/rollouts/*.parquet') group by t"""
    ).fetchall()
    expected = tokens.groupby("tokens")["reverse_kl"].sum()
    assert {token: pytest.approx(kl, rel=1e-4, abs=1e-5) for token, kl in rows} == expected.to_dict()


def test_recording_changes_nothing_about_the_training(run: Path, tmp_path: Path) -> None:
    table = json.loads(json.dumps(finished_run.table_of(run.parents[1])))
    table |= {"output": str(tmp_path), "record": {"every": 0}}
    other = api.train(parse_recipe(table)).folder
    assert not (other / "rollouts").exists()
    ours, theirs = ((folder / "model" / "model.safetensors").read_bytes() for folder in (run, other))
    assert ours == theirs


def test_a_resumed_run_removes_what_was_recorded_after_the_checkpoint(copied: Path) -> None:
    folder = RunFolder(copied)
    half = copied / "rollouts" / ".step-000008.parquet.half"
    half.write_bytes(b"half")
    folder._remove_after(Checkpoint(copied / "checkpoints" / "step-000003", 3, 0, {}))
    assert sorted(path.name for path in (copied / "rollouts").iterdir()) == [
        "step-000001.parquet",
        "step-000002.parquet",
    ]


class _Run:
    """As much of a run as thinning out looks at."""

    def __init__(self, folder: RunFolder, every: int, max_mb: float) -> None:
        self.folder = folder
        self.recipe = type("", (), {"record": type("", (), {"every": every, "max_mb": max_mb})()})()


def test_every_step_is_recorded_where_every_one_is_asked_for(tmp_path: Path) -> None:
    """Step 1 is always kept; where `every` is 1, step 2 after it does not mean that every second one is."""
    folder = RunFolder(tmp_path)
    folder.rollouts.mkdir()
    run: Any = _Run(folder, every=1, max_mb=1)
    for step in range(1, 8):
        assert _stride(run) == 1
        (folder.rollouts / f"step-{step:06d}.parquet").write_bytes(b"x")


@pytest.mark.parametrize("last", [20, 100])
def test_every_step_is_recorded_until_there_are_too_many(tmp_path: Path, last: int) -> None:
    folder = RunFolder(tmp_path)
    folder.rollouts.mkdir()
    run: Any = _Run(folder, every=1, max_mb=10 / 1024)
    for step in range(1, last + 1):
        if step % _stride(run):
            continue
        (folder.rollouts / f"step-{step:06d}.parquet").write_bytes(b"x" * 1024)
        _thin_out(run)
        assert len(list(folder.rollouts.iterdir())) <= 10
    kept = sorted(int(path.stem[5:]) for path in folder.rollouts.iterdir())
    assert kept[0] == 1
    stride = _stride(run)
    multiples = set(range(stride, last + 1, stride))
    assert multiples <= set(kept)
    assert len(set(kept) - multiples) <= 2, "besides them the first, and the newest when they were thinned out"


def test_the_size_is_bounded_and_the_kept_steps_stay_evenly_spread(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.rollouts.mkdir()
    run: Any = _Run(folder, every=10, max_mb=10 / 1024)
    for step in [1, *range(10, 1001, 10)]:
        if step > 1 and step % (10 * _stride(run)):
            continue
        (folder.rollouts / f"step-{step:06d}.parquet").write_bytes(b"x" * 1024)
        _thin_out(run)
        files = list(folder.rollouts.iterdir())
        assert sum(path.stat().st_size for path in files) <= 10 * 1024
    kept = sorted(int(path.stem[5:]) for path in folder.rollouts.iterdir())
    assert kept[0] == 1
    distances = set(np.diff(kept[1:]).tolist())
    assert distances == {160}
    assert math.log2(_stride(run)) == 4
