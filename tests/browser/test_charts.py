"""How curves are drawn and looked at: outliers, axes, temperatures, groups, diagnostics, help, files of a chart."""

from __future__ import annotations

import csv
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from limbeck.config import recipe
from tests.view import made

from .looking import Served, lines_of
from .page import PATIENCE, Page

DRAWN = "document.querySelectorAll('.chart canvas').length >= 5"
SVG = "{http://www.w3.org/2000/svg}"


def _write(folder: Path, lines: list[dict[str, Any]], temperature: float = 0.7, seed: int = 0, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    recipe = (
        f'name = "{folder.name}"\nseed = {seed}\nsteps = {len(lines)}\n[rollout]\ntemperature = {temperature}\n{more}'
    )
    (folder / "recipe.toml").write_text(recipe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _steady(steps: int, **more: Any) -> list[dict[str, Any]]:
    """Steps whose numbers move a little, and one evaluation before and after them."""
    train = [made.metrics_line(step, grad_norm=1 + 0.01 * (step % 7), **more) for step in range(1, steps + 1)]
    return [made.eval_line(0), *train, made.eval_line(steps)]


def _chart(page: Page, name: str, script: str, *arguments: Any) -> Any:
    """Run a script with `card`, `plot` and `uplot` of a chart once it is drawn."""
    page.until('document.querySelector(`[data-chart="${arguments[0]}"]`)', name)
    page.run("document.querySelector(`[data-chart=\"${arguments[0]}\"]`).scrollIntoView({block: 'center'})", name)
    page.until('document.querySelector(`[data-chart="${arguments[0]}"] canvas`)', name)
    head = (
        "const card = document.querySelector(`[data-chart=\"${arguments[0]}\"]`), plot = card.querySelector('.plot');"
    )
    return page.run(f"{head} {script}", name, *arguments)


def _said(page: Page, name: str, *keys: str) -> str:
    """What a screen reader gets of a chart after some keys."""
    script = """
      for (const key of arguments[1]) plot.dispatchEvent(new KeyboardEvent('keydown', {key}));
      return plot.getAttribute('aria-label');
    """
    return str(_chart(page, name, script, list(keys)))


def _charts(page: Page) -> list[str]:
    names: list[str] = page.run("return [...document.querySelectorAll('.chart')].map((chart) => chart.dataset.chart)")
    return names


@pytest.fixture
def saved(page: Page, tmp_path: Path) -> Callable[[str, str], Path]:
    """Press CSV or SVG of a chart; the file that comes."""
    folder = tmp_path / "saved"
    folder.mkdir()
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})

    def press(name: str, kind: str) -> Path:
        _chart(
            page, name, "[...card.querySelectorAll('button')].find((b) => b.textContent === arguments[1]).click()", kind
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := list(folder.glob(f"*.{kind.lower()}")):
                return found[0].rename(tmp_path / found[0].name)
            time.sleep(0.05)
        raise AssertionError(f"no {kind} came")

    return press


def test_outliers_are_beyond_the_axis_with_an_arrow_and_keep_their_number(
    page: Page, tmp_path: Path, served: Served
) -> None:
    lines = _steady(120)
    lines[50]["grad_norm"] = 5000.0
    page.open(served(_write(tmp_path / "run", lines)) + "#curves?healthy=1")
    tops = "return [card.querySelector('.beyond').textContent, card.querySelector('.beyond').hidden, card.textContent]"
    beyond, hidden, _ = _chart(page, "Gradient norm", tops)
    assert (beyond, hidden) == ("▲ 1 value is beyond the axis", False)
    at_50 = _said(page, "Gradient norm", "Home", *["ArrowRight"] * 49)
    assert "at step 50: before clipping 5,000" in at_50
    _chart(page, "Gradient norm", "card.querySelector('.beyond').click()")
    page.until("location.hash.includes('outliers=1')")
    page.until("document.querySelector('[data-chart=\"Gradient norm\"] .beyond').hidden")


@pytest.mark.parametrize("group", ["runs=s0", "group=all-but-seed"])
def test_a_line_is_broken_where_it_is_not_finite_and_joined_where_it_is_absent(
    page: Page, tmp_path: Path, served: Served, saved: Callable[[str, str], Path], group: str
) -> None:
    lines = [line for line in _steady(60) if line["kind"] == "train"]
    for line in lines[20:41]:
        line["entropy/teacher"] = float("nan")
        del line["entropy/student"]
    lines[30]["entropy/teacher"] = 0.2
    for seed in range(2):
        _write(tmp_path / f"s{seed}", lines, seed=seed)
    page.open(served(tmp_path) + f"#curves?x=tokens&{group}")
    painted = """
      const u = plot.querySelector('canvas'), {data} = u.getContext('2d').getImageData(0, 0, u.width, u.height);
      const near = (i, ink) => [0, 1, 2].every((c) => Math.abs(data[i + c] - ink[c]) < 40), columns = [[], []];
      for (let x = 60; x < u.width; x += 1) arguments[1].forEach((ink, k) => columns[k].push(
        [...Array(u.height).keys()].some((y) => near(4 * (y * u.width + x), ink))));
      const gaps = (column) => column.map(Number).join('').replace(/^0+|0+$/g, '').split('1');
      const longest = (column) => Math.max(...gaps(column).map((gap) => gap.length));
      return columns.map((column) => longest(column) / u.width);
    """  # the widest part of the chart without a line, between its ends
    student_gap, teacher_gap = _chart(page, "Entropy", painted, [[31, 111, 178], [217, 112, 15]])
    assert student_gap < 0.01
    assert 0.1 < teacher_gap < 0.2, "two gaps with a point between them"
    root = ElementTree.parse(saved("Entropy", "SVG")).getroot()
    parts = [(node.get("d") or "").count("M") for node in root.iter(f"{SVG}path") if node.get("class") == "line"]
    assert parts == [1, 2]
    dots = [node.get("fill") for node in root.iter(f"{SVG}circle") if node.get("class") == "dot"]
    assert dots == ["#d9700f"], "the point between two gaps, of a line that is dashed"
    assert not [node for node in root.iter() if node.get("stroke-linecap")], "it would fill the gaps between dashes"


def test_what_falls_steeply_or_is_evaluated_is_no_outlier(page: Page, tmp_path: Path, served: Served) -> None:
    lines = _steady(120)
    for line in lines:
        if "reverse_kl/exact" in line:
            line["reverse_kl/exact"] = 3 / (1 + line["step"] / 20)
    lines[-1]["reverse_kl/exact"] = 30.0  # an evaluation
    page.open(served(_write(tmp_path / "run", lines)))
    assert _chart(page, "Reverse KL", "return card.querySelector('.beyond').hidden")


def test_exact_comes_before_sampled_in_the_head_of_a_chart(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    labels = _chart(page, "Reverse KL", "return [...card.querySelectorAll('.entry b')].map((b) => b.textContent)")
    assert labels == ["exact", "held-out", "sampled"]
    # The values of the head are those of the file, whatever is smoothed.
    page.run("const s = document.querySelector('#smoothing'); s.value = 0.9; s.dispatchEvent(new Event('input'))")
    last = lines_of(run, "train")[-1]
    assert f"exact {last['reverse_kl/exact']:.4f}" in _said(page, "Reverse KL")


def test_a_run_without_exact_values_is_drawn_beside_one_that_has_them(
    page: Page, tmp_path: Path, served: Served
) -> None:
    sampled = [
        {key: value for key, value in line.items() if not key.startswith("reverse_kl/exact")} for line in _steady(20)
    ]
    _write(tmp_path / "runs" / "a", _steady(20))
    _write(tmp_path / "runs" / "b", sampled, seed=1)
    page.open(served(tmp_path / "runs") + "#curves")
    said = _said(page, "Reverse KL")
    assert "a: exact" in said
    assert "b: sampled" in said


def test_kls_at_different_temperatures_have_charts_of_their_own(
    page: Page, tmp_path: Path, served: Served, saved: Callable[[str, str], Path]
) -> None:
    alarmed = _steady(12, alarms=[{"name": "length", "message": "too long"}])
    for name, temperature in (("cold", 0.7), ("cool", 0.7), ("hot", 1.3), ("spoilt", 1.3)):
        _write(tmp_path / "runs" / name, alarmed if name == "hot" else _steady(12), temperature)
    (tmp_path / "runs" / "spoilt" / "recipe.toml").write_text("[[[")
    page.open(served(tmp_path / "runs") + "#curves")
    page.until(DRAWN)
    assert [name for name in _charts(page) if name.startswith("Reverse KL")] == [
        "Reverse KL at T = 0.7",
        "Reverse KL at T = 1.3",
        "Reverse KL, T unknown",
    ]
    assert "spoilt" in _said(page, "Reverse KL, T unknown")
    assert "not known" in _chart(page, "Reverse KL, T unknown", "return card.querySelector('.notice').textContent")
    assert "hot" not in _said(page, "Reverse KL at T = 0.7")
    assert "▲ alarms of hot" in saved("Reverse KL at T = 1.3", "SVG").read_text()
    assert "alarms" not in saved("Reverse KL at T = 0.7", "SVG").read_text(), "of a run that is not drawn"
    assert "hot, T 1.3: student" in _said(page, "Entropy"), "what depends on the temperature says it"
    page.press(".toolbar .check span", "Overlay temperatures")
    page.until("[...document.querySelectorAll('.chart')].some((chart) => chart.dataset.chart === 'Reverse KL')")
    said = _said(page, "Reverse KL")
    assert "cold, T 0.7: exact" in said
    assert "hot, T 1.3: exact" in said
    assert "T 0.7, 1.3 and unknown" in _chart(page, "Reverse KL", "return card.querySelector('.notice').textContent")


def test_an_evaluation_at_another_temperature_is_apart_too(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_write(tmp_path / "run", _steady(12), 1.0, more="[eval]\ntemperature = 0.5\n")))
    page.until(DRAWN)
    assert "held-out" not in _said(page, "Reverse KL at T = 1")
    assert "exact" not in _said(page, "Reverse KL at T = 0.5")


def test_healthy_diagnostics_are_one_line_and_the_others_open(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_write(tmp_path / "run", _steady(30, truncated=0.7))))
    page.until(DRAWN)
    names = _charts(page)
    assert "Truncated and looping" in names
    assert "Importance ratio" not in names
    assert page.texts(".healthy p")[0].startswith("✓ 4 diagnostics are healthy: ")
    assert page.texts(".findings li")[0] == (
        "▲ Truncated and looping70.0% of responses are cut at max_tokens (healthy: up to 50.0%), in the last steps"
    )
    page.press(".healthy button", "Show")
    page.until("document.querySelector('[data-chart=\"Importance ratio\"]')")
    page.until("location.hash.includes('healthy=1')")


