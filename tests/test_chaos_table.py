"""The page shows the table of a run that was as good as the suite demands."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chaos.faults import FAULTS
from tests.chaos.table import BEGIN, COLUMNS, END, PAGE, Book, Outcome, markdown, with_table
from tests.chaos.test_checkpoints import DAMAGES

BAD = ("taken", "WRONG WEIGHTS", "hang", "traceback", "stuck")


def test_the_page_has_every_fault_and_nothing_bad() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    parts = [re.findall(r"^\| (.+) \|$", part, re.M) for part in table.strip().split("\n\n")]
    shown: set[str] = set()
    for head, _, *rows in parts:
        assert tuple(head.split(" | ")[1:]) == COLUMNS
        for row in rows:
            fault, *numbers = row.split(" | ")
            shown.add(fault)
            counts = dict(zip(COLUMNS, map(int, numbers), strict=True))
            found_out = "https" in head
            assert {name: counts[name] for name in BAD if counts[name]} == {} or found_out, (head, row)
    assert {*FAULTS, *DAMAGES} <= shown


def test_outcomes_are_counted_by_group_and_fault(tmp_path: Path) -> None:
    book = Book(7, tmp_path / "book.jsonl")
    for outcome in (
        Outcome("limbeck", "swap", 7, "same", 3),
        Outcome("limbeck", "swap", 7, "WRONG WEIGHTS", 2, ["the answer to another request"]),
        Outcome("limbeck", "swap", 7, "same", 0),
        Outcome("stock vllm", "answer bit", 7, "WRONG WEIGHTS", 4, ["a damaged answer"], known=True),
    ):
        book.add(outcome)
    assert book.shortage() == {"swap": 5, "answer bit": 4, "runs": 3}
    groups = book.as_json()["groups"]
    assert list(groups) == ["limbeck serve", "Not detectable without https"]
    swap = groups["limbeck serve"]["swap"]
    assert (swap["runs"], swap["hits"], swap["same weights"], swap["taken"], swap["WRONG WEIGHTS"]) == (2, 5, 1, 1, 1)
    assert [outcome.bad for outcome in book.outcomes] == [False, True, False, False]
    assert "| swap | 2 | 5 | 1 | 0 | 1 | 1 | 0 | 0 | 0 |" in markdown(book.as_json())
    page = with_table(f"a\n{BEGIN}\nold\n{END}\nb\n", book.as_json())
    assert "old" not in page
    assert page.startswith("a\n")
    assert page.endswith("\nb\n")
    assert "LIMBECK_CHAOS_SEED=7" in book.text()
