"""The panel in a notebook's cell, over a stand-in for IPython; tests/test_notebook.py has a real kernel."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.text import Text

from limbeck.config.recipe import parse_recipe
from limbeck.trackers.console import LiveConsole, PlainConsole, in_notebook, make_console
from limbeck.trackers.notebook import NotebookPanel


class Handle:
    def __init__(self) -> None:
        self.pages: list[str] = []

    def update(self, page: str) -> None:
        self.pages.append(page)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch) -> Handle:
    """Of what is displayed, in a process that takes itself for a notebook's kernel."""
    handle = Handle()

    def display(page: str, display_id: bool) -> Handle:
        assert display_id
        handle.update(page)
        return handle

    shown = SimpleNamespace(display=display, HTML=lambda page: page)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell, display=shown))
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return handle


def test_the_output_is_replaced_and_markup_is_text(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.trackers.notebook.SECONDS_BETWEEN", 0.0)
    panel = NotebookPanel()
    panel.update(Text("before it is shown"))
    panel.start()
    panel.update(Text("<script>alert(1)</script>"))
    panel.stop()
    assert "before it is shown" in handle.pages[0]
    assert "<script>" not in handle.pages[-1]
    assert "&lt;script&gt;" in handle.pages[-1]


def test_few_updates_and_the_last_one_always(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limbeck.trackers.notebook.SECONDS_BETWEEN", 3600.0)
    panel = NotebookPanel()
    panel.start()
    for number in range(100):
        panel.update(Text(f"update {number}"))
    panel.stop()
    assert len(handle.pages) <= 3
    assert "update 99" in handle.pages[-1]


def test_a_notebook_is_told_from_a_terminal_and_a_script(handle: Handle, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe: Any = parse_recipe({"student": {"model": "s"}, "teacher": {"model": "t"}, "task": {"kind": "arithmetic"}})
    assert in_notebook()
    console = make_console(recipe)
    assert isinstance(console, LiveConsole)
    assert isinstance(console.live, NotebookPanel)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))  # imported, not running
    assert not in_notebook()
    assert isinstance(make_console(recipe), PlainConsole)
