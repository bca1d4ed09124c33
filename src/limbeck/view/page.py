"""The page's own files: served in parts by the server, or put into one file for a report.

The modules are written so that they can be laid end to end: they import each other by relative names
only, and no two of them define the same top-level name. So one file needs no bundler.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck.sanitize import printable

ASSETS = Path(__file__).with_name("assets")
MODULES = (  # each after those it imports
    "address.js", "dom.js", "format.js", "source.js", "store.js", "student.js", "flat.js", "groups.js",
    "temperature.js", "clip.js", "menu.js", "typed.js", "columns.js", "find.js", "runrows.js", "runs.js",
    "series.js", "axes.js", "viewstate.js", "vector.js", "export.js", "legend.js", "marks.js", "help.js", "charts.js",
    "chartlist.js", "runhead.js", "curves.js",
    "heat.js", "inspector.js", "flow.js", "chat.js", "speech.js", "conversation.js", "grade.js", "words.js",
    "paired.js", "compare.js", "detail.js", "rollouts.js", "opened.js", "answers.js", "samples.js",
    "disagreement.js", "roles.js", "system.js",
    "recipe.js",
    "tabs.js", "main.js",
)  # fmt: skip
LIBRARY = "vendor/uPlot.iife.min.js"
STYLES = (  # what all parts share, then each part's own
    "vendor/uPlot.min.css", "style.css", "runs.css", "curves.css", "samples.css", "disagreement.css", "system.css",
    "recipe.css",
)  # fmt: skip
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
# Only the page's own files run or are fetched; a response that holds markup could do nothing even if
# it were ever taken for some.
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
}


def policy(changes: Mapping[str, str], framed: bool = False) -> str:
    """A Content-Security-Policy. A page in a file cannot say who may frame it."""
    directives = {**POLICY, **changes, **({} if framed else {"frame-ancestors": "'none'"})}
    return "; ".join(f"{name} {value}" for name, value in directives.items())


def asset(name: str) -> str:
    """A file of the page by its name, which must be one of them. Raises `KeyError` otherwise."""
    known = ("index.html", "icon.svg", LIBRARY, *STYLES, *MODULES)
    if name not in known:
        raise KeyError(name)
    return (ASSETS / name).read_text(encoding="utf-8")


def in_one_file(data: Mapping[str, Any], title: str) -> str:
    """The page with its styles, modules and data: it opens without a network, and runs nothing else."""
    style = "\n".join(asset(name) for name in STYLES)
    library, modules = asset(LIBRARY), _laid_end_to_end()
    allowed = policy(
        {
            "script-src": f"{_hash(library)} {_hash(modules)}",
            "style-src": _hash(style),
            "connect-src": "'none'",
            "img-src": "data:",
        },
        framed=True,
    )
    html = asset("index.html")
    head = f'<meta http-equiv="Content-Security-Policy" content="{allowed}">\n<style>{style}</style>'
    icon = base64.b64encode(asset("icon.svg").encode()).decode()
    body = (
        f'<script type="application/json" id="data">{inert(data)}</script>\n'
        f'<script>{library}</script>\n<script type="module">{modules}</script>'
    )
    for place, text in (
        ("title", f"<title>{_escaped(printable(title))}</title>"),
        ("head", f'{head}\n<link rel="icon" href="data:image/svg+xml;base64,{icon}">'),
        ("scripts", body),
    ):
        html = _between(html, place, text)
    return html


def inert(data: Any) -> str:
    """JSON that cannot end the script element around it, whatever a model wrote."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _laid_end_to_end() -> str:
    parts = []
    for name in MODULES:
        text = re.sub(r"^import [^;]*;\n", "", asset(name), flags=re.MULTILINE)
        parts.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n".join(parts)


def _between(html: str, place: str, text: str) -> str:
    """Replaces what is between `<!-- PLACE -->` and `<!-- /PLACE -->`."""
    start, end = html.index(f"<!-- {place} -->"), html.index(f"<!-- /{place} -->")
    return html[:start] + text + html[end:]


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
