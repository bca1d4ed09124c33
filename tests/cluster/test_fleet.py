from __future__ import annotations

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
