"""The live panel in a notebook's cell. Needs nothing but the IPython that runs the notebook."""

from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 110  # columns
SECONDS_BETWEEN = 0.25  # a notebook keeps up with few updates, and each is a message to the browser
PAGE = '<pre style="font-family: monospace; line-height: normal; white-space: pre">{code}</pre>'


class NotebookPanel:
    """One output of the cell, replaced in place."""

    def __init__(self) -> None:
        self.shown: RenderableType = ""
        self.handle: Any = None  # IPython's
        self.last = 0.0

    def start(self) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(self._page(), display_id=True)

    def update(self, renderable: RenderableType) -> None:
        self.shown = renderable
        if time.monotonic() - self.last >= SECONDS_BETWEEN:
            self._draw()

    def stop(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self.last = time.monotonic()
        if self.handle is not None:
            self.handle.update(self._page())

    def _page(self) -> Any:
        from IPython.display import HTML

        console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
        console.print(self.shown)
        return HTML(console.export_html(inline_styles=True, code_format=PAGE))
