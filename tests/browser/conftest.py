"""A headless Chromium, and the page served over a real finished run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from selenium import webdriver

from tests import finished_run
from tests.view import made_runs

from .page import Page, chromium, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser: webdriver.Chrome, served: Callable[[Path], str]) -> Iterator[Page]:
    """Looked at for complaints before its server goes away, hence after `served`."""
    page = Page(browser)
    browser.set_window_size(1440, 1000)
    browser.execute_cdp_cmd("Page.resetNavigationHistory", {})  # at its limit of 50 entries, Back leaves the page
    page.errors()
    yield page
    errors = page.errors()
    browser.get("about:blank")  # so that this page does not go on asking a server that is gone
    assert errors == [], "the page must not complain"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder. Not to be changed: see `copied`."""
    return finished_run.shared(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve made-up runs. Not to be changed."""
    root = tmp_path_factory.mktemp("twelve") / "runs"
    made_runs.write_runs(root)
    return root


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy without the models, to spoil."""
    return Path(
        shutil.copytree(run, tmp_path / "copies" / "tiny", ignore=shutil.ignore_patterns("checkpoints", "model"))
    )


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Start `limbeck view` over a path; its address."""
    with ExitStack() as servers:
        yield lambda path: servers.enter_context(serving(path))
