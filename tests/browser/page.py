"""A headless Chromium and what is asked of it; a server of the run page."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import JavascriptException
from selenium.webdriver.chrome.service import Service

ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--window-size=1440,1000",
)  # fmt: skip
PATIENCE = 60.0  # seconds for what takes a fraction of one on a machine that is not busy


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
        """Wait for a JavaScript expression to hold; its value. What is not there yet is no error."""
        end = time.monotonic() + PATIENCE
        problem = ""
        while time.monotonic() < end:
            try:
                if value := self.run(f"return {condition}", *arguments):
                    return value
            except JavascriptException as error:
                problem = str(error.msg)
            time.sleep(0.05)
        raise AssertionError(f"never came true: {condition}\n{problem}\n{self.errors()}")

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


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium", "chromium-browser", "google-chrome")
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(_program("chromedriver")))
    driver.set_script_timeout(PATIENCE)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """`limbeck view` over a path, as a process of its own; its address."""
    command = [sys.executable, "-m", "limbeck", "view", str(path), "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            announced = server.stdout.readline()  # it listens by then
            found = re.search(r"http://\S+", announced)
            assert found, f"limbeck view did not start: {announced!r}"
            yield found[0]
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise FileNotFoundError(
        f"no {names[0]} on this machine; `make test-browser` installs it on Debian as root, or: "
        "sudo apt-get install chromium chromium-driver"
    )
