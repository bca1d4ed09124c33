"""The token view in a browser over a real run: its numbers against the Parquet, its filters, its keys."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import finished_run
from tests.view import made

from .looking import SEEN, Served, hover, rows_of, show, shown
from .page import Page


def test_hovering_a_token_shows_the_numbers_of_the_parquet(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    for row in (rows_of(run)[0], rows_of(run)[-1]):
        show(page, row["id"])
        assert page.texts(".flow .t") == [t.replace("\n", "↵\n") for t in row["tokens"]]
        for index in (0, len(row["tokens"]) // 2, len(row["tokens"]) - 1):
            hover(page, index)
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
            if 1e-3 < abs(row["reverse_kl"][index]) < 10:
                assert figures["exact KL"].startswith(f"{row['reverse_kl'][index]:.4f}")


def test_the_numbers_of_a_token_do_not_stay_over_another_tab(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#samples")
    page.until("document.querySelectorAll('.flow .t').length > 3")
    hover(page, 1)
    page.press("#tab-curves")
    page.until("document.querySelector('#inspector').hidden")


def test_colours_follow_the_chosen_measure(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    row = max((r for r in rows_of(run) if r["source"] == "train"), key=lambda r: r["kl_max"])
    show(page, row["id"])
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
    rows = [row for row in rows_of(run) if row["source"] == "watch"]
    same = [row for row in rows if row["prompt_id"] == rows[0]["prompt_id"]]
    show(page, same[0]["id"])
    page.press(".strip button", "Compare steps")
    page.until("document.querySelectorAll('.version').length === arguments[0]", len(same))
    assert [text.split("KL")[0] for text in page.texts(".version h3")] == [f"step {row['step']}" for row in same]
    assert page.texts(".version .words")[0] == same[0]["response_text"]
    for (before, after), words in zip(pairwise(same), page.texts(".version .words")[1:], strict=True):
        if before["response_text"] == after["response_text"]:
            assert words == after["response_text"] + "the same"
    assert page.run("return location.hash").find("compare=steps") > 0
    page.press(".measures button", "Tokens")
    page.until("document.querySelectorAll('.version .flow .t').length")
    assert len(page.texts(".version .flow .t")) == sum(len(row["tokens"]) for row in same)
    page.press(".strip button", "Compare steps")


def test_filters_search_and_sorting(page: Page, copied: Path, served: Served) -> None:
    def cut(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows[0] |= {"finish": "length", "teacher": "other", "task": "chat", "reward": None}
        return rows

    finished_run.rewrite(copied / "rollouts" / "step-000004.parquet", cut)
    rows = rows_of(copied)
    page.open(served(copied) + "#samples")

    def count() -> int:
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


def test_a_response_of_8000_tokens_scrolls(page: Page, tmp_path: Path, served: Served) -> None:
    """How smoothly is measured by benchmarks/view.py."""
    made.write_metrics(tmp_path / "long", 3)
    made.write_rollout_files(tmp_path / "long", range(1, 2), each=2, length=8000)
    page.open(served(tmp_path / "long") + "#samples")
    page.until("document.querySelectorAll('.flow .t').length === 8000")
    press = "document.querySelector('.flow').dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0]}))"
    beside = """(() => {
      const token = document.querySelector('.flow .at').getBoundingClientRect();
      const numbers = document.querySelector('#inspector').getBoundingClientRect();
      return token.top > 0 && token.bottom < innerHeight && numbers.top >= 0 && numbers.bottom <= innerHeight
        && Math.min(Math.abs(numbers.top - token.bottom), Math.abs(token.top - numbers.bottom)) < 12;
    })()"""
    page.run(press, "End")
    page.until(f"{SEEN} && scrollY > 1000 && {beside}")
    page.driver.execute_async_script(
        "const f = (n) => (n ? requestAnimationFrame(() => f(n - 1)) : arguments[0]()); f(8)"
    )
    # The inspector stays at its token: it goes out of sight with it, and comes back.
    page.run("scrollTo(0, 0)")
    page.until(f"!{SEEN}")
    page.run(press, "End")
    page.until(f"{SEEN} && {beside}")


def test_the_keyboard_reaches_everything(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    key = "document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: arguments[0], bubbles: true}))"
    page.run("document.querySelector('#tab-curves').focus()")
    page.run(key, "ArrowRight")
    assert page.run("return document.activeElement.id") == "tab-samples"
    page.until("document.querySelectorAll('.flow .t').length > 3")
    before = page.run("return document.querySelector('.row.on').dataset.id")
    page.run("document.querySelector('.list').focus()")
    page.run(key, "ArrowDown")
    chosen = page.run("return document.querySelector('.row.on').dataset.id")
    assert chosen != before
    shown(page, chosen)
    page.run("document.querySelector('.flow').focus()")
    page.run(key, "ArrowRight")
    page.until(f"document.querySelector('.flow .t.at').dataset.i === '0' && {SEEN}")
    assert "position 0: student p" in page.texts("[aria-live=polite].hidden")[0], "and it is said"
    page.run(key, "Escape")
    assert page.run("return document.querySelector('#inspector').hidden")
    unnamed = page.run("""
      return [...document.querySelectorAll('button, input, select, [role=img], [role=listbox]')]
        .filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length || e.title)).map(e => e.outerHTML)
    """)
    assert unnamed == []
