"""The page in a browser over a real run: what it draws and says against the files it read."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from limbeck.view.report import write_report
from tests import finished_run
from tests.view import made

from .page import Page

Served = Callable[[Path], str]


def _rows(run: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"{path.name}:{number}", **row}
        for path in sorted((run / "rollouts").glob("*.parquet"))
        for number, row in enumerate(pq.read_table(path).to_pylist())
    ]


def _lines(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def _painted(page: Page, title: str) -> int:
    """How many different colours the canvas of a chart has."""
    script = """
      const title = (chart) => chart.querySelector('h3').firstChild.data;
      const card = [...document.querySelectorAll('.chart')].find(c => title(c) === arguments[0]);
      card.scrollIntoView();
      const canvas = card.querySelector('canvas');
      if (!canvas) return 0;
      const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const seen = new Set();
      for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(`${data[i]} ${data[i + 1]} ${data[i + 2]}`);
      return seen.size;
    """
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if colours := page.run(script, title):
            return int(colours)
        time.sleep(0.1)
    return 0


def _show(page: Page, id_: str) -> dict[str, Any]:
    """Choose a rollout in the list, which is scrolled to it."""
    page.run("location.hash = ''")
    page.run("history.replaceState(null, '', `#tokens/tiny/${encodeURIComponent(arguments[0])}`)", id_)
    page.driver.refresh()
    page.until("document.documentElement.dataset.ready === 'yes'")
    page.until("document.querySelector('.detail .t')")
    return {}


def _hover(page: Page, index: int) -> None:
    page.run(
        'document.querySelector(`.flow [data-i="${arguments[0]}"]`)'
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))",
        index,
    )
    page.until("!document.querySelector('#inspector').hidden")


def test_curves_are_drawn_and_say_the_numbers_of_the_file(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    for title in ("Reverse KL", "Accuracy", "Entropy", "Time by phase", "Importance ratio"):
        assert _painted(page, title) > 3, title
    said = "document.querySelector('.chart .plot').getAttribute('aria-label')"
    page.run("document.querySelector('.chart .plot').focus()")
    last = _lines(run, "train")[-1]
    assert f"exact {last['reverse_kl/exact']:.4f}" in page.run(f"return {said}")
    held_out = _lines(run, "eval")[-1]
    assert f"held-out {held_out['reverse_kl/exact']:.4f}" in page.run(f"return {said}")
    # The keyboard walks along the steps: Home is the evaluation before the first step, then step 1.
    press = "document.querySelector('.chart .plot').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    page.run(press, "Home")
    page.run(press, "ArrowRight")
    page.until(f"{said}.includes('at step 1:')")
    first = _lines(run, "train")[0]
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
    assert _painted(page, "Reverse KL") > 3


def test_hovering_a_token_shows_the_numbers_of_the_parquet(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    for row in (_rows(run)[0], _rows(run)[-1]):
        _show(page, row["id"])
        assert page.texts(".flow .t") == [t.replace("\n", "↵\n") for t in row["tokens"]]
        for index in (0, len(row["tokens"]) // 2, len(row["tokens"]) - 1):
            _hover(page, index)
            for side in ("student", "teacher"):
                shown = page.run(
                    f"return [...document.querySelectorAll('.top.{side} .p')].map(e => Number(e.dataset.p))"
                )
                expected = [math.exp(x) for x in row[f"{side}_top_logprobs"][index]]
                assert shown == pytest.approx(expected, rel=1e-5)
                tokens = page.texts(f".top.{side} .token")
                assert tokens == [t.replace(" ", "␣") for t in row[f"{side}_top_tokens"][index]]
            figures = dict(zip(page.texts("#inspector dt"), page.texts("#inspector dd"), strict=True))
            p = 100 * math.exp(row["student_logprob"][index])
            if 0.1 <= p < 99.95:
                assert figures["student p"].startswith(f"{p:.2f}%")
            if 1e-4 < abs(row["reverse_kl"][index]) < 10:
                assert figures["exact KL"].startswith(f"{row['reverse_kl'][index]:.4f}")


def test_colours_follow_the_chosen_measure(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    row = max((r for r in _rows(run) if r["source"] == "train"), key=lambda r: r["kl_max"])
    _show(page, row["id"])
    page.press(".measures button", "Exact KL")
    strengths = page.run(
        "return [...document.querySelectorAll('.flow .t')].map(e => Number(e.style.getPropertyValue('--s')))"
    )
    order = sorted(range(len(strengths)), key=lambda i: row["reverse_kl"][i])
    assert strengths[order[-1]] == max(strengths)
    assert strengths[order[0]] == min(strengths)
    page.press(".measures button", "Loss mask")
    assert page.run("return document.querySelectorAll('.flow .t.warm').length") == sum(row["trained"])


def test_the_same_prompt_across_steps(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    rows = [row for row in _rows(run) if row["source"] == "watch"]
    same = [row for row in rows if row["prompt_id"] == rows[0]["prompt_id"]]
    _show(page, same[0]["id"])
    page.press(".strip button", "Compare steps")
    page.until("document.querySelectorAll('.version').length === arguments[0]", len(same))
    assert [text.split("KL")[0] for text in page.texts(".version h3")] == [f"step {row['step']}" for row in same]
    page.press(".strip button", "Compare steps")


def test_filters_search_and_sorting(page: Page, copied: Path, served: Served) -> None:
    def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0] |= {"finish": "length", "teacher": "other", "task": "chat", "reward": None}
        return rows

    finished_run.rewrite(copied / "rollouts" / "step-000004.parquet", cut)
    rows = _rows(copied)
    page.open(served(copied) + "#tokens")

    def count() -> int:
        time.sleep(0.1)
        return int(page.texts(".count")[0].split()[0])

    def select(label: str, value: str) -> None:
        page.run(
            "const field = [...document.querySelectorAll('.filters .field')]"
            ".find(f => f.firstChild.textContent === arguments[0]);"
            "const s = field.querySelector('select'); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
            label,
            value,
        )

    page.until("document.querySelectorAll('.row').length > 0")
    assert count() == len(rows)
    page.press(".segments button", "Watched")
    assert count() == sum(row["source"] == "watch" for row in rows)
    page.press(".segments button", "All")
    page.press(".filters .check input")
    assert count() == sum(row["finish"] == "length" for row in rows) >= 1
    page.press(".filters .check input")
    for value, holds in (("wrong", lambda r: r == 0.0), ("right", lambda r: r == 1.0), ("none", lambda r: r is None)):
        select("Answers", value)
        assert count() == sum(holds(row["reward"]) for row in rows), value
    select("Answers", "any")
    select("Teacher", "other")
    assert count() == 1
    select("Teacher", "")
    select("Task", "chat")
    assert count() == 1
    select("Task", "")
    page.run(
        "const s = document.querySelector('#search'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        rows[3]["prompt_text"],
    )
    page.until("/ of /.test(document.querySelector('.count').textContent)")
    assert count() == sum(rows[3]["prompt_text"] in row["prompt_text"] for row in rows)
    page.run("const s = document.querySelector('#search'); s.value = ''; s.dispatchEvent(new Event('input'))")
    page.until("!/ of /.test(document.querySelector('.count').textContent)")
    select("Sort", "kl")
    shown = [float(text) for text in page.texts(".row .kl")]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(max(row["reverse_kl_mean"] for row in rows), abs=1e-3)


def test_the_page_of_disagreement(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#disagreement")
    page.until("document.querySelectorAll('.places .place').length > 3")
    rows = [row for row in _rows(run) if row["source"] == "train"]
    ends = sum(sum(row["special"]) for row in rows)
    assert str(ends) in page.texts(".figures tbody tr")[0]
    worst = max(max(row["reverse_kl"]) for row in rows)
    assert page.texts(".place b")[0] == f"{worst:.2f}"
    page.press(".places .place")
    page.until("document.querySelector('.flow .t.at')")
    assert page.run("return !document.querySelector('#panel-tokens').hidden")


def test_hostile_text_is_shown_and_does_nothing(page: Page, copied: Path, served: Served) -> None:
    finished_run.make_hostile(copied)
    address = served(copied)
    report = copied.parent / "report.html"
    write_report(copied, report, 50)
    for place in (address, report.as_uri()):
        for tab in ("curves", "tokens", "disagreement", "recipe"):
            page.open(f"{place}#{tab}")
            if tab == "tokens":
                page.until("document.querySelectorAll('.flow .t').length > 3")
                _hover(page, 1)
            if tab == "disagreement":
                page.until("document.querySelectorAll('.place').length > 0")
        page.open(f"{place}#tokens")
        page.until("document.querySelectorAll('.flow .t').length > 3")
        text = page.texts(".flow .t")[0]
        assert "<script>document.title" in text
        assert "␛[31m" in text
        assert "⟨U+202E⟩" in text
        assert "⟨U+200B⟩" in text
        assert page.run("return document.title") != "owned"
        assert page.run("return document.querySelectorAll('main img, main script').length") == 0
    assert (
        page.run("return /[\\u202a-\\u202e\\u2066-\\u2069\\u001b]/.test(document.querySelector('main').innerText)")
        is False
    )


def test_the_report_opens_with_the_network_off(page: Page, run: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    write_report(run, report, 50)
    page.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.open(report.as_uri())
        page.until("document.querySelectorAll('.chart canvas').length >= 5")
        assert _painted(page, "Reverse KL") > 3
        page.press("#tab-tokens")
        page.until("document.querySelectorAll('.flow .t').length > 3")
        assert page.run("return performance.getEntriesByType('resource').length") == 0
    finally:
        page.driver.delete_network_conditions()


def test_broken_files_are_said_and_the_rest_is_shown(page: Page, copied: Path, served: Served) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "tr')
    (copied / "rollouts" / "step-000002.parquet").write_bytes(b"PAR1 broken")
    (copied / "recipe.toml").unlink()
    page.open(served(copied) + "#tokens")
    page.until("document.querySelectorAll('.flow .t').length > 3")
    notices = " ".join(page.texts(".problem"))
    for part in ("half-written line", "step-000002.parquet is left out", "recipe.toml is missing"):
        assert part in notices
    page.driver.get("about:blank")
    shutil.rmtree(copied / "rollouts")
    (copied / "metrics.jsonl").unlink()
    page.open(served(copied.parent))
    page.until("document.querySelectorAll('.problem').length === 0 || document.querySelector('.problem')")
    assert "no run in" in " ".join(page.texts(".problem"))


def test_a_run_that_goes_on_is_followed(page: Page, copied: Path, served: Served) -> None:
    page.open(served(copied))
    page.until("document.querySelector('.runs tbody').textContent.includes('6 / 6')")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made.metrics_line(7, alarms=[{"name": "length", "message": "too long"}])) + "\n")
    page.until("document.querySelector('.runs tbody').textContent.includes('7 / 6')")
    assert "too long" in page.texts(".alarms")[0]


def test_ten_thousand_steps_and_five_thousand_rollouts_open(page: Page, tmp_path: Path, served: Served) -> None:
    """How fast is measured by benchmarks/view.py."""
    made.write_metrics(tmp_path / "big", 10_000)
    made.write_rollout_files(tmp_path / "big", range(16, 10_001, 16), each=8)
    page.open(served(tmp_path / "big"))
    page.until("document.querySelectorAll('.chart canvas').length >= 4")
    page.press("#tab-tokens")
    page.until("document.querySelectorAll('.flow .t').length > 5 && document.querySelectorAll('.row').length > 5")
    assert page.texts(".count")[0] == "5,000 rollouts"


def test_a_response_of_8000_tokens_scrolls(page: Page, tmp_path: Path, served: Served) -> None:
    """How smoothly is measured by benchmarks/view.py."""
    made.write_metrics(tmp_path / "long", 3)
    made.write_rollout_files(tmp_path / "long", range(1, 2), each=2, length=8000)
    page.open(served(tmp_path / "long") + "#tokens")
    page.until("document.querySelectorAll('.flow .t').length === 8000")
    page.run("document.querySelector('.flow [data-i=\"7999\"]').scrollIntoView()")
    _hover(page, 7999)
    assert page.run("return scrollY") > 1000


def test_the_keyboard_reaches_everything(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    page.run("document.querySelector('#tab-curves').focus()")
    page.run(key, "ArrowRight")
    assert page.run("return document.activeElement.id") == "tab-tokens"
    page.until("document.querySelectorAll('.flow .t').length > 3")
    before = page.run("return document.querySelector('.row.on').dataset.id")
    page.run("document.querySelector('.list').focus()")
    page.run(key, "ArrowDown")
    page.until("document.querySelector('.row.on').dataset.id !== arguments[0]", before)
    page.until("document.querySelectorAll('.flow .t').length > 3")
    page.run("document.querySelector('.flow').focus()")
    page.run(key, "ArrowRight")
    page.until(
        "document.querySelector('.flow .t.at').dataset.i === '0' && !document.querySelector('#inspector').hidden"
    )
    page.run(key, "Escape")
    assert page.run("return document.querySelector('#inspector').hidden")
    unnamed = page.run("""
      return [...document.querySelectorAll('button, input, select, [role=img], [role=listbox]')]
        .filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.title)).map(e => e.outerHTML)
    """)
    assert unnamed == []
