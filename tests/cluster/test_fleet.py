from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.fleets import table, train, weights

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("changes", [{}, {"learner": {"lr": 1e-2, "lora": {"rank": 4}}}], ids=["full", "lora"])
def test_any_number_of_samplers_makes_the_weights_of_one_process(tmp_path: Path, changes: dict) -> None:
    recipe = table(tmp_path, **changes)
    alone = train(recipe, tmp_path / "alone")
    for samplers in (1, 4) if not changes else (2,):
        fleet = train(recipe, tmp_path / str(samplers), cluster={"samplers": samplers})
        assert weights(tmp_path / str(samplers)) == weights(tmp_path / "alone")
        assert fleet.after["reverse_kl/exact"] == alone.after["reverse_kl/exact"]
        assert fleet.steps[-1]["weights/bytes"] > 0
