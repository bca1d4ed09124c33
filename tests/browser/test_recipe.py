"""The tab Recipe: what differs among the shown runs, which way round, and as TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.view import made_runs

from .looking import Served
from .page import Page


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recipes") / "runs"
    for name, seed, temperature, lr in (("a", 0, 0.7, 1e-3), ("b", 0, 1.3, 1e-3), ("c", 1, 1.3, 3e-4)):
        made_runs.write_run(root / name, seed, temperature, lr, steps=4, every=2, rollouts=False)
    return root


def _table(page: Page) -> list[list[str]]:
    rows: list[list[str]] = page.run(
        "return [...document.querySelectorAll('.recipe tbody tr')].map(tr => [...tr.children].map(c => c.textContent))"
    )
    return rows


def _copied(page: Page, selector: str, text: str) -> str:
    page.run("window.copied = ''; navigator.clipboard.writeText = async (text) => { window.copied = text; };")
    page.press(selector, text)
    return str(page.until("window.copied"))


def test_only_what_differs_by_table_and_as_toml(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs) + "#recipe?runs=a,b")
    assert _table(page) == [["[rollout]"], ["temperature", "0.7", "1.3"]]
    assert page.texts(".recipe .other") == ["1.3"]
    assert tomllib.loads(_copied(page, ".recipe thead th:last-child .act", "Copy TOML")) == {
        "rollout": {"temperature": 1.3}
    }
    page.press(".recipe-tab .check input")
    keys = [row[0] for row in _table(page)]
    assert {"[student]", "betas", "max_tokens", "where it ran", "Commit"} <= set(keys)
    assert "all=1" in page.run("return location.hash")
    page.open(served(runs) + "#recipe?runs=b,c")
    assert [row[0] for row in _table(page)] == ["the run", "seed", "[learner]", "lr", "where it ran", "Host"]


def test_many_runs_are_rows_and_any_is_what_the_others_are_compared_with(
    page: Page, runs: Path, served: Served
) -> None:
    page.open(served(runs) + "#recipe")
    page.press(".recipe-tab .segments button", "Runs as rows")
    rows = _table(page)
    assert [row[1:] for row in rows] == [
        ["0", "0.7", "0.001", "gpu-02"], ["0", "1.3", "0.001", "gpu-02"], ["1", "1.3", "0.0003", "gpu-01"],
    ]  # fmt: skip
    assert len(page.texts(".recipe .other")) == 1 + 4
    page.press("[data-base=b]")
    assert _table(page)[0][1:] == ["0", "1.3", "0.001", "gpu-02"]
    assert len(page.texts(".recipe .other")) == 1 + 3
    page.driver.refresh()
    page.until("document.querySelector('.by-runs .run-name').textContent === 'b'")
    text = _copied(page, ".recipe-tab .toolbar button", "Copy what differs as TOML")
    assert text.startswith("# b\n")
    assert [line for line in text.splitlines() if line in ("# a", "# b", "# c")] == ["# b", "# a", "# c"]
    assert tomllib.loads(text) == {"seed": 0, "rollout": {"temperature": 1.3}, "learner": {"lr": 1e-3}}
    assert "# temperature = 0.7" in text


def test_a_single_recipe_is_searched_and_copied_whole(page: Page, runs: Path, served: Served) -> None:
    page.open(served(runs / "a"))
    page.press("#tab-recipe")
    copied = _copied(page, ".recipe-tab .toolbar button", "Copy as TOML")
    assert tomllib.loads(copied) == tomllib.loads((runs / "a" / "recipe.toml").read_text())
    page.run(
        "const box = document.querySelector('.recipe-tab input[type=search]'); box.value = 'demo:';"
        "box.dispatchEvent(new Event('input'))"
    )
    page.until("document.querySelectorAll('.recipe td').length < 12")
    assert [row for row in _table(page) if row[0] == "model"] == [["model", "demo:student"], ["model", "demo:teacher"]]


def test_the_baseline_is_a_run_that_has_a_step(page: Page, tmp_path: Path, served: Served) -> None:
    made_runs.write_run(tmp_path / "a-new", 0, 0.7, reached=0, outcome=None)
    for name, temperature in (("b", 1.0), ("c", 1.3)):
        made_runs.write_run(tmp_path / name, 0, temperature, steps=4, every=2, rollouts=False)
    page.open(served(tmp_path) + "#recipe?runs=a-new,b,c")
    assert page.texts(".recipe thead .run-name") == ["b", "a-new", "c"]
    page.open(page.driver.current_url.partition("#")[0] + "#curves")
    page.until(
        "document.querySelectorAll('.legendbar button').length === 2"
    )  # without the one that ended before its first step
