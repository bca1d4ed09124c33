"""Runs put together by their recipes: which they are, and their mean and band."""

from __future__ import annotations

import json
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
    names = [
        "groups",
        "temperature",
        "store",
        "flat",
        "address",
        "axes",
        "series",
        "runrows",
        "columns",
        "chartlist",
        "marks",
        "format",
    ]
    taken = ", ".join(f"{{{name}}}" if name in ("store", "address") else name for name in names)
    code = (
        "const done = arguments[arguments.length - 1];"
        f"Promise.all({names}.map((name) => import(`/assets/${{name}}.js`)))"
        f".then(([{taken}]) => {{ {script} }}).then(done)"
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


def test_a_new_run_changes_no_colour(page: Page, tmp_path: Path, served: Served) -> None:
    """Nor one that is before the others by its name; of groups neither."""
    root = tmp_path / "runs"
    for number, name in enumerate("cdb"):
        made_runs.write_run(root / name, temperature=0.7 + number, steps=4, started=1000.0 * (1 + number))
    page.open(served(root) + "#curves")
    colours = """
      return Object.fromEntries([...store.runs.map((run) => [run.id, run.colour]),
        ...groups.groupsOf(store.runs, ['rollout.temperature']).map((group) => [group.label, group.colour])]);
    """
    before = _in_page(page, colours)
    assert [before[name] for name in "cdb"] == ["--c1", "--c2", "--c3"], "the oldest first"
    assert before["temperature 0.7"] == "--c1"
    made_runs.write_run(root / "a", temperature=0.1, steps=4, started=9000.0)
    page.until("document.querySelectorAll('.legendbar button').length === 4")
    after = _in_page(page, colours)
    assert {name: after[name] for name in before} == before
    assert after["a"] == after["temperature 0.1"] == "--c4"
    page.driver.refresh()
    page.until("document.querySelectorAll('.legendbar button').length === 4")
    assert _in_page(page, colours) == after


def test_a_chart_speaks_of_what_it_draws(page: Page, runs: Path, served: Served) -> None:
    """Of the temperatures of its lines, and in its help of the faint lines that one run has and several do not."""
    address = served(runs)
    helped = """
      return Object.fromEntries([...document.querySelectorAll('.chart')].map((chart) => {
        chart.scrollIntoView();
        chart.querySelector('[aria-expanded]').click();
        const texts = ['.tools dd', '.notice'].map((part) => chart.querySelector(part)?.textContent ?? '');
        return [chart.querySelector('h3').firstChild.data, texts];
      }));
    """
    page.open(f"{address}#curves?runs=t0.7-s0,t1.0-s0")
    page.until("document.querySelectorAll('.chart canvas').length > 3")
    said = page.run(helped)
    assert "faint" not in said["Accuracy"][0] + said["Response length"][0]
    assert "T 0.7 and 1" in said["Entropy"][1]
    page.open(f"{address}#curves?runs=t0.7-s0")
    page.until("document.querySelectorAll('.chart canvas').length > 3")
    said = page.run(helped)
    assert "The faint line is the same of the training prompts" in said["Accuracy"][0]
    assert "The faint line is the longest" in said["Response length"][0]
    assert said["Entropy"][1] == ""


def test_a_groups_line_is_its_runs_mean_with_a_band(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    script = "return groups.combine(store.runs.slice(0, 3), 'train', 'reverse_kl/exact', {band: band});"
    line = _in_page(page, script.replace(": band", ': "se"'))
    assert line["step"] == [1, 2, 3, 4, 5, 6]
    assert line["n"] == [3, 3, 3, 3, 2, 1], "runs that have got so far"
    at_two = [made_runs.shifted(2, seed, 0.7, 1e-3)["reverse_kl/exact"] for seed in range(3)]
    mean, deviation = statistics.mean(at_two), statistics.stdev(at_two)
    error = deviation / math.sqrt(3)
    for band, low, high in (
        ("se", mean - error, mean + error),
        ("sd", mean - deviation, mean + deviation),
        ("ci", mean - 4.302653 * error, mean + 4.302653 * error),
        ("range", min(at_two), max(at_two)),
    ):
        line = _in_page(page, script.replace(": band", f': "{band}"'))
        assert [line["mean"][1], line["low"][1], line["high"][1]] == pytest.approx([mean, low, high]), band
        assert (line["low"][5], line["high"][5]) == (None, None), "one run has no spread"
    assert _in_page(page, "return groups.combine(store.runs, 'train', 'none')") is None


def test_a_group_has_the_value_of_a_step_that_most_of_its_runs_have(page: Page, runs: Path, served: Served) -> None:
    """In the table as in the curves: here step 3, as only one of the three was evaluated at 6."""
    page.open(served(runs) + "#runs")
    script = """
      const [group] = groups.groupsOf(store.runs, ['rollout.temperature']);
      return ['accuracy', 'gain', 'speed'].map((id) => runrows.cellOf(columns.columnOf(id), group.runs));
    """
    accuracy, gain, speed = _in_page(page, script)
    found = [
        {
            line["step"]: line["accuracy"]
            for line in map(json.loads, (runs / f"t0.7-s{seed}" / "metrics.jsonl").read_text().splitlines())
            if line["kind"] == "eval"
        }
        for seed in range(3)
    ]
    assert accuracy["value"] == pytest.approx(statistics.mean(one[3] for one in found))
    assert gain["value"] == pytest.approx(statistics.mean(one[3] - one[0] for one in found))
    assert accuracy["note"].endswith("at 3, all 3")
    assert speed["note"].endswith("at 4 to 6"), "the last steps of its runs, which differ"
    for axis in ("steps", "tokens"):
        page.open(served(runs) + f"#curves?group=rollout.temperature&x={axis}")
        said = "document.querySelector('[data-chart=Accuracy] .plot').getAttribute('aria-label')"
        page.until(f"{said}.includes('temperature 0.7')")
        label = page.run(f"return {said}")
        if axis == "steps":
            assert f"held-out {100 * accuracy['value']:.1f}%" in label
            assert "at step 3: temperature 0.7" in label
            assert "n = 3;" in label
        drawn = "document.querySelector('[data-chart=Accuracy] canvas')"
        assert page.until(drawn)
    tokens = """
      const run = (...amounts) => ({train: {step: amounts.map((_, i) => i + 1), values: {'tokens/sampled': amounts}}});
      return axes.placesOfSeveral([run(10, 10, 10), run(30)], [0, 1, 2, 3], 'tokens');
    """
    assert _in_page(page, tokens) == [0, 20, 30, 40], "an axis that never goes back"


def test_a_group_is_chosen_whole_and_called_by_what_tells_it(page: Page, tmp_path: Path, served: Served) -> None:
    for seed in range(9):
        made_runs.write_run(tmp_path / f"s{seed}", seed, 0.7, steps=2, every=2, rollouts=False)
    made_runs.write_run(tmp_path / "hot", 0, 1.3, steps=2, every=2, rollouts=False, started=1.0)
    page.open(served(tmp_path) + "#curves")
    page.until("document.querySelectorAll('.legendbar button').length === 7")
    groups = "groups.shownGroups().map((group) => [group.label, group.runs.length, group.total])"
    _in_page(page, "return groups.groupBy(['all-but-seed'])")
    assert _in_page(page, f"return {groups}") == [["temperature 1.3", 1, 1], ["temperature 0.7", 9, 9]]
    _in_page(page, "return store.choose(['s0', 's1'])")
    assert page.texts(".legendbar small") == ["2 of 9 runs"], "fewer than there are is said"
    labels = """
      const recipeOf = (end, seed) => ({task: {path: `/data/${'long/'.repeat(9)}${end}`}, seed});
      const runs = ['x', 'y'].map((end, i) => ({info: {recipe: recipeOf(end, i)}}));
      return groups.groupsOf(runs, ['task.path', 'seed'], runs).map((group) => group.label);
    """
    assert _in_page(page, labels)[1] == "seed 1, path …g/long/long/long/long/y"


def test_numbers_at_different_temperatures_have_no_mean_and_no_best(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs) + "#runs?columns=kl,accuracy,train:entropy/student")
    cells = """
      [...document.querySelectorAll('.run-table tbody tr')].map((tr) => [1, 3].map((at) => tr.children[at].innerText))
    """.strip()
    page.until(f"{cells}.length === 6")
    assert all("T 0.7" in text or "T 1" in text for row in page.run(f"return {cells}") for text in row)
    assert page.run("return [...document.querySelectorAll('td.best')].map((td) => td.cellIndex)") == [2]
    _in_page(page, "return groups.groupBy(['learner.lr'])")
    page.until(f"{cells}.length === 1")
    assert page.run(f"return {cells}") == [["\u2013 T 0.7 and 1", "\u2013 T 0.7 and 1"]]
    _in_page(page, "return groups.groupBy(['rollout.temperature'])")
    page.until(f"{cells}.length === 2")
    assert all("\u00b1" in kl and "T " in kl for kl, _ in page.run(f"return {cells}"))
    assert page.run("return document.querySelectorAll('td.best').length") == 1
    script = """
      const t = (recipe, from, key) => temperature.temperatureOf({info: {recipe}}, from, key);
      const recipe = {rollout: {temperature: 0.7}, eval: {temperature: 1, sets: {hard: {temperature: 0.5}}}};
      return [
        t({}, 'train', 'reverse_kl/exact'), t({seed: 1}, 'train', 'reverse_kl/exact'),
        t({rollout: {temperature: 'nan'}}, 'train', 'reverse_kl/exact'), t(recipe, 'train', 'reverse_kl/exact'),
        t(recipe, 'eval', 'reverse_kl/exact'), t(recipe, 'eval', 'hard/reverse_kl/exact'),
        temperature.nameOfT([1, null, 0.7, 1]), temperature.areMixed([null, null]), temperature.areMixed([1, 1]),
      ];
    """
    assert _in_page(page, script) == [None, 1, None, 0.7, 1, 0.5, "T 0.7, 1 and unknown", True, False]


def test_axes_and_marks_of_what_is_flat_far_out_or_at_the_same_place(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    script = """
      const line = (...column) => ({label: 'a', x: column.map((_, i) => i), columns: [column]});
      const hundred = Array.from({length: 100}, (_, i) => i % 7);
      const shown = (column) => series.extent([line(...column)], [0, 200], {clip: true});
      const far = hundred.with(50, 9000), spread = axes.roomFor([0.5, 0.5 + 1e-16]);
      const points = [0, 1, 2].map(() => ({...line(1, 2), points: true, x: [0, 10]}));
      const train = {step: far.map((_, i) => i + 1), values: {grad_norm: far.map((v) => v + 1)}};
      const run = {id: 'a', alarms: [], info: {recipe: {}}, train};
      const spec = chartlist.DIAGNOSTICS.find((one) => one.title === 'Gradient norm');
      return {
        far: shown(far), newest: shown(hundred.with(99, 9000)), spread: spread[1] - spread[0],
        ticks: axes.tickTexts(format.significant, [9.75e-5, 1e-4, 1.025e-4], 2.5e-6),
        beside: [...marks.dodged(points, 100).values()], close: [...marks.dodged(points, 0.3).values()],
        alone: [...marks.dodged([...points.slice(0, 2), {...points[2], x: [4, 10]}], 100).values()],
        health: chartlist.healthOf(run, spec),
      };
    """
    found = _in_page(page, script)
    assert found["far"] == [0, 6]
    assert found["newest"] == [0, 9000], "the start of a divergence is seen"
    assert found["spread"] > 0.004, "rounding is no curve"
    assert found["ticks"] == ["0.975e\u22124", "1e\u22124", "1.025e\u22124"]
    assert found["beside"] == [[-6, -6], [0, 0], [6, 6]]
    assert [shifts[0] for shifts in found["close"]] == pytest.approx([-0.8, 0, 0.8]), "never across the next ones"
    assert found["alone"] == [[-3, -6], [3, 0], [0, 6]], "around the step, and at it where no other is"
    assert found["health"]["ok"]
    assert found["health"]["far"] == ["9,001 at step 51 (healthy: up to 40)"]


def test_what_differs_as_toml(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    assert _in_page(page, "return flat.differing(store.runs)") == ["name", "seed", "rollout.temperature"]
    script = """
      const sets = {'x.y': {path: 'p'}};
      const recipe = {name: 'a "b"', betas: [0.9, 1], eval: {sets}, trackers: [{kind: 'wandb', on: true}]};
      const written = {name: '"a \\\\"b\\\\""', betas: '[0.9, 1.0]', eval: {sets: {'x.y': {path: '"p"'}}},
        trackers: '[{ kind = "wandb", on = true }]'};
      const run = {info: {recipe, written}};
      return [flat.keysOf([run]), flat.tomlOf(run, flat.keysOf([run]))];
    """
    keys, toml = _in_page(page, script)
    assert keys == ["name", "betas", "trackers", 'eval.sets."x.y".path']
    recipe = {"name": 'a "b"', "betas": [0.9, 1], "trackers": [{"kind": "wandb", "on": True}]}
    assert tomllib.loads(toml) == {**recipe, "eval": {"sets": {"x.y": {"path": "p"}}}}
