"""Runs put together by their recipes: which they are, and their mean and band."""

from __future__ import annotations

import math
import statistics
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.view import made_runs

from .looking import Served
from .page import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("groups") / "runs"
    for temperature in (0.7, 1.0):
        for seed in range(3):
            made_runs.write_run(root / f"t{temperature}-s{seed}", seed, temperature, steps=6, reached=6 - seed, every=3)
    return root


def _in_page(page: Page, script: str, *arguments: Any) -> Any:
    code = (
        "const done = arguments[arguments.length - 1];"
        "Promise.all(['groups', 'store', 'flat', 'address'].map((name) => import(`/assets/${name}.js`)))"
        f".then(([groups, {{store}}, flat, {{address}}]) => {{ {script} }}).then(done)"
    )
    return page.driver.execute_async_script(code, *arguments)


def test_runs_that_differ_in_their_seed_alone_are_one_group(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs) + "#curves?group=all-but-seed")
    found = _in_page(page, "return groups.shownGroups().map((g) => [g.label, g.runs.map((r) => r.id), g.colour])")
    assert [row[:2] for row in found] == [
        ["temperature 0.7", ["t0.7-s0", "t0.7-s1", "t0.7-s2"]],
        ["temperature 1", ["t1.0-s0", "t1.0-s1", "t1.0-s2"]],
    ]
    assert found[0][2] != found[1][2]
    of_seed = "return groups.groupsOf(store.runs, ['seed']).map((g) => [g.label, g.runs.length])"
    assert _in_page(page, of_seed) == [["seed 0", 2], ["seed 1", 2], ["seed 2", 2]]
    alone = "return groups.groupsOf(store.runs, []).map((g) => [g.label, g.grouped])"
    assert _in_page(page, alone)[0] == ["t0.7-s0", False]
    hidden = "return groups.groupsOf(store.runs.slice(3)).map((g) => g.colour)"
    assert _in_page(page, hidden) == [found[1][2]], "a colour stays when others are hidden"


def test_a_groups_line_is_its_runs_mean_with_a_band(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    script = "return groups.combine(store.runs.slice(0, 3), 'train', 'reverse_kl/exact', {band: band});"
    line = _in_page(page, script.replace(": band", ': "se"'))
    assert line["step"] == line["x"] == [1, 2, 3, 4, 5, 6]
    assert line["n"] == [3, 3, 3, 3, 2, 1], "runs that have got so far"
    at_two = [made_runs.shifted(2, seed, 0.7, 1e-3)["reverse_kl/exact"] for seed in range(3)]
    mean, deviation = statistics.mean(at_two), statistics.stdev(at_two)
    error = deviation / math.sqrt(3)
    for band, low, high in (
        ("se", mean - error, mean + error),
        ("sd", mean - deviation, mean + deviation),
        ("ci", mean - 4.303 * error, mean + 4.303 * error),
        ("range", min(at_two), max(at_two)),
    ):
        line = _in_page(page, script.replace(": band", f': "{band}"'))
        assert [line["mean"][1], line["low"][1], line["high"][1]] == pytest.approx([mean, low, high]), band
        assert (line["low"][5], line["high"][5]) == (None, None), "one run has no spread"
    x_of = "{xOf: (run) => run.train.step.map((step) => step * (run.id.endsWith('0') ? 1 : 3))}"
    elsewhere = f"return groups.combine(store.runs.slice(0, 2), 'train', 'lr', {x_of}).x"
    assert _in_page(page, elsewhere) == [2, 4, 6, 8, 10, 6]
    assert _in_page(page, "return groups.combine(store.runs, 'train', 'none')") is None


def test_what_differs_as_toml(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    assert _in_page(page, "return flat.differing(store.runs)") == ["name", "seed", "rollout.temperature"]
    script = """
      const sets = {'x.y': {path: 'p'}};
      const recipe = {name: 'a "b"', betas: [0.9, 1], eval: {sets}, trackers: [{kind: 'wandb', on: true}]};
      const run = {info: {recipe}};
      return [flat.keysOf([run]), flat.tomlOf(run, flat.keysOf([run]))];
    """
    keys, toml = _in_page(page, script)
    assert keys == ["name", "betas", "trackers", 'eval.sets."x.y".path']
    recipe = {"name": 'a "b"', "betas": [0.9, 1], "trackers": [{"kind": "wandb", "on": True}]}
    assert tomllib.loads(toml) == {**recipe, "eval": {"sets": {"x.y": {"path": "p"}}}}
