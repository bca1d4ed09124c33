"""The index of rollouts, one rollout, search, and the sums of where student and teacher disagree."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from limbeck.errors import RunError
from limbeck.training.recording import write_rollouts
from limbeck.view.disagreement import Disagreement, NoStepsError
from limbeck.view.rollouts import Rollouts, plain

from . import made


@pytest.fixture
def rollouts(tmp_path: Path) -> Rollouts:
    made.write_rollout_files(tmp_path, range(1, 5), each=6, length=12)
    return Rollouts(tmp_path / "rollouts")


def test_the_index_has_all_rollouts_and_no_tokens(rollouts: Rollouts) -> None:
    index = rollouts.index()
    assert len(index["rows"]) == 24
    row, whole = index["rows"][7], made.rollout(2, 1, 12)
    assert row["id"] == "step-000002.parquet:1"
    assert "tokens" not in row
    assert {key: row[key] for key in ("step", "prompt_id", "finish", "reward")} == {
        key: whole[key] for key in ("step", "prompt_id", "finish", "reward")
    }
    assert row["kl_max"] == pytest.approx(whole["kl_max"])


def test_only_new_files_come_again(rollouts: Rollouts, tmp_path: Path) -> None:
    before = rollouts.index()
    assert rollouts.index(before["known"], before["last"])["rows"] == []
    made.write_rollout_files(tmp_path, range(5, 6), each=6)
    more = rollouts.index(before["known"], before["last"])
    assert ({row["step"] for row in more["rows"]}, more["reset"]) == ({5}, False)
    (rollouts.folder / "step-000002.parquet").unlink()
    thinned = rollouts.index(more["known"], more["last"])
    assert (thinned["reset"], len(thinned["rows"])) == (True, 24)


def test_a_rollout_has_every_column(rollouts: Rollouts) -> None:
    row = rollouts.rollout("step-000003.parquet:2")
    expected = made.rollout(3, 2, 12)
    assert row["tokens"] == expected["tokens"]
    assert row["reverse_kl"] == pytest.approx(expected["reverse_kl"])
    assert row["student_top_logprobs"] == expected["student_top_logprobs"]


@pytest.mark.parametrize(
    "id_", ["step-000009.parquet:0", "step-000001.parquet:99", "step-000001.parquet:-1", "x", "../recipe.toml:0", ":"]
)
def test_a_rollout_that_is_not_there_is_refused(rollouts: Rollouts, id_: str) -> None:
    with pytest.raises(RunError, match="Reload the page"):
        rollouts.rollout(id_)


def test_search_looks_at_whole_texts(rollouts: Rollouts, tmp_path: Path) -> None:
    row = made.rollout(9, 0, response_text="x" * 5000 + "NEEDLE")
    write_rollouts([row], rollouts.folder / "step-000009.parquet")
    assert rollouts.search("needle") == ["step-000009.parquet:0"]
    assert len(rollouts.search("what is 2 AND")) == 6


def test_broken_files_are_named_and_the_rest_is_shown(rollouts: Rollouts) -> None:
    (rollouts.folder / "step-000002.parquet").write_bytes(b"PAR1 not really")
    (rollouts.folder / "step-000003.parquet").write_bytes(b"")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"step": [4], "other": [1]}), rollouts.folder / "step-000004.parquet")
    old = pa.table({"step": [5], "prompt_text": ["p"], "response_text": ["r"]})
    pq.write_table(old, rollouts.folder / "step-000005.parquet")
    (rollouts.folder / "step-000006.parquet").symlink_to("step-000006.parquet")
    index = rollouts.index()
    assert len(index["rows"]) == 6 + 1
    assert len(index["problems"]) == 4
    assert "step-000004.parquet is skipped: it has no column prompt_text" in index["problems"][-2]
    assert "step-000006.parquet is skipped: " in index["problems"][-1]
    assert rollouts.search("what is 1 and 3")
    with pytest.raises(RunError, match=r"step-000002\.parquet cannot be read"):
        rollouts.rollout("step-000002.parquet:0")
    summary = Disagreement(rollouts).summary("all")
    assert summary["rollouts"] == 4, "the watched ones aside"
    assert len(summary["problems"]) == 5


def test_no_rollouts_is_said(tmp_path: Path) -> None:
    assert "no recorded rollouts" in Rollouts(tmp_path / "rollouts").index()["problems"][0]
    assert Disagreement(Rollouts(tmp_path / "rollouts")).summary("all")["rollouts"] == 0


def _naive(rows: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    sums: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for row in rows:
        for token, kl in zip(row["tokens"], row["reverse_kl"], strict=True):
            count, total = sums[token]
            sums[token] = count + 1, total + kl
    return sums


def test_the_sums_are_those_of_a_plain_loop(rollouts: Rollouts) -> None:
    summary = Disagreement(rollouts).summary("all")
    rows = [made.rollout(step, number, 12) for step in range(1, 5) for number in range(2, 6)]
    naive = _naive(rows)
    assert summary["rollouts"] == len(rows)
    assert {t["token"]: t["count"] for t in summary["tokens"]} == {k: n for k, (n, _) in naive.items()}
    for token in summary["tokens"]:
        assert token["kl"] == pytest.approx(naive[token["token"]][1], rel=1e-5)
    assert [t["token"] for t in summary["special"]] == ["<eos>"]
    assert summary["special"][0]["count"] == len(rows)
    assert summary["kl_total"] == pytest.approx(sum(total for _, total in naive.values()), rel=1e-5)
    at_3 = [row["reverse_kl"][3] for row in rows]
    mean = sum(at_3) / len(at_3)
    position = summary["positions"][3]
    assert position["kl_mean"] == pytest.approx(mean, rel=1e-5)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in at_3) / len(at_3))
    assert position["se"] == pytest.approx(deviation / math.sqrt(len(at_3)), rel=1e-4)
    worst = max(((kl, row, i) for row in rows for i, kl in enumerate(row["reverse_kl"])), key=lambda x: x[0])
    place = summary["places"][0]
    assert (place["step"], place["position"]) == (worst[1]["step"], worst[2])
    assert rollouts.rollout(place["id"])["tokens"][place["position"]] == place["token"]


def test_steps_can_be_chosen(rollouts: Rollouts) -> None:
    disagreement = Disagreement(rollouts)
    assert disagreement.summary("2-3")["steps"] == [2, 3]
    assert disagreement.summary("4-9")["rollouts"] == 4
    assert disagreement.summary("100-200")["rollouts"] == 0


@pytest.mark.parametrize("steps", ["", "latest", "3", "-3", "3-", "1-2-3", "9" * 40 + "-1"])
def test_steps_that_are_none_are_named(rollouts: Rollouts, steps: str) -> None:
    with pytest.raises(NoStepsError, match="expected late, early, all, or two numbers"):
        Disagreement(rollouts).summary(steps)


def _rows_of(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _mean(rows: list[dict[str, Any]]) -> float:
    kl = [value for row in rows for value in row["reverse_kl"]]
    return sum(kl) / len(kl)


def test_the_latest_third_stands_beside_the_first(tmp_path: Path) -> None:
    made.write_rollout_files(tmp_path, range(1, 10), each=6, length=12)
    summary = Disagreement(Rollouts(tmp_path / "rollouts")).summary()
    late, early = (
        [made.rollout(step, number, 12) for step in steps for number in range(2, 6)]
        for steps in (range(7, 10), range(1, 4))
    )
    assert summary["steps"] == [7, 9]
    assert summary["before"]["steps"] == [1, 3]
    assert summary["kl_mean"] == pytest.approx(_mean(late), rel=1e-5)
    assert summary["before"]["kl_mean"] == pytest.approx(_mean(early), rel=1e-5)
    for name in ("task", "teacher"):
        groups = summary["groups"][name]
        assert sum(group["share"] for group in groups) == pytest.approx(1)
        for group in groups:
            assert group["kl_mean"] == pytest.approx(_mean(_rows_of(late, **{name: group["name"]})), rel=1e-5)
            assert group["before"]["kl_mean"] == pytest.approx(
                _mean(_rows_of(early, **{name: group["name"]})), rel=1e-5
            )
    before, seen = _naive(early), sum(len(row["tokens"]) for row in early)
    for token in summary["tokens"]:
        count, total = before[token["token"]]
        assert token["before"]["count"] == count
        assert token["before"]["per_thousand"] == pytest.approx(1000 * total / seen, rel=1e-5)
    assert [position["start"] for position in summary["before"]["positions"]] == list(range(12))


def test_too_few_steps_have_no_first_third(tmp_path: Path) -> None:
    made.write_rollout_files(tmp_path, range(1, 3), each=4, length=6)
    summary = Disagreement(Rollouts(tmp_path / "rollouts")).summary()
    assert (summary["steps"], summary["before"]) == ([2, 2], None)


def test_a_task_and_a_teacher_are_chosen_together_and_the_others_are_still_named(rollouts: Rollouts) -> None:
    rows = [made.rollout(step, number, 12) for step in range(1, 5) for number in range(2, 6)]
    summary = Disagreement(rollouts).summary("all", task="words", teacher="big")
    mine = _rows_of(rows, task="words", teacher="big")
    assert summary["rollouts"] == len(mine) < len(rows)
    assert summary["kl_mean"] == pytest.approx(_mean(mine), rel=1e-5)
    assert {place["id"] for place in summary["places"]} <= {
        row["id"] for row in rollouts.index()["rows"] if row["task"] == "words" and row["teacher"] == "big"
    }
    assert {group["name"] for group in summary["groups"]["task"]} == {"words", "numbers"}
    assert summary["choices"] == {"task": ["numbers", "words"], "teacher": ["big", "small"], "turn": [1]}
    assert Disagreement(rollouts).summary("all", task="poems")["rollouts"] == 0


def test_turns_of_the_student_are_told_apart(tmp_path: Path) -> None:
    row = made.rollout(1, 3, 8)
    turns = [(0, 3, "student"), (3, 5, "tool"), (5, 8, "student")]
    row["turns"] = [{"start": a, "end": b, "role": role} for a, b, role in turns]
    row["reverse_kl"] = [1.0, 1.0, 1.0, None, None, 4.0, 4.0, 4.0]
    for name in ("student_logprob", "teacher_logprob"):
        row[name] = [value if i not in (3, 4) else None for i, value in enumerate(row[name])]
    row["trained"] = [i not in (3, 4) for i in range(8)]
    (tmp_path / "rollouts").mkdir()
    write_rollouts([row], tmp_path / "rollouts" / "step-000001.parquet")
    disagreement = Disagreement(Rollouts(tmp_path / "rollouts"))
    summary = disagreement.summary("all")
    assert [(group["name"], group["tokens"], group["kl_mean"]) for group in summary["groups"]["turn"]] == [
        (1, 3, 1.0), (2, 3, 4.0),
    ]  # fmt: skip
    assert summary["rollouts"] == 1, "in two turns it is one still"
    assert disagreement.summary("all", turn=2)["kl_total"] == 12.0
    above = {each["nats"]: each for each in summary["above"]}
    assert above[1.0]["tokens"] == 0.5
    assert above[1.0]["kl"] == pytest.approx(12 / 15)
    assert summary["kl_se"] is None, "of one prompt"


def test_tokens_that_were_not_sampled_count_for_nothing(tmp_path: Path) -> None:
    row = made.rollout(1, 3, 4)
    row |= {"trained": [True, False, True, True]}
    for name in ("reverse_kl", "student_logprob", "teacher_logprob"):
        row[name] = [None if i == 1 else value for i, value in enumerate(row[name])]
    (tmp_path / "rollouts").mkdir()
    write_rollouts([row], tmp_path / "rollouts" / "step-000001.parquet")
    assert Disagreement(Rollouts(tmp_path / "rollouts")).summary("all")["tokens_seen"] == 3


def test_a_teacher_without_distributions_falls_back_to_the_sampled_ratio(tmp_path: Path) -> None:
    row = made.rollout(1, 3, 6) | {"reverse_kl": None, "teacher_top_ids": None}
    (tmp_path / "rollouts").mkdir()
    write_rollouts([row], tmp_path / "rollouts" / "step-000001.parquet")
    summary = Disagreement(Rollouts(tmp_path / "rollouts")).summary("all")
    assert summary["exact"] is False
    expected = sum(s - t for s, t in zip(row["student_logprob"], row["teacher_logprob"], strict=True))
    assert summary["kl_total"] == pytest.approx(expected, rel=1e-4)


def test_numbers_become_what_json_can_hold() -> None:
    assert plain([float("nan"), float("inf"), 0.1234567890123, 3, "x", None, [1.5]]) == [
        None, None, 0.1234568, 3, "x", None, [1.5],
    ]  # fmt: skip
