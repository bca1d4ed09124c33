"""The dumps of other trainers, written here as their files write them; hostile files; the command line."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from click.testing import CliRunner

from limbeck.audit.read import read_dump
from limbeck.audit.run import audit
from limbeck.cli.main import main
from limbeck.errors import DataError
from tests.audit.planted import World, write


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world: World) -> list[dict[str, Any]]:
    return world.dump(0.7, 40, seed=2, noise=0.01, faults=["teacher_at_one", "advantages_right"])


def response(row: dict[str, Any], key: str) -> list[Any]:
    return row[key][row["prompt_length"] :]


def slime_rollout(rows: list[dict[str, Any]], folder: Path) -> None:
    samples = [
        {
            "tokens": row["token_ids"],
            "response_length": len(response(row, "mask")),
            "loss_mask": None,
            "rollout_log_probs": response(row, "student_logprobs"),
            "status": "completed",
            "reward": {"a": 1},
            "metadata": {},
            "teacher_log_probs": torch.tensor(response(row, "teacher_logprobs")),
            "prompt": "x",
            "response": "",
        }
        for row in rows
    ]
    torch.save({"rollout_id": 7, "samples": samples}, folder / "7.pt")


def miles_train(rows: list[dict[str, Any]], folder: Path) -> None:
    columns = {
        "tokens": [torch.tensor(row["token_ids"]) for row in rows],
        "response_lengths": [len(response(row, "mask")) for row in rows],
        "loss_masks": [torch.tensor(response(row, "mask")) for row in rows],
        **{
            theirs: [torch.tensor(response(row, ours)) for row in rows]
            for theirs, ours in (
                ("log_probs", "student_logprobs"),
                ("rollout_log_probs", "sampler_logprobs"),
                ("teacher_log_probs", "teacher_logprobs"),
                ("advantages", "advantages"),
            )
        },
        "truncated": [0 for _ in rows],
        "raw_reward": [1.0],
    }
    torch.save({"rollout_id": 7, "rank": 0, "rollout_data": columns, "cp_rank": 0, "cp_size": 1}, folder / "7_0.pt")


def verl_batch(rows: list[dict[str, Any]], folder: Path) -> None:
    width = max(len(response(row, "mask")) for row in rows)
    left = 3  # padding on the left of each prompt

    def padded(key: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([response(r, key) + [0] * (width - len(response(r, key))) for r in rows], dtype=dtype)

    mask = padded("mask", torch.int64)
    prompts = torch.tensor([[0] * left + row["token_ids"][: row["prompt_length"]] for row in rows])
    attended = torch.cat([(torch.arange(prompts.shape[1]) >= left).long().expand(len(rows), -1), mask], dim=1)
    batch = {
        "prompts": prompts,
        "responses": padded("token_ids", torch.int64),
        "attention_mask": attended,
        "response_mask": mask,
        "old_log_probs": padded("student_logprobs", torch.float32),
        "teacher_log_probs": padded("teacher_logprobs", torch.float32),
        "rollout_log_probs": padded("sampler_logprobs", torch.float32),
        "advantages": padded("advantages", torch.float32),
    }
    torch.save(batch, folder / "step_7.pt")


def prime_bin(rows: list[dict[str, Any]], folder: Path) -> None:
    flat: list[list[Any]] = [[] for _ in range(10)]
    for row in rows:
        known = {key: [value or 0.0 for value in row[key]] for key in ("sampler_logprobs", "teacher_logprobs")}
        count = len(row["token_ids"])
        columns = [
            row["token_ids"],
            [bool(m) for m in row["mask"]],
            row["advantages"],
            known["sampler_logprobs"],
            list(range(count)),
            [count],
            [0.7] * count,
            ["env"] * count,
            [count],
            known["teacher_logprobs"],
        ]
        flat = [have + more for have, more in zip(flat, columns, strict=True)]
    (folder / "step_7").mkdir()
    (folder / "step_7" / "rank_0.bin").write_bytes(msgpack.packb([flat]))


@pytest.mark.parametrize("dump", [slime_rollout, miles_train, verl_batch, prime_bin])
def test_a_dump_says_what_its_rows_say(dump: Any, world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    dump(rows, tmp_path)
    read = read_dump(tmp_path)
    assert [row.token_ids.tolist() for row in read.rows] == [row["token_ids"] for row in rows]
    assert {row.step for row in read.rows} == {7}
    report = audit(tmp_path, world.student_folder, world.teacher_folder, 0.7)
    assert [finding.name for finding in report.findings] == ["teacher_temperature"]
    assert abs(report.teacher["temperature"] - 1) < 0.01
    assert abs(report.student["temperature"] - 0.7) < 0.01


def test_prime_export_has_no_teacher(world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    lines = [
        {
            "step": 3,
            "token_ids": row["token_ids"],
            "loss_mask": row["mask"],
            "advantages": row["advantages"],
            "trainer_logprobs": [v or 0.0 for v in row["student_logprobs"]],
            "inference_logprobs": [v or 0.0 for v in row["sampler_logprobs"]],
        }
        for row in rows
    ]
    report = audit(write(lines, tmp_path / "rank_0.jsonl"), world.student_folder, world.teacher_folder, 0.7)
    assert not report.findings
    assert "ref_logprobs" in next(item.why for item in report.not_checked if item.name == "teacher")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"input": "a", "output": "b", "gts": None, "score": 1.0, "step": 1}, "verl's generation log"),
        ({"step": 1, "prompt": "a", "completion": "b", "advantage": 0.1}, "TRL's table of completions"),
    ],
)
def test_text_alone_tells_nothing(row: dict[str, Any], kind: str, world: World, tmp_path: Path) -> None:
    report = audit(write([row], tmp_path / "1.jsonl"), world.student_folder, world.teacher_folder, 0.7)
    assert (report.dump, report.findings) == (kind, [])
    assert all("text" in item.why for item in report.not_checked)


class DataProto:
    """Stands for verl's class of that name."""


