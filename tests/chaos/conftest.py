"""One seed, one book of outcomes and one set of servers for the whole suite.

`LIMBECK_CHAOS_SEED` is a number, or "fresh" for one that nobody knows yet; it is printed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos import servers
from tests.chaos.runs import Site
from tests.chaos.table import FILE, LINES, Book

HERE = Path(__file__).parent
SEED = "LIMBECK_CHAOS_SEED"
BOOK = pytest.StashKey[Book]()


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get(SEED) == "fresh":
        os.environ[SEED] = str(secrets.randbelow(10**6))  # for the workers too
    config.stash[BOOK] = Book(int(os.environ.get(SEED, "10")), LINES)


def pytest_sessionstart(session: pytest.Session) -> None:
    if _leads(session.config):
        LINES.parent.mkdir(exist_ok=True)
        LINES.unlink(missing_ok=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.chaos)
            with_servers = "site" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("servers" if with_servers else item.path.stem))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A whole suite in which a fault hardly hit has shown nothing."""
    book = session.config.stash[BOOK]
    if not _leads(session.config) or not book.outcomes:
        return
    FILE.write_text(json.dumps(book.as_json(), indent=1) + "\n", encoding="utf-8")
    whole = not session.config.option.keyword and not any("::" in name or ".py" in name for name in session.config.args)
    if whole and book.shortage() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    book = config.stash[BOOK]
    if _leads(config) and book.outcomes:
        terminalreporter.write_line(book.text())
        terminalreporter.write_line(f"hit fewer than ten times, or fewer than 150 runs: {book.shortage() or 'none'}")


def _leads(config: pytest.Config) -> bool:
    """Whether the suite is what runs here, and not in a worker of pytest-xdist."""
    return config.option.markexpr == "chaos" and not hasattr(config, "workerinput")


@pytest.fixture(scope="session")
def book(pytestconfig: pytest.Config) -> Book:
    return pytestconfig.stash[BOOK]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv(servers.TOKEN_ENV, "sesame")
        stack.callback(logging.disable, logging.NOTSET)
        logging.disable(logging.WARNING)  # retries say so; there are thousands
        site = Site(tmp_path_factory.mktemp("chaos"), stack)
        yield site
        assert "Traceback" not in site.log.read_text(), site.log.read_text()
