r"""LaTeX's and Unicode's spellings of mathematics as one plain spelling, which is what `expressions` reads.

plain(r"\dfrac{1}{2}\cdot 3²")     r"\frac{1}{2}× 3^{2}"
"""

# ruff: noqa: RUF001 (it is about such characters)

from __future__ import annotations

import re
import unicodedata

_SPELLINGS = [
    (re.compile(pattern), spelling)
    for pattern, spelling in [
        (r"\\(?:left|right|displaystyle|bigl?|bigr|Bigl?|Bigr)(?![A-Za-z])|\\!", ""),
        (r"\{,\}|(?<=[0-9])(?:\\[,:; ]|[\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))", ","),
        (r"\\[,:;> ]|\\q?quad(?![A-Za-z])|[~\u00a0\u2009\u202f]", " "),
        (r"\\[\[\]()]", " "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boxed|fbox|bm)\s*(?=\{)", " "),
        (r"\\([%$#&])", r"\1"),
        (r"\\pi(?![A-Za-z])", "π"),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])", "°"),
        (r"[\u2010-\u2013\u2212\ufe63\uff0d]", "-"),
        (r"\\pm(?![A-Za-z])", "±"),
        (r"\\(?:times|cdot)(?![A-Za-z])|[·⋅∙]", "×"),
        (r"\\div(?![A-Za-z])|[÷\u2044]", "/"),
        (r"\\(?:approx|simeq|equiv|Rightarrow|rightarrow|implies|to)(?![A-Za-z])|[≈≃⇒→]", "="),
        (r"(?<=[0-9])\*\*(?=[-0-9({])", "^"),
        (r"(?<=[\w)}\]])\*(?=[\w({\\-])|(?<=[\w)}\]]) \* (?=[\w({\\-])", "×"),
        (r"\*+", " "),  # bold and italics
    ]
]
_SUPERSCRIPTS = re.compile("[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_VULGAR = re.compile("(?P<whole>[0-9])?(?P<part>[¼-¾⅐-⅞])")


def plain(text: str) -> str:
    r"""The same text with LaTeX's and Unicode's spellings replaced by plain ones: \dfrac, \cdot, ², ½, −, \boxed."""
    text = _VULGAR.sub(_spelled_out, text)
    text = _SUPERSCRIPTS.sub(lambda m: "^{" + unicodedata.normalize("NFKC", m[0]).replace("\u2212", "-") + "}", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    return text


def _spelled_out(match: re.Match[str]) -> str:
    part = unicodedata.normalize("NFKC", match["part"]).replace("\u2044", "/")
    return f"{match['whole']} {part}" if match["whole"] else part
