"""A headless Chromium, and the page served over a real finished run."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests import finished_run

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1440,1000",
)  # fmt: skip
PATIENCE = 60.0  # seconds for what takes a fraction of one on a machine that is not busy


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


def _program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.fail(
        f"no {names[0]} on this machine; `make test-browser` installs it on Debian as root, or: "
        "sudo apt-get install chromium chromium-driver",
        pytrace=False,
    )


class Page:
    """The browser, and waiting for what it shows."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, address: str) -> None:
        self.driver.get("about:blank")
        self.driver.get(address)
        self.until("document.documentElement.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: str, *arguments: Any) -> Any:
        """Wait for a JavaScript expression to hold; its value."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := self.run(f"return {condition}", *arguments):
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came true: {condition}\n{self.errors()}")

    def press(self, selector: str, text: str = "") -> None:
        """Click the first element that matches, and whose text is `text` where given."""
        find = "[...document.querySelectorAll(arguments[0])].find(e => !arguments[1] || e.textContent === arguments[1])"
        self.until(find, selector, text)
        self.run(f"{find}.click()", selector, text)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )
        return found

    def errors(self) -> list[str]:
        """What the browser complained of since it was asked last."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="session")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser: webdriver.Chrome, served: Callable[[Path], str]) -> Iterator[Page]:
    """Looked at for complaints before its server goes away, hence after `served`."""
    page = Page(browser)
    browser.set_window_size(1440, 1000)
    page.errors()
    yield page
    errors = page.errors()
    browser.get("about:blank")  # so that this page does not go on asking a server that is gone
    assert errors == [], "the page must not complain"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder. Not to be changed: see `copied`."""
    return finished_run.shared(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """A copy without the models, to spoil."""
    return Path(
        shutil.copytree(run, tmp_path / "copies" / "tiny", ignore=shutil.ignore_patterns("checkpoints", "model"))
    )


@pytest.fixture
def served() -> Iterator[Callable[[Path], str]]:
    """Start `limbeck view` over a path; its address."""
    servers = []

    def start(path: Path) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "limbeck.cli", "view", str(path), "--port", str(port), "--no-open"]
        servers.append(subprocess.Popen(command))
        address = f"http://127.0.0.1:{port}/"
        for _ in range(int(PATIENCE * 10)):
            try:
                urllib.request.urlopen(f"{address}api/runs", timeout=PATIENCE).close()
                return address
            except ConnectionError:
                time.sleep(0.1)
            except urllib.error.URLError:
                time.sleep(0.1)
        raise AssertionError("limbeck view did not start")

    yield start
    for server in servers:
        server.terminate()
        server.wait(10)