def test_a_pickle_with_a_class_is_refused_by_name(tmp_path: Path) -> None:
    plain, zipped = tmp_path / "a.pkl", tmp_path / "b.pt"
    plain.write_bytes(pickle.dumps(DataProto()))
    torch.save({"samples": [DataProto()]}, zipped)
    for path in (plain, zipped):
        with pytest.raises(DataError, match=r"DataProto.*would run code"):
            read_dump(path)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"{", "no JSON object"),
        ("a.jsonl", b'{"token_ids": [1, "x"]}', "whole numbers"),
        ("a.jsonl", b'{"token_ids": [1, 2, 3], "prompt_length": 9}', "prompt_length"),
        ("a.jsonl", b'{"token_ids": [1, 2, 3], "prompt_length": 1, "mask": [1]}', "has 1 entries"),
        ("a.jsonl", b'{"text": "x"}', "expected prompt_ids"),
        ("a.jsonl", b"", "no rows"),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.bin", b"\xc1", "msgpack"),
        ("a.bin", msgpack.packb([[1]]), "micro-batches"),
        ("a.pt", b"PK\x03\x04", "not loaded"),
        ("a.txt", b"", "ends in"),
    ],
)
def test_what_is_no_dump_is_one_message(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_dump(tmp_path / name)


def test_plain_containers_of_a_pickle_are_read(world: World, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    samples = [{"tokens": row["token_ids"], "response_length": len(response(row, "mask"))} for row in rows]
    torch.save(OrderedDict(samples=samples), tmp_path / "rollout_12.pt")
    assert {row.step for row in read_dump(tmp_path).rows} == {12}


def test_the_command_prints_a_page_or_json_and_exits_1(
    world: World, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = write(rows, tmp_path / "dump.jsonl")
    options = [
        "audit",
        str(path),
        "--student",
        world.student_folder,
        "--teacher",
        world.teacher_folder,
        "--temperature",
        "0.7",
    ]
    text, as_json = CliRunner().invoke(main, options), CliRunner().invoke(main, [*options, "--json"])
    assert (text.exit_code, as_json.exit_code) == (1, 1)
    assert "1. teacher_temperature" in text.stdout
    answer = json.loads(as_json.stdout)
    assert abs(answer["teacher"]["temperature"] - 1) < 0.01
    assert {"name", "measured", "expected", "remedy"} <= set(answer["findings"][0])
    missing = CliRunner().invoke(main, ["audit", str(tmp_path / "no"), *options[2:]])
    assert (missing.exit_code, missing.exception.__class__) == (1, SystemExit)


def test_a_runs_folder_is_read_as_its_rollouts(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = run / "checkpoints" / "step-000002" / "model"
    for folder in (model, run / "rollouts"):
        folder.mkdir(parents=True)
    (run / "recipe.toml").write_text("")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (model / "config.json").write_text('{\n  "model_type": "llama"\n}')
    (model / "model.safetensors").write_bytes(b"")
    write(rows, run / "rollouts" / "step-000001.jsonl")
    assert len(read_dump(run).rows) == len(read_dump(run / "rollouts").rows) == len(rows)
    with pytest.raises(DataError, match=r"step-000002/model is a model, and no dump: expected .*\.parquet"):
        read_dump(run / "checkpoints")


def test_a_run_without_rollouts_says_what_records_them(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match=r"step-N\.parquet: train with record\.every"):
        read_dump(tmp_path)
