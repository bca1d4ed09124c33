"""The built documentation in a browser, opened from the disk: its search, its width on a phone, and no complaint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[2]
OVERFLOWS = """
  const hides = (e) => ["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX);
  const scrolls = (e) => e && (hides(e) || scrolls(e.parentElement));
  const wide = (e) => { const box = e.getBoundingClientRect(); return box.width && box.right > innerWidth + 1; };
  return [...document.querySelectorAll("article *")].filter((e) => wide(e) && !scrolls(e.parentElement))
    .map((e) => e.tagName + ": " + e.textContent.slice(0, 60));
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    return folder


def test_the_search_from_a_disk_finds_a_message_by_its_words(browser: webdriver.Chrome, site: Path) -> None:
    browser.set_window_size(1440, 1000)
    browser.get((site / "guides" / "install.html").as_uri())
    browser.find_element(By.CSS_SELECTOR, "label.md-search__icon, .md-search__input").click()
    browser.find_element(By.CSS_SELECTOR, ".md-search__input").send_keys(
        "leave room for rollout.max_tokens in the context"
    )
    wait = WebDriverWait(browser, 30)
    first = wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__item"))[0]
    assert "Troubleshooting" in first.text
    assert "prompts are too long" in first.text


SEARCHES = {  # what people type: the heading that has to be the first that is shown
    "No space left on device": "Free some space",
    "Address already in use": "cannot listen at",
    "unknown key": "unknown key",
    "out of memory": "Lower rollout.prompts_per_step",
    "does not fit": "does not fit",
    "ConnectError": "Is the server up",
    "kl_coef": "Keys of TRL, verl and slime in a recipe",
}
TOPICS = {  # what newcomers type: the page that has to be among the first two
    "resume": "guides/resuming.html",
    "export": "guides/resuming.html",
    "lora": "reference/recipe.html",
    "rollout.temperature": "reference/recipe.html",
    "temperature": "concepts/temperature.html",
    "trackers": "guides/trackers.html",
    "wandb": "guides/trackers.html",
    "W&B": "guides/trackers.html",
    "tensorboard": "guides/trackers.html",
    "notebook": "guides/python.html",
    "install": "guides/install.html",
    "agents": "guides/agents.html",
    "gpu": "guides/gpu-job.html",
    "tokenizer": "guides/other-tokenizer.html",
}
FOUND = """
  const links = [...document.querySelectorAll('.md-search-result__item > .md-search-result__link')].slice(0, 2);
  return links.some((link) => link.href.includes(arguments[0]));
"""


def test_the_search_shows_the_section_of_a_message_and_the_page_of_a_topic(
    browser: webdriver.Chrome, site: Path
) -> None:
    browser.set_window_size(1440, 1000)
    browser.get((site / "guides" / "install.html").as_uri())
    browser.find_element(By.CSS_SELECTOR, "label.md-search__icon, .md-search__input").click()
    typed, wait = browser.find_element(By.CSS_SELECTOR, ".md-search__input"), WebDriverWait(browser, 30)
    for words, heading in SEARCHES.items():
        typed.clear()
        typed.send_keys(words)
        at = f"return document.querySelector('.md-search-result__item')?.innerText.includes({heading!r})"
        wait.until(lambda driver, at=at: driver.execute_script(at), words)
    for words, path in TOPICS.items():
        typed.clear()
        typed.send_keys(words)
        wait.until(lambda driver, path=path: driver.execute_script(FOUND, path), words)


def test_no_page_is_wider_than_a_phone_or_complains(browser: webdriver.Chrome, site: Path) -> None:
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    browser.get_log("browser")
    try:
        for path in sorted(site.rglob("*.html")):
            if path.name == "404.html":  # for a server: its paths are absolute
                continue
            browser.get(path.as_uri())
            assert browser.execute_script(OVERFLOWS) == [], path.name
            assert [entry["message"] for entry in browser.get_log("browser")] == [], path.name
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
