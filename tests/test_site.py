"""The documentation site: every page is in its navigation, it builds strictly, and it needs no other host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mkdocs.config import load_config

import limbeck
import limbeck.errors
import limbeck.objectives
import limbeck.testing

ROOT = Path(__file__).parents[1]
CFF_KEYS = {
    "abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords",
    "license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact",
    "repository-code", "title", "type", "url", "version",
}  # fmt: skip
LOADS = re.compile(
    r"""(?:\b(?:src|srcset|data)= | <link[^>]*\bhref= | \burl\( | @import | \bimport\( | \bfetch\( )
        ["'\s]* (?:https?:)? // [^"'\s>)]*""",
    re.VERBOSE,
)


def leaves(entry: Any) -> Iterator[str]:
    """The pages of a navigation, in the order of the reader."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry if isinstance(entry, list) else entry.values():
            yield from leaves(part)


def test_the_navigation_names_every_page_once() -> None:
    config = load_config(str(ROOT / "mkdocs.yml"))
    named = list(leaves(config.nav))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(named) == sorted(pages | set(config.extra["root_pages"].values()))


def titles(entry: Any) -> Iterator[str]:
    """What the navigation calls its pages."""
    if isinstance(entry, list):
        for part in entry:
            yield from titles(part)
    elif isinstance(entry, dict):
        for title, below in entry.items():
            yield from [title] if isinstance(below, str) else titles(below)


def test_what_ships_names_pages_by_their_titles() -> None:
    """Who has the wheel has no docs/: a message, a docstring and a recipe name the page as the site does."""
    known = set(titles(load_config(str(ROOT / "mkdocs.yml")).nav))
    files = [
        *(ROOT / "src" / "limbeck").rglob("*.py"),
        *(ROOT / "recipes").iterdir(),
        *(ROOT / "examples").rglob("*.py"),
    ]
    named: set[str] = set()
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bdocs/[\w/-]+\.md", text), path
        flat = re.sub(r'"?\n[\s#]*f?"?', " ", text)
        named |= {re.sub(r"\s+", " ", title) for title in re.findall(r"the (?:guide|page) \*([^*]+)\*", flat, re.I)}
    assert len(named) > 4
    assert named <= known


def test_the_citation_is_of_this_version() -> None:
    """With the keys of the Citation File Format 1.2.0 that it requires, and no other than it has."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"authors", "cff-version", "message", "title"} <= set(citation) <= CFF_KEYS
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == limbeck.__version__
    assert citation["authors"] == [{"name": "The Limbeck authors"}]
    assert f"version = {{{limbeck.__version__}}}" in (ROOT / "docs" / "about" / "cite.md").read_text(encoding="utf-8")


def test_the_changelog_begins_with_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+),", changelog, re.M)[0] == limbeck.__version__


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # a notice of the theme's about another program
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://a.b/c.js">',
        "<img src=//a.b/c.png>",
        '<link rel="x" href="https://a.b">',
        "url(http://a.b/f)",
    ],
)
def test_what_loads_from_elsewhere_is_seen(text: str) -> None:
    assert LOADS.search(text)


@pytest.mark.slow
def test_the_site_loads_nothing_from_another_host(site: Path) -> None:
    pages = [path for path in site.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert len(pages) > 30
    found = {f"{path.name}: {load}" for path in pages for load in LOADS.findall(path.read_text(encoding="utf-8"))}
    assert not found
    scripts = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.js"))
    assert not re.findall(r"[\"'`]https://[\w.-]*(?:unpkg|jsdelivr|cdnjs|googleapis|gstatic)[^\"'`]*", scripts)


@pytest.mark.slow
def test_the_site_links_to_no_other_host(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r'href="((?:https?:)?//[^"]*)"', page.read_text(encoding="utf-8")), page.name


@pytest.mark.slow
def test_links_of_the_site_lead_somewhere_on_a_disk(site: Path) -> None:
    """With their anchors, from file://: what mkdocs checks is the source, not what the hooks made of it."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r'<a [^>]*?href="([^"#:]*)(?:#([^"]*))?"', text):
            if page.name == "404.html":
                continue
            there = (page.parent / target) if target else page
            assert there.is_file(), f"{page.name}: {target}"
            if anchor and not anchor.startswith("__"):
                assert f'id="{anchor}"' in there.read_text(encoding="utf-8"), f"{page.name}: {target}#{anchor}"


@pytest.mark.slow
def test_formulas_are_drawn(site: Path) -> None:
    text = (site / "concepts" / "mathematics.html").read_text(encoding="utf-8")
    assert "arithmatex" not in text
    assert text.count("<math") > 150


@pytest.mark.slow
def test_the_api_has_every_public_name_and_what_the_source_says_beside_a_field(site: Path) -> None:
    folder = site / "reference" / "api"
    pages = "".join(page.read_text(encoding="utf-8") for page in folder.iterdir())
    for module in (limbeck, limbeck.errors, limbeck.objectives, limbeck.testing):
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n.endswith("Error")]
        assert not [name for name in names if not name.startswith("__") and f'.{name}"' not in pages]
    assert "T = 0 has no distribution, hence no KL" in (folder / "records.html").read_text(encoding="utf-8")
