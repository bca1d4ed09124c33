"""What the site does beyond mkdocs: pages from outside docs/, formulas as MathML, nothing from another host.

mkdocs calls these functions by their names (`hooks` in mkdocs.yml).
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
CODE = re.compile(r"(```.*?```|`[^`\n]*`)", re.DOTALL)
BOOST = {  # in the search: words of a message lead to the first, what people look for to the others
    "guides/troubleshooting.md": 2,
    "guides/resuming.md": 3,
    "guides/trackers.md": 3,
    "guides/install.md": 3,
    "guides/data.md": 4,
    "concepts/temperature.md": 3,
    "reference/recipe.md": 6,
}
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {".toml": "toml", ".py": "python", ".sh": "bash", ".yaml": "yaml", ".json": "json", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `extra.root_pages`, and a page for each file outside docs/ that a page links to."""
    roots = config.extra["root_pages"]
    waiting = list(roots)
    for file in files.documentation_pages():
        waiting += _outside(f"docs/{file.src_uri}", file.content_string)
    while waiting:
        source = waiting.pop()
        uri = site_uri(source, roots)
        if files.get_file_from_path(uri) is not None:
            continue
        content = _content(ROOT / source, source)
        if isinstance(content, str) and source.endswith(".md"):
            waiting += _outside(source, content)
            content = _relinked(source, content, roots)
        inclusion = InclusionLevel.INCLUDED if source in roots else InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=content, inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the pages that `on_files` added."""
    page.meta.setdefault("search", {"boost": BOOST.get(page.file.src_uri, 1)})
    if page.file.generated_by is not None:
        return markdown
    return _relinked(f"docs/{page.file.src_uri}", markdown, config.extra["root_pages"])


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas in MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        inline, block = match[1], match[2]
        if inline is not None:
            return mathml(inline, "inline")
        return f'<div class="formula">{mathml(block, "block")}</div>'

    arithmatex = r'<span class="arithmatex">\\\((.*?)\\\)</span>|<div class="arithmatex">\\\[(.*?)\\\]</div>'
    return re.sub(arithmatex, formula, content, flags=re.DOTALL)


def mathml(tex: str, display: str) -> str:
    """With the thin space that TeX puts between a function's name and what it is of."""
    name = r"(<mi>(?:log|exp|max|min)</mi>)(?=<m(?:i|sub|sup|subsup)>)"
    return re.sub(name, r'\1<mspace width="0.17em"/>', convert(html.unescape(tex), display=display))


def on_post_build(config: MkDocsConfig) -> None:
    """Take out what the theme would load from elsewhere: scripts for old browsers and for diagrams, and source maps."""
    for path in Path(config.site_dir).rglob("*.js"):
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"https://unpkg\.com/[^\"'`)]*", "", text), encoding="utf-8")
    for path in Path(config.site_dir).rglob("*.map"):
        path.unlink()


def site_uri(source: str, roots: dict[str, str]) -> str:
    """Where a file of the repository is in the site, as mkdocs names its source."""
    if source in roots:
        return roots[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"source/{source}" if source.endswith((".md", *PICTURES)) else f"source/{source}.md"


def _outside(source: str, text: str) -> list[str]:
    """The files outside docs/ that a page links to."""
    links = [match[1] for part in CODE.split(text)[::2] for match in LINK.finditer(part)]
    targets = [_target(source, link) for link in links]
    return [t for t in targets if not t.startswith(("docs/", "..")) and (ROOT / t).exists()]


def _relinked(source: str, text: str, roots: dict[str, str]) -> str:
    """The text of a page of the repository with the links that it has in the site."""
    folder = PurePosixPath(site_uri(source, roots)).parent

    def moved(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        if target.startswith("..") or not (ROOT / target).exists():
            return match[0]  # mkdocs names the link that leads nowhere
        return os.path.relpath(site_uri(target, roots), folder) + (match[2] or "")

    parts = CODE.split(text)
    parts[::2] = [LINK.sub(moved, part) for part in parts[::2]]
    return "".join(parts)


def _target(source: str, link: str) -> str:
    return os.path.normpath(PurePosixPath(source).parent / link)


def _content(path: Path, source: str) -> str | bytes:
    """A page as it is; a picture; any other file as a page that shows it."""
    if path.is_dir():
        names = sorted(p.name + "/" * p.is_dir() for p in path.iterdir() if not p.name.startswith(("_", ".")))
        return f"# {source}\n\n" + "".join(f"- `{name}`\n" for name in names)
    if path.suffix in PICTURES:
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    return f"---\nsearch:\n  exclude: true\n---\n# {source}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"
