"""The table of runs: finding, sorting, grouping and choosing them, and what of it is in the address."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from limbeck.view.report import write_report
from tests.view import made, made_runs

from .looking import Served, listed, type_into
from .page import Page

MISSING = "\u2013"


def _column(page: Page, label: str) -> list[str]:
    script = """
      const heads = [...document.querySelectorAll('.run-table thead th')];
      const at = heads.findIndex(h => h.querySelector('.sort').firstChild.data === arguments[0]);
      return [...document.querySelectorAll('.run-table tbody tr')].map(tr => tr.children[at].innerText);
    """
    found: list[str] = page.run(script, label)
    return found


def _hash(page: Page) -> str:
    return str(page.run("return location.hash"))


def test_a_folder_of_runs_opens_at_their_table_and_a_single_one_has_none(
    page: Page, runs: Path, served: Served
) -> None:
    address = served(runs)
    page.open(address)
    assert _hash(page) == "#runs"
    assert listed(page)[0] == "t0.7-new", "the newest first"
    assert len(listed(page)) == 12
    states = dict(zip(listed(page), _column(page, "State"), strict=True))
    assert states["t0.7-s0"] == "finished"
    assert states["t1.0-s3"] == states["t0.7-new"] == "running"
    assert states["t0.7-lr0.01"].startswith("failed\nthe loss of step 31 is not finite")
    assert dict(zip(listed(page), _column(page, "Step"), strict=True))["t1.0-s3"].split("\n")[0] == "25 / 60"
    assert dict(zip(listed(page), _column(page, "Left"), strict=True))["t1.0-s3"] == "10 s"
    assert dict(zip(listed(page), _column(page, "Elapsed"), strict=True))["t0.7-s0"] == "1 min 00 s"
    page.open(served(runs / "t0.7-s0"))
    assert _hash(page) == "#curves"
    assert not page.run("return document.querySelector('#tab-runs').checkVisibility()")


def test_the_best_run_is_found_by_sorting(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    page.press(".run-table .sort", "Accuracy")
    shown = [float(text.rstrip("%")) for text in _column(page, "Accuracy") if text != MISSING]
    assert shown == sorted(shown, reverse=True)
    assert _column(page, "Accuracy")[-1] == MISSING, "what is missing is last"
    assert listed(page)[0] == page.texts(".run-table tr:has(.best) .text")[0]
    assert _hash(page) == "#runs?sort=-accuracy"
    assert page.run("return document.querySelector('[aria-sort=descending] .sort').firstChild.data") == "Accuracy"
    page.press(".run-table .sort[data-act='sort accuracy']")
    assert _column(page, "Accuracy")[-1] == MISSING, "whichever way"
    assert float(_column(page, "Accuracy")[0].rstrip("%")) == min(shown)
    page.press(".run-table .sort[data-act='sort accuracy']")
    assert _hash(page) == "#runs"
    page.press(".run-table .sort", "Run")
    assert listed(page)[:3] == ["t0.7-lr0.01", "t0.7-new", "t0.7-s0"]


def test_what_an_address_names_and_is_not_there_is_said(page: Page, runs: Path, served: Served) -> None:
    address = served(runs)
    for tab in ("samples?run=nope", "system?run=nope", "curves?runs=nope"):
        page.open(f"{address}#{tab}")
        page.until("/a run that is not here: nope/.test(document.querySelector('.problems').textContent)")
    assert page.texts(".chart") == [], "no run is shown, and no empty chart"
    assert not page.run("return document.querySelector('.more').checkVisibility()")
    assert page.texts(".legendbar a") == ["No run is shown: choose some in Runs"]
    page.open(f"{address}#runs?group=nope")
    assert len(listed(page)) == 12
    page.until("/groups by nope, a key that no run/.test(document.querySelector('.problems').textContent)")


def test_states_are_left_out_and_the_rest_is_shown(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    page.press('.state-chip[data-state="failed"]')
    assert len(listed(page)) == 11
    assert "t0.7-lr0.01" not in listed(page)
    assert _hash(page) == "#runs?hide=failed"
    page.press(".shown-bar button", "Show all 11")
    page.until("document.querySelectorAll('.run-table tbody input:checked').length === 11")
    assert "t0.7-lr0.01" not in _hash(page)
    page.press("#tab-curves")
    page.until("document.querySelectorAll('.chart canvas').length > 2")
    page.driver.back()
    page.press('.state-chip[data-state="failed"]')
    assert len(listed(page)) == 12


def test_boxes_choose_what_is_drawn_and_shift_takes_all_between(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs) + "#runs?sort=name")
    page.press(".shown-bar button", "Show none")
    page.until("document.querySelectorAll('.run-table tbody input:checked').length === 0")
    click = """
      document.querySelector(`[data-run="${arguments[0]}"] input`)
        .dispatchEvent(new MouseEvent('click', {bubbles: true, shiftKey: arguments[1]}))
    """
    page.run(click, "t0.7-s0", False)
    page.run(click, "t1.0-s0", True)
    page.until("document.querySelectorAll('.run-table tbody input:checked').length === 4")
    assert _hash(page).startswith("#runs?runs=t0.7-s0,t0.7-s1,t0.7-s2,t1.0-s0&")
    page.run(f"document.querySelector('[data-run=\"t0.7-s1\"] input').focus(); {click}", "t0.7-s1", False)
    page.until("document.querySelectorAll('.run-table tbody input:checked').length === 3")
    assert page.run("return document.activeElement.ariaLabel") == "Show t0.7-s1", "the focus stays"
    colours = "return [...document.querySelectorAll('tr:not(.off) .dot')].map(d => getComputedStyle(d).backgroundColor)"
    assert len(set(page.run(colours))) == 3


def test_groups_have_means_and_open(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    page.run("document.querySelectorAll('.menu')[0].open = true")
    page.press(".menu-body input[data-id='all-but-seed']")
    assert sorted(listed(page)) == [
        "temperature 0.7, lr 0.001", "temperature 0.7, lr 0.01", "temperature 1, lr 0.001", "temperature 1.3, lr 0.001",
    ]  # fmt: skip
    row = listed(page).index("temperature 1.3, lr 0.001")
    assert _column(page, "Accuracy")[row] == "66.7% ± 0.7%"
    assert _column(page, "seed")[row] == "0, 1, 2"
    page.run("document.querySelectorAll('.fold')[arguments[0]].click()", row)
    assert len(listed(page)) == 7
    assert "group=all-but-seed" in _hash(page)
    address = page.run("return location.href")
    page.open(address)
    assert len(listed(page)) == 7, "it opens as it was"


def test_columns_are_chosen(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs))
    page.run("document.querySelectorAll('.menu')[1].open = true")
    page.until("document.querySelector('.menu-body input[data-id=commit]')")
    type_into(page, ".menu[open] input[type=search]", "max_tok")
    shown = "return [...document.querySelectorAll('.menu[open] label')].filter(l => l.checkVisibility()).length"
    assert page.run(shown) == 1
    page.press(".menu[open] input[data-id='recipe:rollout.max_tokens']")
    page.press(".menu[open] input[data-id=commit]")
    page.press(".menu[open] input[data-id='train:mismatch']")
    assert set(_column(page, "max_tokens")) == {"40"}
    assert set(_column(page, "Commit")) == {"4f1c2a9d"}
    page.driver.refresh()
    page.until("document.querySelectorAll('.run-table thead th').length > 12")
    assert set(_column(page, "Commit")) == {"4f1c2a9d"}
    assert _column(page, "mismatch")[-1].split(" T ")[0] == "1.00e\u22125"
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "deny"})
    page.run(
        "const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => { window.saved = blob; URL.createObjectURL = make; return make(blob); };"
        "const buttons = [...document.querySelectorAll('button')].filter((one) => one.checkVisibility());"
        "buttons.find((one) => one.textContent === 'CSV').click()"
    )
    rows = {row["run"]: row for row in csv.DictReader(io.StringIO(page.run("return window.saved.text()")))}
    assert {row["state"] for row in rows.values()} == {"finished", "failed", "running"}
    assert rows["t0.7-new"]["accuracy"] == "", "nothing stands where there is no value"
    assert all(len(row["elapsed"].partition(".")[2]) <= 3 for row in rows.values())


def test_a_run_that_goes_on_is_followed_and_one_that_is_gone_goes(page: Page, tmp_path: Path, served: Served) -> None:
    root = tmp_path / "runs"
    for name in ("a", "b"):
        made_runs.write_run(root / name, steps=40, reached=20, outcome=None, started=None)
    page.open(served(root))
    page.run("document.querySelector('.run-table').dataset.same = 'yes'")
    with (root / "a" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(made.metrics_line(21)) + "\n")
    page.until("/21 \\/ 40/.test(document.querySelector('[data-run=a]').innerText)")
    made_runs.write_run(root / "c", steps=4)
    page.until("document.querySelectorAll('.run-table tbody tr').length === 3")
    (root / "b").rename(tmp_path / "elsewhere")
    page.until("!document.querySelector('[data-run=b]')")
    for complaint in page.errors():  # the page may have asked about it just when it went
        assert re.search(r"run=b\b.* 404 ", complaint), complaint


def test_the_table_is_in_a_report_too(page: Page, runs: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    write_report(runs, report, 5)
    page.open(report.as_uri() + "#runs?find=s0&sort=-accuracy")
    assert len(listed(page)) == 3
    states: Any = _column(page, "State")
    assert set(states) == {"finished"}