def test_a_diagnostic_that_was_unhealthy_stays_open_and_says_when(page: Page, tmp_path: Path, served: Served) -> None:
    lines = _steady(30)
    lines[3]["alarms"] = lines[4]["alarms"] = [{"name": "mismatch", "message": "too far"}]
    page.open(served(_write(tmp_path / "run", lines)))
    page.until("document.querySelector('.findings li')")
    assert page.texts(".findings li") == ["△ Sampler mismatchalarm at 2 steps, 3 to 4; healthy in the last steps"]
    assert "Sampler mismatch" in _charts(page)


def test_the_x_axis_is_steps_tokens_or_time(page: Page, tmp_path: Path, served: Served) -> None:
    lines = _steady(10, **{"tokens/sampled": 1500.0, "seconds/step": 30.0})
    page.open(served(_write(tmp_path / "run", lines)))
    page.until(DRAWN)
    held_out = made.eval_line(10)["reverse_kl/exact"]
    page.press(".toolbar [data-value=tokens]")
    page.until("location.hash.includes('x=tokens')")
    said = _said(page, "Reverse KL", "Home", *["ArrowRight"] * 4)
    assert "at step 4, 6k tokens: " in said
    assert f"exact {made.metrics_line(4)['reverse_kl/exact']:.4f}" in said
    page.press(".toolbar [data-value=time]")
    said = _said(page, "Reverse KL", "End")
    assert "at step 10, 5 min: " in said
    assert f"held-out {held_out:.4f} ± 0.0100, " in said, "an evaluation stands where its step ended"
    page.press(".toolbar [data-value=steps]")
    page.until("!location.hash.includes('x=')")


