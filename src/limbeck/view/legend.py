"""A plot's legend: below it, where no point is behind it, in as many columns as are in its width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

LIMITS = (60, 44, 32)  # characters of a label
MOST_COLUMNS = 6
SMALL, SMALL_FROM = 7, 16  # points of the letters, and from how many labels on


def shortened(name: str, limit: int) -> str:
    """At most `limit` characters: the first ones and the last ones.

    >>> shortened("temperature-0.7-seed-1", 12)
    'temper…eed-1'
    """
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-((limit - 1) // 2) :]}"


def add_legend(figure: Any, entries: Sequence[tuple[str, Any]]) -> None:
    """Of labels, with what is drawn beside each; two may be the same. The figure grows by the legend's height.

    Long names are cut in the middle; where two would then be alike, broken.
    """
    labels = [label for label, _ in entries]
    for limit in LIMITS:
        shown = _distinct(labels, limit)
        for columns in range(min(MOST_COLUMNS, len(labels)), 0, -1):
            legend = figure.legend(
                [handle for _, handle in entries], ["." for _ in labels], loc="outside lower center", ncols=columns,
                fontsize=SMALL if len(labels) >= SMALL_FROM else None,
            )  # fmt: skip
            for text, label in zip(legend.get_texts(), shown, strict=True):  # one that begins with _ would be left out
                text.set_text(label)
            extent = legend.get_window_extent(figure.canvas.get_renderer())
            if extent.width <= figure.bbox.width or (limit, columns) == (LIMITS[-1], 1):
                figure.set_figheight(figure.get_figheight() + extent.height / figure.dpi)
                return
            legend.remove()


def _distinct(labels: Sequence[str], limit: int) -> list[str]:
    cut = [shortened(label, limit) for label in labels]
    if len(set(cut)) == len(set(labels)):
        return cut
    return ["\n".join(textwrap.wrap(label, limit)) for label in labels]
