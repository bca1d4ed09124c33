"""Every study has a page and a picture, and the page is in the list of studies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUDIES = [path for path in sorted((ROOT / "studies").glob("*.py")) if "sys.exit(main(STUDY))" in path.read_text()]
PAGES = ROOT / "docs" / "studies"


@pytest.mark.parametrize("script", STUDIES, ids=lambda path: path.stem)
def test_each_has_a_page_and_a_picture(script: Path) -> None:
    (page,) = [page for page in PAGES.glob("*.md") if f"python studies/{script.name}" in page.read_text()]
    assert f"docs/studies/{page.name}" in script.read_text()
    assert f"]({page.name})" in (PAGES / "README.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\((\.\./images/[\w-]+\.png)\)", page.read_text())
    assert pictures
    assert all((PAGES / picture).exists() for picture in pictures)
    assert not re.findall(r"^[A-Z]{4,}$", page.read_text(), re.M)  # a number that is still to come