def test_the_system_stays_along_steps(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#curves?x=tokens")
    page.until(DRAWN)
    page.press("#tab-system")
    page.until("location.hash.startsWith('#system')")
    name = page.until("document.querySelector('.system .chart')?.dataset.chart")
    assert ", at step 6: " in _said(page, name, "End")


def test_an_axis_that_the_file_does_not_have_says_so(page: Page, tmp_path: Path, served: Served) -> None:
    lines = [{key: value for key, value in line.items() if key != "tokens/sampled"} for line in _steady(5)]
    page.open(served(_write(tmp_path / "run", lines)) + "#curves?x=tokens")
    page.until("document.querySelector('.plot.empty')")
    assert page.texts(".plot.empty")[0] == "Not in metrics.jsonl: tokens/sampled, which this axis needs. Choose Steps."


def test_the_address_opens_what_its_sender_saw(page: Page, tmp_path: Path, served: Served) -> None:
    run = served(_write(tmp_path / "run", _steady(60)))
    page.open(run + "#curves?chart=Entropy&log=1&smooth=0.6&zoom=20-40")
    page.until("document.querySelector('.big canvas')")
    assert page.run("return document.querySelector('.big').dataset.chart") == "Entropy"
    assert page.run("return document.querySelector('#smoothing').value") == "0.6"
    assert page.run("return document.querySelector('.toolbar .check input').checked")
    assert "at step 20: " in _zoomed(page, "left")
    assert "at step 40: " in _zoomed(page, "right")
    page.press(".toolbar button", "Show all")
    page.until("location.hash === '#curves?chart=Entropy&log=1&smooth=0.6'")
    page.run("document.querySelector('.big .plot').dispatchEvent(new KeyboardEvent('keydown', {key: 'Home'}))")
    assert "at step 1: " in page.run("return document.querySelector('.big .plot').getAttribute('aria-label')")
    page.press(".big .tools button", "⤡")
    page.until("!document.querySelector('.big')")


def _zoomed(page: Page, side: str) -> str:
    """What the enlarged chart says with the cursor at one side of its plot."""
    script = f"""
      const over = document.querySelector('.big .u-over'), box = over.getBoundingClientRect();
      const x = '{side}' === 'left' ? box.left + 1 : box.right - 1;
      const at = {{clientX: x, clientY: box.top + 30, bubbles: true, view: window}};
      over.dispatchEvent(new MouseEvent('mousemove', at));
    """
    page.run(script)
    page.until("document.querySelector('.big .at').textContent")
    said: str = page.run("return document.querySelector('.big .plot').getAttribute('aria-label')")
    return said


def test_runs_over_seeds_are_a_line_with_a_band(
    page: Page, tmp_path: Path, served: Served, saved: Callable[[str, str], Path]
) -> None:
    values = (1.0, 2.0, 6.0)
    for seed, norm in enumerate(values):
        lines = _steady(6)
        _write(tmp_path / "runs" / f"s{seed}", [{**line, "entropy/student": norm} for line in lines], seed=seed)
    page.open(served(tmp_path / "runs") + "#curves?group=all-but-seed&band=range")
    page.until(DRAWN)
    assert "student 3 [1, 6] n = 3" in _said(page, "Entropy")
    assert "smallest to largest run" in page.texts(".toolbar .hint")[0]
    _chart(page, "Accuracy", "return 0")
    assert page.texts("[data-chart=Accuracy] h3 small") == ["held-out, mean, smallest to largest run"]
    with saved("Entropy", "CSV").open(newline="") as file:
        row = list(csv.DictReader(file))[1]
    numbers = {key: row[f"entropy/student{key}"] for key in ("", "/runs-min", "/runs-max", "/runs")}
    assert numbers == {"": "3", "/runs-min": "1", "/runs-max": "6", "/runs": "3"}, "the file says which band it is"
    assert float(row["tokens"]) == 2 * made.metrics_line(1)["tokens/sampled"]
    choose = """
      const select = [...document.querySelectorAll('.grouping select')][0];
      select.value = '';
      select.dispatchEvent(new Event('change'));
    """
    page.run(choose)
    page.until("document.querySelectorAll('.legendbar button').length === 3")
    page.until("!location.hash.includes('group')")
    assert "s2: student 6" in _said(page, "Entropy")
    page.press(".legendbar button", "s1")
    page.until("document.querySelectorAll('.legendbar button').length === 2")
    assert "s1" not in _said(page, "Entropy")


def test_every_chart_says_what_it_is_what_is_good_and_what_to_do(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#curves?healthy=1&more=1")
    page.until("document.querySelectorAll('.family .chart').length > 5")
    without = "[...document.querySelectorAll('.chart')].filter((chart) => !chart.querySelector('.tools .ask'))"
    assert page.run(f"return {without}.map((chart) => chart.dataset.chart)") == []
    _chart(page, "Reverse KL", "card.querySelector('.ask').click()")
    heads = page.run("return [...document.querySelectorAll('.help:not([hidden]) dt')].map((e) => e.textContent)")
    assert heads == ["What it is", "What is good", "What to do"]
    _chart(page, "Accuracy", "card.querySelector('.ask').click()")
    assert page.run("return document.querySelectorAll('.help:not([hidden])').length") == 1
    page.run("document.querySelector('.brand').dispatchEvent(new PointerEvent('pointerdown', {bubbles: true}))")
    assert page.run("return document.querySelectorAll('.help:not([hidden])').length") == 0


def test_help_knows_the_documented_metrics_and_names_keys_of_the_recipe(page: Page, run: Path, served: Served) -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "files.md").read_text()
    tables = text.split("Lines of kind `train`:")[1].split("The answers are in")[0]
    rows = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    keys = [
        key for row in rows for key in re.findall(r"`([^`]+)`", row) if key != "alarms" and not key.endswith("NAME/...")
    ]
    page.open(served(run))
    script = """
      const [keys, done] = arguments;
      const unknown = (help) => keys.filter((key) => /does not know it/.test(help.helpOfKey(key)[0]));
      import('/assets/help.js').then((help) => fetch('/assets/help.js').then((answer) => answer.text())
        .then((source) => done([unknown(help), source])));
    """
    unknown, source = page.driver.execute_async_script(script, keys)
    assert len(keys) > 50
    assert unknown == []
    tables_of = "learner|rollout|objective|engine|eval|record|environment|teacher|student|task"
    named = set(re.findall(rf"\b(?:{tables_of})\.[a-z_]+(?:\.[a-z_]+)*", source))
    assert named
    assert named <= set(recipe.dotted_keys()), "help names a key that no recipe has"


def test_csv_has_the_numbers_of_the_file(
    page: Page, run: Path, served: Served, saved: Callable[[str, str], Path]
) -> None:
    page.open(served(run) + "#curves?smooth=0.9&outliers=0")
    with saved("Reverse KL", "CSV").open(newline="") as file:
        rows = list(csv.DictReader(file))
    train = {line["step"]: line for line in lines_of(run, "train")}
    evaluated = {line["step"]: line for line in lines_of(run, "eval")}
    assert [int(row["step"]) for row in rows] == sorted({*train, *evaluated})
    tokens = 0.0
    for row in rows:
        step = int(row["step"])
        tokens += train[step]["tokens/sampled"] if step in train else 0.0
        assert float(row["tokens"]) == tokens
        for name in ("reverse_kl/exact", "reverse_kl/exact/se", "reverse_kl/sampled"):
            assert row[name] == "" if step not in train else float(row[name]) == train[step][name]
            in_eval = evaluated.get(step, {}).get("reverse_kl/exact")
            assert (
                row["eval/reverse_kl/exact"] == ""
                if in_eval is None
                else float(row["eval/reverse_kl/exact"]) == in_eval
            )


def test_svg_is_the_chart_as_lines_points_and_text(
    page: Page, tmp_path: Path, served: Served, saved: Callable[[str, str], Path]
) -> None:
    lines = _steady(120)
    lines[60]["reverse_kl/exact"] = lines[60]["reverse_kl/exact"] + 900.0
    lines[70]["alarms"] = [{"name": "length", "message": "too long"}]
    page.open(served(_write(tmp_path / "a<b&c", lines)))
    page.run("localStorage.setItem('limbeck-theme', 'dark')")
    page.driver.refresh()
    page.until(DRAWN)
    root = ElementTree.parse(saved("Reverse KL", "SVG")).getroot()
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Reverse KL", "exact", "held-out", "sampled", "step", "100"} <= set(texts)
    assert "nats / token, ± 1 standard error" in texts
    paths = list(root.iter(f"{SVG}path"))
    drawn = {
        kind: [node for node in paths if node.get("class") == kind]
        for kind in ("line", "band", "bar", "clipped", "alarm")
    }
    assert {kind: len(nodes) for kind, nodes in drawn.items()} == {
        "line": 2,
        "band": 2,
        "bar": 2,
        "clipped": 1,
        "alarm": 1,
    }
    assert [node.get("stroke") for node in drawn["line"]][-1] == "#1f6fb2", "the colours of the light theme"
    points = [node for node in root.iter(f"{SVG}circle") if node.get("class") == "point"]
    assert len(points) == 2
    assert float(points[0].get("cx", 0)) < float(points[1].get("cx", 0))
    assert float(points[0].get("cy", 0)) < float(points[1].get("cy", 0)), "a KL that fell is further down"
    assert len((drawn["line"][-1].get("d") or "").split("L")) == 120
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    page.run("localStorage.removeItem('limbeck-theme')")


def test_a_chart_is_found_by_its_title_or_key(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    page.until(DRAWN)
    _find(page, "tokens_per")
    page.until("document.querySelectorAll('.chart').length < 6")
    assert "Throughput" in _charts(page)
    assert "tokens_per_second/sample (train)" in _charts(page)
    _find(page, "nothing")
    page.until("document.querySelector('#panel-curves > div > .blank')?.hidden === false")


def _find(page: Page, text: str) -> None:
    script = """
      const find = document.querySelector('#panel-curves [type=search]');
      find.value = arguments[0];
      find.dispatchEvent(new Event('input'));
    """
    page.run(script, text)


def test_tasks_and_evaluation_sets_are_lines_of_one_chart(page: Page, tmp_path: Path, served: Served) -> None:
    lines = _steady(4)
    for line in lines:
        if line["kind"] == "eval":
            line |= {"task/sums/accuracy": 0.5, "task/words/accuracy": 0.25, "hard/accuracy": 0.125}
    page.open(served(_write(tmp_path / "run", lines)))
    page.until(DRAWN)
    assert "sums 50.0% at" not in _said(page, "Accuracy by task")
    assert "sums 50.0%, words 25.0%" in _said(page, "Accuracy by task")
    assert "hard 12.5%" in _said(page, "Accuracy by evaluation set")
    _write(tmp_path / "other", lines, seed=1)
    page.open(served(tmp_path) + "#curves")
    assert "other: sums 50.0%" in _said(page, "Accuracy, task sums"), "of several runs each task has a chart"


def test_a_report_has_the_charts_with_their_help_and_files(
    page: Page, run: Path, tmp_path: Path, saved: Callable[[str, str], Path]
) -> None:
    from limbeck.view.report import write_report

    report = tmp_path / "report.html"
    write_report(run, report, rollouts=10)
    page.open(f"file://{report}#curves?x=tokens")
    page.until(DRAWN)
    assert " tokens: exact" in _said(page, "Reverse KL", "End")
    assert saved("Entropy", "SVG").read_text().startswith("<?xml")
