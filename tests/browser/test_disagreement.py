"""The Disagreement tab: its sums, what is chosen of them, and that the address keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from limbeck.training.recording import write_rollouts
from tests import finished_run
from tests.view import made

from .looking import Served, rows_of
from .page import Page


def test_the_page_of_disagreement(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#disagreement?steps=all")
    page.until("document.querySelectorAll('.places .place').length > 3")
    rows = [row for row in rows_of(run) if row["source"] == "train"]
    ends = sum(sum(row["special"]) for row in rows)
    assert str(ends) in page.texts(".columns > div:last-child .figures tbody tr")[0]
    worst = max(max(row["reverse_kl"]) for row in rows)
    assert page.texts(".place b")[0] == f"{worst:.2f}"
    page.press(".places .place")
    page.until("document.querySelector('.flow .t.at')")
    assert page.run("return !document.querySelector('#panel-samples').hidden")


def test_shares_are_drawn_to_scale(page: Page, copied: Path, served: Served) -> None:
    def one_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "reverse_kl": [1e-7 if i else 1.0 for i in range(len(row["tokens"]))]} for row in rows]

    for path in (copied / "rollouts").glob("*.parquet"):
        finished_run.rewrite(path, one_place)
    page.open(served(copied) + "#disagreement?steps=all")
    page.until("document.querySelectorAll('.columns .figures').length === 2")
    bars = page.run("""
      return [...document.querySelectorAll('.columns .figures')[0].querySelectorAll('.share')].map((cell) =>
        [cell.textContent, cell.querySelector('i').offsetWidth])
    """)
    width = max(width for _, width in bars)
    assert width > 10
    assert {width for text, width in bars if text == "<0.01%"} == {0}, "next to nothing is no whole bar"


def test_the_chart_over_positions_is_not_one_over_steps(page: Page, run: Path, served: Served) -> None:
    page.open(served(run))
    page.until("document.querySelectorAll('.chart canvas').length >= 5")
    page.press("#tab-disagreement")
    page.until("document.querySelector('.disagreement .plot canvas')")
    plot = "document.querySelector('.disagreement .plot')"
    page.run(f"{plot}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Home'}}))")
    page.until("document.querySelector('.disagreement .at').textContent === 'position 0'")
    drag = """
      const over = document.querySelector('.disagreement .u-over'), box = over.getBoundingClientRect();
      const at = (target, type, x) => target.dispatchEvent(new MouseEvent(
        type, {clientX: box.left + x, clientY: box.top + 20, bubbles: true, button: 0, view: window}));
      at(over, 'mousemove', 20);
      at(over, 'mousedown', 20);
      at(over, 'mousemove', 120);
      at(over, 'mouseup', 120);
    """
    page.run(drag)
    all_steps = "[...document.querySelectorAll('.toolbar button')].find((b) => b.textContent === 'Show all')"
    assert page.run(f"return {all_steps}.hidden"), "steps as before"


def _agents(folder: Path) -> Path:
    """Nine steps of two tasks and two turns, of which one task gets better."""
    (folder / "rollouts").mkdir(parents=True)
    made.write_metrics(folder, 9, every=3)
    for step in range(1, 10):
        rows = []
        for number in range(2, 8):
            row = made.rollout(step, number, 10)
            worse = row["task"] == "words" and step < 4
            row["reverse_kl"] = [0.5 if worse else 0.1] * 5 + [0.2] * 5
            row["turns"] = [{"start": start, "end": start + 5, "role": "student"} for start in (0, 5)]
            rows.append(row)
        write_rollouts(rows, folder / "rollouts" / f"step-{step:06d}.parquet")
    return folder


def test_the_latest_third_is_beside_the_first_by_task_teacher_and_turn(
    page: Page, tmp_path: Path, served: Served
) -> None:
    page.open(served(_agents(tmp_path / "agents")) + "#disagreement")
    page.until("document.querySelectorAll('.facets .card').length === 3")
    assert [text.split("nats")[0] for text in page.texts(".facets h3")] == ["By task", "By teacher", "By turn"]
    assert page.texts(".facets .card:last-child tbody tr:nth-child(2) td")[1:3] == ["0.200", "0.200 ± 0"]
    assert "0.2500 → 0.1500" in page.texts(".tile dd")[0]
    assert set(page.texts(".disagreement .values b")) == {"steps 1 to 3", "steps 7 to 9"}
    page.press(".facets .link", "words")
    page.until("document.querySelector('.tile dd').textContent.includes('0.3500 → 0.1500')")
    assert page.run("return location.hash") == "#disagreement?task=words"
    page.press(".facets .link", "2")
    page.until("location.hash === '#disagreement?task=words&turn=2'")
    page.until("document.querySelector('.tile dd').textContent.includes('0.2000 → 0.2000')")
    page.driver.refresh()
    page.until("document.querySelector('.tile dd')?.textContent.includes('0.2000 → 0.2000')")
    page.press(".facets .link[aria-pressed=true]", "words")
    page.until("location.hash === '#disagreement?turn=2'")
    assert set(page.texts(".facets .card:first-child .link")) == {"words", "numbers"}


def test_tokens_are_sorted_by_what_changed(page: Page, tmp_path: Path, served: Served) -> None:
    page.open(served(_agents(tmp_path / "agents")) + "#disagreement")
    tokens = ".columns > div:first-child .figures tbody th"
    page.until("document.querySelectorAll(arguments[0]).length === 10", tokens)
    page.press(".card-head .segments button", "Grew most")
    page.until("location.hash === '#disagreement?order=grew'")
    grew = set(page.texts(tokens))
    page.press(".card-head .segments button", "Fell most")
    page.until("location.hash === '#disagreement?order=fell'")
    fell = set(page.texts(tokens))
    assert fell
    assert not grew & fell
    assert len(grew | fell) <= 10


def test_steps_that_are_none_are_said_on_the_page(page: Page, run: Path, served: Served) -> None:
    page.open(served(run) + "#disagreement?steps=soon")
    page.until("document.querySelector('.disagreement .problem')")
    assert "expected late, early, all" in page.texts(".disagreement .problem")[0]
    page.errors()
