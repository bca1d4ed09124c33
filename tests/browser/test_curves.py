"""Curves and sums in a browser over a real run: what is drawn and said against the files."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests import finished_run
from tests.view import made

from .looking import Served, colours_of, lines_of
from .page import PATIENCE, Page

MINUS = "\u2212"
CARD = "[...document.querySelectorAll('.chart')].find((c) => c.querySelector('h3').firstChild.data === arguments[0])"


def test_curves_are_drawn_and_say_the_numbers_of_the_file(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#curves?healthy=1")
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    for title in ("Reverse KL", "Accuracy", "Entropy", "Time by phase", "Importance ratio"):
        assert colours_of(page, title) > 3, title
    said = "document.querySelector('.chart .plot').getAttribute('aria-label')"
    page.run("document.querySelector('.chart .plot').focus()")
    last = lines_of(run, "train")[-1]
    assert f"exact {last['reverse_kl/exact']:.4f}" in page.run(f"return {said}")
    held_out = lines_of(run, "eval")[-1]
    assert f"held-out {held_out['reverse_kl/exact']:.4f}" in page.run(f"return {said}")
    # The keyboard walks along the steps: Home is the evaluation before the first step, then step 1.
    press = "document.querySelector('.chart .plot').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    page.run(press, "Home")
    page.run(press, "ArrowRight")
    page.until(f"{said}.includes('at step 1:')")
    first = lines_of(run, "train")[0]
    assert f"exact {first['reverse_kl/exact']:.4f} ± {first['reverse_kl/exact/se']:.4f}" in page.run(f"return {said}")


def test_smoothing_log_scale_and_theme_redraw_and_nothing_breaks(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    page.run("const s = document.querySelector('#smoothing'); s.value = 0.6; s.dispatchEvent(new Event('input'))")
    page.press(".toolbar .check input")
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.press("#theme")
    page.press("#theme")
    assert page.run("return document.documentElement.dataset.theme") == "dark"
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    assert colours_of(page, "Reverse KL") > 3


def test_time_by_phase_is_that_of_the_step_under_the_cursor(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    press = """
      const plot = [...document.querySelectorAll('.chart .plot')]
        .find((p) => p.getAttribute('aria-label')?.startsWith('Time by phase'));
      plot.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}));
      return plot.getAttribute('aria-label');
    """
    page.run(press, "Home")
    page.run(press, "ArrowRight")
    said = page.run(press, "ArrowRight")  # step 3, of which nothing was recorded
    line = lines_of(run, "train")[2]
    assert "seconds/record" not in line
    assert "at step 3:" in said
    assert "record 0," in said
    assert f"sample {line['seconds/sample']:.3f}" in said or line["seconds/sample"] < 0.01


def test_runs_are_overlaid_and_one_that_goes_away_hides_no_other(page: Page, copied: Path, served: Served) -> None:
    made.write_metrics(copied.parent / "other", 6, every=3)
    page.open(served(copied.parent) + "#curves")
    said = "document.querySelector('.chart .plot').getAttribute('aria-label')"
    page.until(f"{said}.includes('other: exact') && {said}.includes('; tiny: exact')")
    assert "sampled" not in page.run(f"return {said}"), "what is faint is left out where runs are overlaid"
    page.press(".legendbar button", "other")
    page.until(f"!{said}.includes('other') && {said}.includes('sampled')")
    page.run("document.querySelector('.legendbar a').click()")
    page.until("document.querySelector('.run-table [data-run=other] input')")
    page.run("document.querySelector('.run-table [data-run=other] input').click()")
    page.press("#tab-curves")
    page.until(f"{said}.includes('other: exact')")
    shutil.rmtree(copied.parent / "other")
    page.until(f"!{said}.includes('other') && {said}.includes('exact')")
    page.errors()  # that the server answered 404


def test_a_run_that_goes_on_is_followed(page: Page, copied: Path, served: Served) -> None:
    page.open(served(copied))
    page.until("document.querySelector('.runs tbody').textContent.includes('6 / 6')")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made.metrics_line(7, alarms=[{"name": "length", "message": "too long"}])) + "\n")
    page.until("document.querySelector('.runs tbody').textContent.includes('7 / 6')")
    assert "too long" in page.texts(".alarms")[0]


PAINTED = """(() => {  // from left to right, which columns of a chart's last quarter have the ink of its first line
  const card = document.querySelector(`[data-chart="${arguments[0]}"]`), u = card.querySelector('canvas');
  card.scrollIntoView({block: 'center'});
  const {data} = u.getContext('2d').getImageData(0, 0, u.width, u.height), ink = [31, 111, 178];
  const inked = (x, y) => ink.every((value, c) => Math.abs(data[4 * (y * u.width + x) + c] - value) < 40);
  const start = Math.floor(0.75 * u.width);
  return Array.from({length: u.width - start}, (_, x) => [...Array(u.height).keys()].some((y) => inked(start + x, y)));
})()"""


@pytest.mark.parametrize(
    ("place", "chart"),
    [
        ("curves?smooth=0.5&runs=s0", "Entropy"),
        ("curves?x=tokens&group=all-but-seed", "Entropy"),
        ("system?run=s0", "system Processors"),
    ],
)
def test_what_comes_after_values_that_are_not_finite_is_drawn(
    page: Page, tmp_path: Path, served: Served, place: str, chart: str
) -> None:
    def write(first: int, last: int) -> None:
        for seed in range(2):
            folder = tmp_path / f"s{seed}"
            folder.mkdir(exist_ok=True)
            (folder / "recipe.toml").write_text(f'name = "s{seed}"\nseed = {seed}\nsteps = 100\n')
            with (folder / "metrics.jsonl").open("a") as file:
                for step in range(first, last + 1):
                    keys = ("entropy/student", "system/cpu")
                    bad = {key: float("nan") if 20 < step < 30 else 0.7 for key in keys}
                    file.write(json.dumps(made.metrics_line(step, **bad)) + "\n")

    write(1, 29)
    page.open(served(tmp_path) + f"#{place}")
    page.until(f"{PAINTED} && !{PAINTED}.some(Boolean)", chart)
    write(30, 30)
    page.until(f"{PAINTED}.some(Boolean)", chart)
    assert sum(page.run(f"return {PAINTED}", chart)) < 15, "a dot: nothing leads to it"
    write(31, 60)
    page.until(f"{PAINTED}.filter(Boolean).length > 0.85 * {PAINTED}.length", chart)


def test_an_evaluation_that_is_read_again_is_one_alarm(page: Page, copied: Path, served: Served) -> None:
    page.open(served(copied))
    asked = "const done = arguments[0]; import('/assets/store.js').then(({store}) => done(%s))"
    ask = "store.runs[0].alarms.filter((one) => one.name === 'not_finite').map((one) => one.step)"
    line = json.dumps(made.eval_line(6, accuracy=float("nan"))) + "\n"
    for _ in range(2):
        with (copied / "metrics.jsonl").open("a") as file:
            file.write(line)
        size = (copied / "metrics.jsonl").stat().st_size
        end = time.monotonic() + PATIENCE
        while page.driver.execute_async_script(asked % "store.runs[0].offset") < size and time.monotonic() < end:
            time.sleep(0.1)
        assert page.driver.execute_async_script(asked % ask) == [6]


def _describes(page: Page, title: str, step: int) -> str:
    """What the head of a chart says with the cursor at a step."""
    script = f"""
      const card = {CARD}, plot = card.querySelector('.plot');
      const press = (key) => plot.dispatchEvent(new KeyboardEvent('keydown', {{key}}));
      press('Home');
      for (let i = 0; i < arguments[1]; i += 1) press('ArrowRight');
      return card.querySelector('.values').textContent;
    """
    text: str = page.run(script, title, step)
    return text


def test_between_two_evaluations_the_step_of_the_value_is_named(page: Page, tmp_path: Path, served: Served) -> None:
    made.write_metrics(tmp_path / "run", 40, every=20)  # evaluations at 0, 20 and 40
    page.open(served(tmp_path / "run"))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    at_20 = made.eval_line(20)["reverse_kl/exact"]
    for step, place in ((12, " at step 20"), (20, ""), (29, " at step 20")):
        text = _describes(page, "Reverse KL", step)
        train = made.metrics_line(step)["reverse_kl/exact"]
        assert text.startswith(f"exact {train:.4f} ± 0.0100held-out {at_20:.4f} ± 0.0100{place}sampled"), text
    assert "held-out 32.0% [27.0%, 37.0%] at step 20" in _describes(page, "Accuracy", 12)


def test_evaluations_are_points_with_error_bars_and_no_line(page: Page, tmp_path: Path, served: Served) -> None:
    """The colour of the held-out values is where an evaluation is, and not in the columns of pixels between two."""
    made.write_metrics(tmp_path / "run", 40, every=20)
    page.open(served(tmp_path / "run"))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    script = f"""
      const card = {CARD}, canvas = card.querySelector('canvas'), over = card.querySelector('.u-over');
      const ink = getComputedStyle(document.documentElement).getPropertyValue('--c3').trim();
      const rgb = [1, 3, 5].map((i) => parseInt(ink.slice(i, i + 2), 16));
      const [left, width] = [over.offsetLeft, over.clientWidth].map((pixels) => pixels * devicePixelRatio);
      const count = (share) => {{
        const at = Math.round(left + share * width) - 3;
        const {{ data }} = canvas.getContext('2d').getImageData(at, 0, 7, canvas.height);
        const coloured = (i) => data[i + 3] > 100 && rgb.every((value, k) => Math.abs(data[i + k] - value) < 40);
        let seen = 0;
        for (let i = 0; i < data.length; i += 4) if (coloured(i)) seen += 1;
        return seen;
      }};
      return [count(0.5), count(0.25), count(0.75)];
    """
    at, between, later = page.run(script, "Accuracy")
    assert at > 30, "a point and its bar"
    assert between == later == 0


def test_rewards_that_are_no_shares_are_called_rewards(page: Page, copied: Path, served: Served) -> None:
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "eval":
            line |= {"accuracy": -0.5, "accuracy/low": -0.9, "accuracy/high": -0.1}
            line |= {"accuracy/min": -1.0, "accuracy/max": 0.0}
        elif "reward" in line:
            line["reward"] = -0.25
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished_run.rewrite(
        copied / "rollouts" / "step-000001.parquet", lambda rows: [{**row, "reward": -0.5} for row in rows]
    )
    page.open(served(copied))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    titles = page.run("return [...document.querySelectorAll('.chart h3')].map((h) => h.firstChild.data)")
    assert "Reward" in titles
    assert "Accuracy" not in titles
    assert "held-out -0.5000 [-0.9000, -0.1000]" in _describes(page, "Reward", 0).replace(MINUS, "-")
    assert "Reward, held-out" in page.texts(".runs thead")[0]
    page.press("#tab-samples")
    page.until("document.querySelectorAll('.row').length > 3")
    assert f"{MINUS}0.50 wrong" in page.texts(".row .grade")


def test_numbers_are_rounded_for_people_as_in_python(page: Page, run: Path, served: Served) -> None:
    from limbeck.formatting import number

    page.open(served(run))
    values = [0.0011, -0.00019, -0.00001, 6.9e-18, -3e-9, 6e-06, 12.3456, 123.456, -1234.56, 0.12345678]
    script = (
        "const [values, done] = arguments; import('/assets/format.js').then((f) => done(values.map((v) => f.num(v))))"
    )
    shown = page.driver.execute_async_script(script, values)
    assert shown == [number(value).replace("-", MINUS) for value in values]
