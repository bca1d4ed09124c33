"""The page in a browser over what is hostile, broken, large or gone, and in windows of all widths."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from limbeck.sanitize import printable
from limbeck.view.report import write_report
from tests import finished_run
from tests.test_sanitize import LONE, SPELT
from tests.view import made

from .looking import Served, colours_of, hover
from .page import Page, serving

EVALUATIONS = "samples?view=evaluations&before=none"
DIRECTIONS = """
  const texts = [...document.querySelectorAll('.answer-row .asked, .answer-row .mono, .opened pre')];
  return [...new Set(texts.map((text) => getComputedStyle(text).unicodeBidi))];
"""
HIDING = r"""[...document.querySelectorAll('body *:not(script)')].flatMap((node) =>
  [...[...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data),
   ...[...node.attributes].map((a) => a.value)])
  .filter((text) => /[\u0000-\u0008\u000b-\u001f\u200b-\u200f\u202a-\u202e\u2066-\u2069]/.test(text))"""


def test_hostile_text_is_shown_and_does_nothing(page: Page, copied: Path, served: Served) -> None:
    finished_run.make_hostile(copied)
    address = served(copied)
    report = copied.parent / "report.html"
    write_report(copied, report, 50)
    for place in (address, report.as_uri()):
        for tab in ("curves", "tokens", EVALUATIONS, "disagreement", "recipe"):
            page.open(f"{place}#{tab}")
            if tab == EVALUATIONS:
                page.press(".answer-row")
                page.until("document.querySelector('.half .call')")
                assert page.run(DIRECTIONS) == ["plaintext"], "alike in the list and opened"
            if tab == "curves":
                page.until("document.querySelector('.alarms')")
            if tab == "tokens":
                page.until("document.querySelectorAll('.flow .t').length > 3")
                hover(page, 1)
            if tab == "disagreement":
                page.until("document.querySelectorAll('.places .place').length > 0")
            assert page.run("return document.title") != "owned"
            assert page.run("return document.querySelectorAll('main img, main script').length") == 0
            assert page.run(f"return {HIDING}") == [], (place, tab)
        page.open(f"{place}#samples")
        page.until("document.querySelectorAll('.flow .t').length > 3")
        text = page.texts(".flow .t")[0]
        assert "<script>document.title" in text
        assert "⟨U+001B⟩[31m" in text
        assert "⟨U+202E⟩" in text
        assert "⟨U+200B⟩" in text


def test_the_report_opens_with_the_network_off(page: Page, run: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    write_report(run, report, 50)
    page.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.open(report.as_uri())
        page.until("document.querySelectorAll('.chart canvas').length >= 5")
        assert colours_of(page, "Reverse KL") > 3
        page.press("#tab-samples")
        page.until("document.querySelectorAll('.flow .t').length > 3")
        assert page.run("return performance.getEntriesByType('resource').length") == 0
    finally:
        page.driver.delete_network_conditions()


def test_broken_files_are_said_and_the_rest_is_shown(page: Page, copied: Path, served: Served) -> None:
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "kind": "tr')
    (copied / "rollouts" / "step-000002.parquet").write_bytes(b"PAR1 broken")
    (copied / "recipe.toml").unlink()
    page.open(served(copied) + "#samples")
    page.until("document.querySelectorAll('.flow .t').length > 3")
    notices = " ".join(page.texts(".problem"))
    for part in ("half-written line", "step-000002.parquet is skipped", "recipe.toml is missing"):
        assert part in notices
    page.driver.get("about:blank")
    shutil.rmtree(copied / "rollouts")
    (copied / "metrics.jsonl").unlink()
    page.open(served(copied.parent))
    page.until("document.querySelectorAll('.problem').length === 0 || document.querySelector('.problem')")
    assert "no run in" in " ".join(page.texts(".problem"))


def test_ten_thousand_steps_and_five_thousand_rollouts_open(page: Page, tmp_path: Path, served: Served) -> None:
    """How fast is measured by benchmarks/view.py."""
    made.write_metrics(tmp_path / "big", 10_000)
    made.write_rollout_files(tmp_path / "big", range(16, 10_001, 16), each=8)
    page.open(served(tmp_path / "big"))
    page.until("document.querySelectorAll('.chart canvas').length >= 4")
    page.press("#tab-samples")
    page.until("document.querySelectorAll('.flow .t').length > 5 && document.querySelectorAll('.row').length > 5")
    assert page.texts(".count")[0] == "5,000 rollouts"


def test_what_python_prints_and_what_the_page_shows_of_hostile_text_is_the_same(
    page: Page, run: Path, served: Served
) -> None:
    page.open(served(run))
    codes = [*range(0xD800), *range(0xE000, 0x3000), *range(0xF900, 0x10000), *range(0xE0000, 0xE0200)]
    text = "".join(chr(code) for code in codes) + " ".join(SPELT + LONE)
    script = "const done = arguments[1]; import('/assets/dom.js').then((dom) => done(dom.printable(arguments[0])))"
    shown = page.driver.execute_async_script(script, text)
    assert shown == printable(text).replace("\x85", "")


LONG = ("qwen3-0.6b-from-8b-lr0.001-t0.7-seed3-ful", "qwen3-0.6b-from-qwen3-8b-" * 5 + "gsm8k-lr0.001-seed-3")
TABS = {  # and what is there once it is drawn
    "runs": ".run-table td",
    "curves": ".chart canvas",
    "samples": ".flow .t",
    EVALUATIONS: ".answer-row",
    "disagreement": ".tiles",
    "system": ".tiles",
    "recipe": ".recipe td",
    "recipe?shape=rows": ".by-runs td",
}
BEYOND = """  // controls that leave their card, and names of runs that have most of the window
  const box = (e) => e.getBoundingClientRect(), all = [...document.querySelectorAll('main :is(select, input, button)')];
  const leaves = (e) => box(e).right > box(e.closest('.card, fieldset, main')).right + 1;
  const seen = (e) => e.checkVisibility() && box(e).width && !e.closest('.scroll, .legendbar, .states');
  const wide = (e) => box(e).width > Math.max(0.55 * innerWidth, 300);
  const names = [...document.querySelectorAll('main tbody th[scope=row]')];
  return [...all.filter(seen).filter(leaves), ...names.filter(wide)]
    .map((e) => `${e.tagName} ${e.textContent.slice(0, 40)} ${box(e).width}`);
