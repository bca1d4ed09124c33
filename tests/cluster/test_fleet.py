from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.fleets import table, train, weights

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


LORA = {"learner": {"lr": 1e-2, "lora": {"rank": 4}}}


@pytest.mark.parametrize(
    ("samplers", "lag", "changes"), [(1, 0, {}), (4, 1, {}), (2, 1, LORA)], ids=["one", "four, lag", "lora, lag"]
)
def test_any_number_of_samplers_makes_the_weights_of_one_process(
    tmp_path: Path, samplers: int, lag: int, changes: dict
) -> None:
    recipe = table(tmp_path, **changes)
    recipe["rollout"]["lag"] = lag
    alone = train(recipe, tmp_path / "alone")
    fleet = train(recipe, tmp_path / "fleet", cluster={"samplers": samplers})
    assert weights(tmp_path / "fleet") == weights(tmp_path / "alone")
    assert fleet.after["reverse_kl/exact"] == alone.after["reverse_kl/exact"]
    assert fleet.steps[-1]["weights/bytes"] > 0


def test_several_sources_make_the_weights_of_one_process(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}+1=", "completion": str(i + 1)}) + "\n" for i in range(5)))
    recipe = table(tmp_path)
    recipe["rollout"] |= {
        "lag": 1,
        "sources": [
            {"from": "student", "share": 0.5},
            {"from": "teacher", "share": 0.25},
            {"from": "dataset", "share": 0.25, "path": str(rows)},
        ],
    }
    train(recipe, tmp_path / "alone")
    fleet = train(recipe, tmp_path / "fleet", cluster={"samplers": 1, "teachers": 2})
    assert weights(tmp_path / "fleet") == weights(tmp_path / "alone")
    assert fleet.steps[-1]["source/teacher/responses"] == 2
    recipe["rollout"] |= {"sources": [recipe["rollout"]["sources"][2] | {"share": 1.0}], "lag": 0}
    recipe |= {"teacher": {"kind": "dataset"}}
    train(recipe, tmp_path / "alone-sft")
    train(recipe, tmp_path / "fleet-sft", cluster={"samplers": 1})
    assert weights(tmp_path / "fleet-sft") == weights(tmp_path / "alone-sft")
