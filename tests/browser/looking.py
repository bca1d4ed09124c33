"""What the tests of the page share: the run's files, and ways to look at the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .page import Page

Served = Callable[[Path], str]
SEEN = "document.querySelector('#inspector').checkVisibility({visibilityProperty: true})"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [
        {"id": f"{path.name}:{number}", **row}
        for path in sorted((run / "rollouts").glob("*.parquet"))
        for number, row in enumerate(pq.read_table(path).to_pylist())
    ]


def listed(page: Page) -> list[str]:
    """The names in the table of runs, from the top."""
    return page.texts(".run-table tbody .name .text")


def type_into(page: Page, selector: str, text: str) -> None:
    page.run(
        "const box = document.querySelector(arguments[0]); box.value = arguments[1];"
        "box.dispatchEvent(new Event('input', {bubbles: true}))",
        selector,
        text,
    )


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def colours_of(page: Page, title: str) -> int:
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
    return int(page.until(f"(function() {{ {script} }})(...arguments)", title))


def show(page: Page, id_: str) -> None:
    """Open the page at a rollout."""
    page.run("history.replaceState(null, '', `#tokens/tiny/${encodeURIComponent(arguments[0])}`)", id_)
    page.driver.refresh()
    shown(page, id_)


def shown(page: Page, id_: str) -> None:
    """Wait for the tokens of this rollout, not of the one before."""
    page.until(
        "document.querySelector('.detail').dataset.id === arguments[0] && document.querySelector('.flow .t')", id_
    )


def hover(page: Page, index: int) -> None:
    page.run(
        'document.querySelector(`.flow [data-i="${arguments[0]}"]`)'
        ".dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))",
        index,
    )
    page.until(SEEN)
