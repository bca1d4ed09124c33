from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import limbeck
from limbeck.cluster.connect import require
from limbeck.config.recipe import parse_recipe
from limbeck.errors import RecipeError
from limbeck.testing import FakeTask
from tests.tiny_runs import table_of

TABLE: dict[str, Any] = {
    "student": {"model": "s"},
    "teacher": {"model": "t"},
    "task": {"kind": "arithmetic"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": {"address": "somewhere"}}, "'somewhere' is no address of a Ray cluster, expected 'local'"),
        ({"cluster": {"address": "http://a:1"}}, "is no address of a Ray cluster"),
        ({"cluster": {"learners": 0}}, "cluster.learners"),
        ({"cluster": {}, "learner": {"kind": "python", "factory": "a:b"}}, "a learner of your own .* cannot"),
        (
            {"cluster": {"samplers": 2}, "engine": {"kind": "vllm", "url": "http://h:1"}},
            "cluster.samplers = 2, but engine.kind = 'vllm' samples by itself",
        ),
        ({"cluster": {}, "device": "cuda:1"}, "Set device = 'cuda'"),
    ],
)
def test_what_a_fleet_cannot_do_is_refused_by_its_keys(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**TABLE, **changes})


@pytest.mark.parametrize("address", ["local", "auto", "10.0.0.1:6379", "ray://head:10001"])
def test_addresses(address: str) -> None:
    recipe = parse_recipe(TABLE, [f"cluster.address={address}", "cluster.samplers=2"])
    assert recipe.cluster is not None
    assert (recipe.cluster.address, recipe.cluster.samplers, recipe.cluster.learners) == (address, 2, 1)


@pytest.mark.parametrize("address", ["head", "head:0", "head:65536", "ray://head:99999", "http://head:1", "a b:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(RecipeError, match=r"is no address of a Ray cluster, expected .* a port from 1 to 65535"):
        parse_recipe({**TABLE, "cluster": {"address": address}})


async def test_too_few_devices_are_refused_with_the_key_to_lower() -> None:
    processes = {"cluster.learners": 1, "cluster.samplers": 3}
    with pytest.raises(RecipeError, match=r"needs 4 processors .*samplers = 3.* has 2\. Lower cluster\.samplers"):
        await require(lambda: {"CPU": 2.0}, processes, {}, "auto", 0.0)
    with pytest.raises(RecipeError, match=r"needs 4 GPUs .* has 1.*device = 'cpu'"):
        await require(lambda: {"CPU": 8.0, "GPU": 1.0}, processes, processes, "auto", 0.0)
    found = iter([{"CPU": 2.0}, {"CPU": 4.0}])
    await require(lambda: next(found), processes, {}, "auto", 5.0)  # a node came back


def test_objects_are_refused_with_a_fleet(tmp_path: Path) -> None:
    recipe = parse_recipe({**table_of(tmp_path), "output": str(tmp_path), "cluster": {}})
    with pytest.raises(RecipeError, match="an object was given for task"):
        limbeck.train(recipe, task=FakeTask({"a": "b"}))
