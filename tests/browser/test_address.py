"""What the page shows is in its address: a link opens what its sender saw, and Back goes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.view import made

from .looking import Served, rows_of, shown
from .page import Page


@pytest.fixture
def three_runs(tmp_path: Path) -> Path:
    for name in ("a", "b, c", "d+e & 50%"):
        made.write_metrics(tmp_path / "runs" / name, 6, every=3)
        made.write_rollout_files(tmp_path / "runs" / name, range(1, 3), each=4, length=6)
    return tmp_path / "runs"


def _hash(page: Page) -> str:
    return str(page.run("return location.hash"))


def _address(page: Page, script: str, *arguments: Any) -> Any:
    code = (
        "const done = arguments[arguments.length - 1];"
        f"import('/assets/address.js').then(({{address}}) => {{ {script} }}).then(done)"
    )
    return page.driver.execute_async_script(code, *arguments)


def _visible(page: Page) -> str:
    return str(
        page.run(
            "return [...document.querySelectorAll('[role=tabpanel]')].filter(p => !p.hidden).map(p => p.id).join()"
        )
    )


def test_tabs_are_steps_that_back_undoes(page: Page, three_runs: Path, served: Served) -> None:
    page.open(served(three_runs / "a"))
    assert (_hash(page), _visible(page)) == ("#curves", "panel-curves")
    page.press("#tab-samples")
    page.until("document.querySelectorAll('.flow .t').length > 3")
    assert _hash(page).startswith("#samples?rollout=step-")
    page.press("#tab-recipe")
    assert _visible(page) == "panel-recipe"
    page.driver.back()
    page.until("!document.querySelector('#panel-samples').hidden")
    assert _hash(page).startswith("#samples?rollout=step-")
    page.driver.back()
    page.until("!document.querySelector('#panel-curves').hidden")
    assert page.run("return document.querySelector('#tab-curves').getAttribute('aria-selected')") == "true"


def test_an_address_of_an_earlier_version_still_opens_its_rollout(page: Page, three_runs: Path, served: Served) -> None:
    id_ = rows_of(three_runs / "b, c")[5]["id"]
    page.open(f"{served(three_runs)}#tokens/b%2C%20c/{id_}")
    shown(page, id_)
    assert _hash(page) == f"#samples?rollout={id_}&run=b%2C+c"
    page.open(f"{page.run('return location.origin')}/#none?x=%E0%A4%A")
    assert page.run("return document.querySelector('[aria-selected=true]').id").startswith("tab-")


def test_the_runs_that_are_shown_are_in_the_address(page: Page, three_runs: Path, served: Served) -> None:
    address = served(three_runs)
    page.open(f"{address}#runs")
    assert _hash(page) == "#runs"
    page.press('input[aria-label="Show a"]')
    page.until("location.hash === '#runs?runs=b%2C+c,d%2Be+%26+50%25'")
    page.open(f"{address}{_hash(page)}")
    checked = "return [...document.querySelectorAll('[data-act=show]')].filter(b => b.checked).map(b => b.ariaLabel)"
    assert page.run(checked) == ["Show b, c", "Show d+e & 50%"]
    page.press('input[aria-label="Show a"]')
    page.until("location.hash === '#runs'")


def test_keys_are_read_as_what_they_were_written_as(page: Page, three_runs: Path, served: Served) -> None:
    page.open(served(three_runs / "a"))
    texts = ["", "a,b", "a b+c", "50% & more=1", "ü/:?#"]
    for text in texts:
        assert (
            _address(
                page, "address.set({'curves.x': arguments[0]}); address.read(); return address.get('curves.x')", text
            )
            == text
        )
    assert (
        _address(
            page, "address.set({'curves.x': arguments[0]}); address.read(); return address.list('curves.x')", texts
        )
        == texts
    )
    kinds = """
      address.set({'curves.n': 0.5, 'curves.on': true, 'curves.d': 3, 'curves.x': null, 'samples.sort': 'new'});
      address.get('curves.d', 3); address.set({'curves.d': 3});
      const read = [address.get('curves.n', 0), address.get('curves.on', false), address.get('curves.none', 7)];
      return [location.hash, ...read];
    """
    assert _address(page, kinds) == ["#curves?n=0.5&on=1", 0.5, True, 7]
    assert _address(page, "return address.link('samples', {run: 'a'})") == "#samples?run=a&sort=new"
    clash = "try { address.set({'recipe.runs': 'rows'}); } catch (error) { return error.message; }"
    assert "a key of all tabs" in _address(page, clash)
    assert "curves.smooth" in _address(
        page, "try { address.get('smooth', 0); } catch (error) { return error.message; }"
    )