"""


def test_no_tab_is_wider_than_its_window_whatever_the_runs_are_called(page: Page, copied: Path, served: Served) -> None:
    recipe = (copied / "recipe.toml").read_text()
    for number, name in enumerate(LONG):
        copy = Path(shutil.copytree(copied, copied.with_name(name)))
        (copy / "recipe.toml").write_text(re.sub("(?m)^lr = .*", f"lr = {number + 1}.0", recipe))
    address = served(copied.parent)
    try:
        for tab, drawn in TABS.items():
            page.open(f"{address}#{tab}")
            page.until(f"document.querySelector('{drawn}')")
            for width in (360, 768, 1440):
                size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
                page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                page.until("document.documentElement.scrollWidth <= arguments[0]", width)  # charts follow later
                assert page.run(BEYOND) == [], (tab, width)
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_that_stops_leaves_what_was_read(page: Page, copied: Path) -> None:
    with serving(copied) as address:
        page.open(address)
        page.until("document.querySelectorAll('.chart canvas').length >= 5")
    page.until("/server stopped/.test(document.querySelector('#status').textContent)")
    page.press("#tab-disagreement")
    page.until("/does not answer/.test(document.querySelector('.disagreement').textContent)")
    page.press("#tab-samples")
    page.press("#tab-curves")
    assert colours_of(page, "Reverse KL") > 3
    page.errors()  # that nobody answered
