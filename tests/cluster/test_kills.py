"""Processes that kill themselves with SIGKILL in the middle of something: the weights are those of a quiet run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from limbeck.assemble import fleet
from tests.cluster.fleets import table, train, weights
from tests.cluster.parts import deadly_rank, deadly_sampler, deadly_teacher

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def test_kills_in_every_phase_change_no_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe, marks = table(tmp_path), tmp_path / "marks"
    recipe["rollout"]["lag"] = 1
    marks.mkdir()
    quiet = train(recipe, tmp_path / "quiet", cluster={"learners": 2})
    monkeypatch.setattr(fleet, "build_sampler", partial(deadly_sampler, folder=str(marks)))
    monkeypatch.setattr(fleet, "build_teacher", partial(deadly_teacher, folder=str(marks)))
    monkeypatch.setattr(fleet, "build_rank", partial(deadly_rank, folder=str(marks)))
    disturbed = train(recipe, tmp_path / "disturbed", cluster={"learners": 2, "samplers": 2})
    died = {
        "sampler-load", "sampler-sample", "teacher-compute", "teacher-fetch", "rank-backward", "rank-publish",
        "rank-save",
    }  # fmt: skip
    assert {path.name for path in marks.iterdir()} == died
    assert weights(tmp_path / "disturbed") == weights(tmp_path / "quiet")
    assert disturbed.after["reverse_kl/exact"] == quiet.after["reverse_kl/exact"]
    assert [line["step"] for line in disturbed.steps] == [1, 2, 3]
    assert caplog.text.count("The run goes on from step") == 3  # in backward, publish and save; whoever says it first
    alone = train(recipe, tmp_path / "alone")
    assert alone.steps[0]["reverse_kl/exact"] == pytest.approx(quiet.steps[0]["reverse_kl/exact"], rel=1e-5)
    assert not [path.name for path in (tmp_path / "disturbed").rglob(".*") if path.name != ".lock"]
